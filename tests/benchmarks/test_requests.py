"""The benchmarks' requests are those of the SDK and of the HTTP clients, byte for byte.

Each is sent by the load generator, as a scenario sends it, and then by the client itself with the
same ids. Only the port of the server, and the time of the notification, differ.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence

import pytest

from benchmarks import machine, senders
from benchmarks.capture import Capture, Captured
from benchmarks.load import Load, Publish
from benchmarks.ours import Ours
from benchmarks.peers import Limit
from benchmarks.senders import RAW, Call, MissingError
from benchmarks.servers import Server
from synap_realtime import AsyncBroadcaster
from tests.support.timeouts import TIMEOUT_S

MESSAGE = {"type": senders.TYPE, "data": senders.data(), "status": senders.STATUS}


@pytest.fixture(params=[Ours, Limit], ids=["ours", "limit"])
def kind(request: pytest.FixtureRequest) -> Server:
    made: Server = request.param()
    return made


def test_a_publish_to_a_user_is_the_sdks(kind: Server) -> None:
    assert_same(
        kind.publish("user_4711", 0),
        lambda sdk, ids: [sdk.broadcast_success("4711", *to_all(), id=ids[0])],
    )


def test_a_publish_to_a_user_and_a_request_is_the_sdks(kind: Server) -> None:
    assert_same(
        kind.publish_to_both("0815", 0),
        lambda sdk, ids: [sdk.broadcast_success("0815", *to_all(), "0815", id=ids[0])],
    )


def test_a_publish_to_another_room_is_the_sdks(kind: Server) -> None:
    assert_same(
        kind.publish("workspace_1", 0),
        lambda sdk, ids: [sdk.broadcast("workspace_1", {**MESSAGE, "id": ids[0]})],
    )


def test_a_batch_is_the_sdks(kind: Server) -> None:
    rooms = [f"user_{7 * number}" for number in range(100)]
    assert_same(
        kind.publish_many(rooms, 0),
        lambda sdk, ids: [
            sdk.broadcast(room, {**MESSAGE, "id": id}) for room, id in zip(rooms, ids, strict=True)
        ],
    )


@pytest.mark.parametrize("client", RAW)
def test_a_raw_publish_is_the_clients(client: str) -> None:
    kind = Ours()
    with Capture() as capture:
        sent = by_load_generator(capture, kind.publish_raw(client, "user_4711", 0))
        call = kind.call("user_4711")
        body = call.body.replace(senders.ID, ids_of(sent)[0])
        headers = (("Authorization", bearer(sent)),)
        try:
            RAW[client](f"{capture.url}{call.path}", Call(call.path, headers, body))
        except MissingError as error:
            pytest.skip(str(error))
        assert_equal(sent, capture.requests[-1])


def to_all() -> tuple[str, dict[str, str]]:
    return senders.TYPE, senders.data()


def assert_same(
    publish: Publish,
    broadcasts: Callable[[AsyncBroadcaster, Sequence[str]], Sequence[Awaitable[object]]],
) -> None:
    with Capture() as capture:
        sent = by_load_generator(capture, publish)
        asyncio.run(by_sdk(capture, sent, broadcasts))
        assert_equal(sent, capture.requests[-1])


def assert_equal(sent: Captured, expected: Captured) -> None:
    assert sent.writes_separately == expected.writes_separately
    assert masked(sent) == masked(expected)


def by_load_generator(capture: Capture, publish: Publish) -> Captured:
    port = int(capture.url.rpartition(":")[2])
    with Load(machine.cores().load) as load:
        load.publish(port, [publish], 2, mode="closed")
    return capture.requests[-1]


async def by_sdk(
    capture: Capture,
    sent: Captured,
    broadcasts: Callable[[AsyncBroadcaster, Sequence[str]], Sequence[Awaitable[object]]],
) -> None:
    """Publish on a connection that is open; what waits for the response of the first is a batch."""
    async with (
        asyncio.timeout(TIMEOUT_S),
        AsyncBroadcaster(capture.url, bearer(sent).partition(" ")[2]) as sdk,
    ):
        await sdk.broadcast("user_1", MESSAGE)
        calls = broadcasts(sdk, ids_of(sent))
        if len(calls) == 1:
            await calls[0]
            return
        capture.answers.clear()
        capture.received.clear()
        first = asyncio.ensure_future(sdk.broadcast("user_1", MESSAGE))
        await asyncio.to_thread(capture.received.wait, TIMEOUT_S)
        waiting = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0)
        capture.answers.set()
        await asyncio.gather(first, *waiting)


def bearer(sent: Captured) -> str:
    found = re.search(rb"Authorization: (\S+ \S+)", sent.head)
    assert found
    return found[1].decode()


def ids_of(sent: Captured) -> list[str]:
    body = json.loads(sent.body)
    return [each["id"] for each in body.get("notifications", [body])]


def masked(sent: Captured) -> bytes:
    """Return a request without the port of the server, and without the notification's time."""
    head = re.sub(rb"(127\.0\.0\.1):\d{5}", rb"\1", sent.head)
    return head + re.sub(rb"\d{4}-\d\d-\d\dT[\d:.]{12}Z", b"", sent.body)
