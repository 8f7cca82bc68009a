"""No connection monopolizes the event loop: its input is handled in bounded shares."""

from __future__ import annotations

import asyncio
import gc
import json
from functools import partial
from urllib.parse import urlsplit

import pytest

from synap_realtime.server.config import ServerSettings
from synap_realtime.server.protocols import server_state
from synap_realtime.server.protocols.http1_parser import MAX_PIPELINED
from synap_realtime.server.resources.pacing import MAX_DEFERRED_BYTES, SHARE_S, TASK_S, Pacer
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.credentials import API_KEY, SECRET
from tests.support.raw_http import (
    BODY,
    CHUNKED,
    HANDSHAKE,
    HEALTH,
    ROOM,
    Peer,
    bearer,
    http,
    peer,
    publish,
)
from tests.support.servers import keyed_app, open_app
from tests.support.timeouts import TIMEOUT_S
from tests.support.websocket_frames import PING, TEXT, frame

from ..conftest import Run

KEY = bearer(API_KEY)
DEFAULTS = ServerSettings()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def _one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each loop iteration has time for one piece of work."""
    monkeypatch.setattr(server_state, "Pacer", partial(Pacer, 0.0))


one_by_one = pytest.mark.usefixtures("_one_by_one")


def test_work_over_the_share_waits_for_the_next_iteration(run: Run) -> None:
    async def test() -> None:
        clock = Clock()
        pacer = Pacer(clock=clock)
        done: list[str] = []
        loop = asyncio.get_running_loop()

        def work(name: str) -> None:
            done.append(name)
            clock.now += SHARE_S
            loop.call_soon(done.append, f"after {name}")

        assert pacer.has_time()
        clock.now += SHARE_S
        assert not pacer.has_time()
        for name in "abc":
            pacer.add(partial(work, name))
        assert not done
        async with asyncio.timeout(TIMEOUT_S):
            while len(done) < 6:  # noqa: ASYNC110 - the loop's iterations count
                await asyncio.sleep(0)
        # The loop does other things between two shares.
        assert done.index("after a") < done.index("c")
        assert [each for each in done if len(each) == 1] == ["a", "b", "c"]
        await asyncio.sleep(0)
        assert pacer.has_time()

    run(test())


def test_new_work_waits_behind_pending_work(run: Run) -> None:
    async def test() -> None:
        pacer = Pacer(clock=Clock())
        assert pacer.has_time()
        pacer.add(lambda: None)
        assert not pacer.has_time()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pacer.has_time()

    run(test())


def test_cancelled_waiter_delays_nobody(run: Run) -> None:
    async def test() -> None:
        faults: list[object] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: faults.append(context))
        pacer = Pacer(clock=Clock())
        assert pacer.has_time()
        pacer.add(lambda: pacer.charge(1))  # all of the next iteration
        waits = asyncio.ensure_future(pacer.acquire(0))
        await asyncio.sleep(0)
        waits.cancel()
        done = asyncio.Event()
        pacer.add(done.set)
        await done.wait()
        assert waits.cancelled()
        assert not faults

    run(test())


def test_tasks_are_charged_to_the_share(run: Run) -> None:
    async def test() -> None:
        pacer = Pacer(clock=Clock())
        started = 0
        while pacer.has_time():
            pacer.charge(TASK_S)
            started += 1
        assert abs(started - SHARE_S / TASK_S) <= 1

    run(test())


def test_data_does_not_wait_when_too_much_waits(run: Run) -> None:
    async def test() -> None:
        pacer = Pacer(clock=Clock())
        pacer.add(lambda: None, MAX_DEFERRED_BYTES)
        assert not pacer.has_time()
        pacer.add(lambda: None, 1)
        assert pacer.has_time()

    run(test())


def test_data_of_many_connections_waits_for_its_share(run: Run) -> None:
    """As many as the budget of requests allows: each has sent as much as one read takes."""

    async def test() -> None:
        pacer = Pacer(clock=Clock())
        for _ in range(DEFAULTS.max_request_bytes // (256 * 1024)):
            pacer.add(lambda: None, 256 * 1024)
        assert not pacer.has_time()

    run(test())


async def _joined(client: Peer, *fields: bytes) -> None:
    await client.say(http(b"GET " + ROOM + b"/subscribe?after=latest", *HANDSHAKE, *fields))
    assert (await client.answer())[0] == 101


@one_by_one
def test_frames_of_a_flood_are_answered_in_order_and_beside_others(run: Run) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as flood, peer(url) as other:
            await _joined(flood)
            await _joined(other)
            payloads = [b"%03d" % n for n in range(800)]
            flood.writer.write(b"".join(frame(PING, each) for each in payloads))
            other.writer.write(frame(PING, b"other"))
            assert await other.reader.readexactly(7) == b"\x8a\x05other"
            # The whole flood would have been answered in the iteration in which it came.
            assert len(flood.reader._buffer) < 5 * len(payloads)  # type: ignore[attr-defined]
            for payload in payloads:
                assert await flood.reader.readexactly(5) == b"\x8a\x03" + payload

    run(test())


@one_by_one
def test_frame_split_by_the_share_is_read_completely(run: Run) -> None:
    async def test() -> None:
        async with running_server(open_app()) as url, peer(url) as client:
            await _joined(client)
            filler = frame(PING, b"x" * 125) * 20
            for size in range(20):
                client.writer.write(frame(PING, b"y" * size) + filler + frame(TEXT, b"ping"))
                await client.reader.readexactly(2 + size + 20 * 127)
                assert await client.reader.readexactly(6) == b"\x81\x04pong"

    run(test())


@one_by_one
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_body_in_many_chunks_is_read_completely(run: Run, size: int) -> None:
    body = json.dumps({"type": "a", "data": {"x": "y" * 30_000}}).encode()
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"

    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            for _ in range(2):
                sent = http(b"POST " + ROOM + b"/broadcast", CHUNKED, KEY, body=chunks)
                await client.say(sent + HEALTH)
                assert await client.status() == 200
                assert await client.status() == 200

    run(test())


@one_by_one
def test_pipelined_requests_are_answered_in_order(run: Run) -> None:
    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            wanted = [b"/health" if n % 3 else b"/nothing" for n in range(MAX_PIPELINED)]
            await client.say(b"".join(http(b"GET " + path) for path in wanted))
            for path in wanted:
                assert await client.status() == (200 if path == b"/health" else 404)

    run(test())


@one_by_one
def test_a_publisher_does_not_wait_behind_other_requests(run: Run) -> None:
    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as publisher:
            await publisher.say(publish(KEY))
            assert await publisher.status() == 200
            publishers = [
                await asyncio.open_connection(*publisher.writer.get_extra_info("peername"))
                for _ in range(300)
            ]
            for _, writer in publishers:
                writer.write(HEALTH)
            # Another length, so that the head is not one of those that are remembered.
            await publisher.say(publish(KEY, body=BODY + b" "))
            assert await publisher.status() == 200
            answered = sum(bool(reader._buffer) for reader, _ in publishers)  # type: ignore[attr-defined]
            assert answered < len(publishers) // 2
            for reader, writer in publishers:
                assert (await reader.readline()).startswith(b"HTTP/1.1 200")
                writer.transport.abort()

    run(test())


@one_by_one
def test_a_connection_that_ends_while_it_waits_is_forgotten(run: Run) -> None:
    async def test() -> None:
        app = open_app()
        async with running_server(app) as url:
            for sent in (HEALTH * 90, http(b"GET /x", b"X: " + b"y" * 9000), HEALTH):
                for _ in range(20):
                    async with peer(url) as client:
                        client.writer.write(sent)
                        await client.resets()
            async with peer(url) as client:
                await client.say(HEALTH)
                assert await client.status() == 200

    run(test())


HISTORY = http(b"GET " + ROOM + b"/history", bearer("<token>"))
FORGED = {"secret": "another secret of 32 characters."}
REFUSED: dict[str, tuple[bytes, dict[str, str], int]] = {
    "unknown key": (http(b"GET " + ROOM + b"/history", bearer("z" * 43)), {}, 401),
    "forged token": (HISTORY, FORGED, 401),
    "no credential": (http(b"GET " + ROOM + b"/history"), {}, 401),
    "another room": (
        http(b"GET /rooms/user_2/history", bearer("<token>")),
        {"secret": SECRET},
        403,
    ),
    "revoke": (http(b"POST /revoke", bearer("x"), b"Content-Length: 2", body=b"{}"), {}, 401),
    "invalid notification": (publish(KEY, body=b"{}"), {}, 400),
    "invalid JSON": (publish(KEY, body=b"{"), {}, 400),
    "no route": (http(b"GET /nothing"), {}, 404),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_leaves_nothing_to_the_garbage_collector(run: Run, kind: str) -> None:
    sent, token, status = REFUSED[kind]
    if token:
        sent = sent.replace(b"<token>", mint_token("1", secret=token["secret"]).encode())

    async def ask(client: Peer, times: int) -> None:
        for _ in range(times):
            await client.say(sent)
            assert await client.status() == status

    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as client:
            await ask(client, 5)
            gc.collect()
            gc.disable()
            try:
                await ask(client, 20)
                assert gc.collect() < 20, "objects in reference cycles: at least one for each"
            finally:
                gc.enable()

    run(test())


def garbage_of_server() -> list[str]:
    """Collect reference cycles. Return the types of the server's objects in them."""
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        types = {type(each) for each in gc.garbage}
        return [each.__qualname__ for each in types if each.__module__.startswith("synap_realtime")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()


LARGE = b"Content-Length: 500000"
TRUNCATED: dict[str, bytes] = {
    "nothing": b"",
    "half a head": b"GET /health HTTP/1.1\r\nHost: a\r\nX: ",
    "half a body": http(b"POST " + ROOM + b"/broadcast", KEY, LARGE, body=b"{" * 1000),
    "half a body in chunks": http(
        b"POST " + ROOM + b"/broadcast", KEY, CHUNKED, body=b"400\r\n" + b"{" * 1000
    ),
    "half a body that is refused": http(b"POST " + ROOM + b"/broadcast", LARGE, body=b"{" * 1000),
    "half a body without a route": http(b"POST /nothing", LARGE, body=b"{" * 1000),
    "half a body behind a request": HEALTH + http(b"POST /revoke", KEY, LARGE, body=b"{"),
    "half a body with an upgrade": http(
        b"POST " + ROOM + b"/broadcast", KEY, LARGE, b"Upgrade: x", b"Connection: upgrade",
        body=b"{" * 1000,
    ),
    "too large a body": http(b"POST " + ROOM + b"/broadcast", KEY, b"Content-Length: 9000000"),
    "many requests": HEALTH * 50,
    "no HTTP": b"nonsense\r\n\r\n",
    "an event stream": http(b"GET " + ROOM + b"/events", bearer("<token>")),
    "a WebSocket": http(b"GET " + ROOM + b"/subscribe", bearer("<token>"), *HANDSHAKE),
    "half a frame": http(b"GET " + ROOM + b"/subscribe", bearer("<token>"), *HANDSHAKE)
    + frame(TEXT, b"ping" * 100)[:20],
    "a WebSocket that is refused": http(b"GET " + ROOM + b"/subscribe", *HANDSHAKE),
    "a history": http(b"GET " + ROOM + b"/history?limit=1000", bearer("<token>")),
}  # fmt: skip


@pytest.mark.parametrize("cut", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("kind", TRUNCATED)
def test_a_connection_that_ends_leaves_nothing_to_the_garbage_collector(
    run: Run, kind: str, cut: bool
) -> None:
    """An idle server collects nothing for hours: what a flood has left in cycles would stay."""
    sent = TRUNCATED[kind].replace(b"<token>", mint_token("1", secret=SECRET).encode())

    async def test() -> None:
        async with running_server(keyed_app()) as url, peer(url) as other:
            where = urlsplit(url)

            async def ask() -> None:
                _, writer = await asyncio.open_connection(where.hostname, where.port)
                writer.write(sent)
                await writer.drain()
                await other.say(HEALTH)  # the server has read what came before
                assert await other.status() == 200
                if cut:
                    writer.transport.abort()
                else:
                    writer.close()

            async def settle() -> None:
                for _ in range(3):
                    await other.say(HEALTH)
                    assert await other.status() == 200
                    await asyncio.sleep(0.02)

            await ask()
            await settle()
            gc.collect()
            gc.disable()
            try:
                for _ in range(5):
                    await ask()
                await settle()
                assert garbage_of_server() == []
            finally:
                gc.enable()

    run(test())
