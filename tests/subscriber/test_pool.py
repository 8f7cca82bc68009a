"""Subscriptions to single rooms that share connections, by both drivers, on a real room server."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time

import httpx
import pytest

from synap_realtime import AsyncBroadcaster, SubscriptionError, SubscriptionState, follow_job
from synap_realtime.server import create_app
from synap_realtime.server.config import ServerSettings
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.link import Link
from tests.support.polling import until
from tests.support.timeouts import TIMEOUT_S

from .conftest import Listen, Receive
from .one_room_only import OneRoomOnly

SECRET = "of-the-tests-" * 4


async def connections(url: str) -> int:
    """Return how many WebSockets the server has."""
    async with httpx.AsyncClient(base_url=url) as client:
        metrics = (await client.get("/metrics")).text
    (line,) = (
        each
        for each in metrics.splitlines()
        if each.startswith('synap_realtime_connections{transport="websocket"}')
    )
    return int(float(line.split()[-1]))


async def has_connections(url: str, count: int) -> bool:
    return await connections(url) == count


async def publish(broadcaster: AsyncBroadcaster, room: str, id: str, size: int = 0) -> None:
    await broadcaster.broadcast_success(None, "a.completed", {"x": "x" * size}, room, id=id)


async def ids(receive: Receive, count: int) -> list[str | None]:
    return [(await receive()).id for _ in range(count)]


async def test_subscriptions_share_one_connection(listen: Listen, rooms: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        broadcaster = await stack.enter_async_context(AsyncBroadcaster(rooms))
        listeners = [
            await stack.enter_async_context(listen(f"request_{number}", rooms))
            for number in range(20)
        ]
        for number in range(20):
            await publish(broadcaster, str(number), f"n{number}")
        for number, receive in enumerate(listeners):
            assert await ids(receive, 1) == [f"n{number}"]
        assert await connections(rooms) == 1
    await until(lambda: has_connections(rooms, 0))


async def test_rooms_come_and_go(listen: Listen, rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster, listen("request_1", rooms) as receive:
        await publish(broadcaster, "1", "a0")
        assert await ids(receive, 1) == ["a0"]
        for number in range(5):
            async with listen("request_2", rooms) as other:
                await publish(broadcaster, "2", f"b{number}")
                assert await ids(other, number + 1) == [f"b{n}" for n in range(number + 1)]
        await publish(broadcaster, "1", "a1")
        assert await ids(receive, 1) == ["a1"]
        assert await connections(rooms) == 1


async def test_one_room_twice_is_two_subscriptions(listen: Listen, rooms: str) -> None:
    async with (
        AsyncBroadcaster(rooms) as broadcaster,
        listen("request_1", rooms) as one,
        listen("request_1", rooms) as two,
        listen("request_2", rooms) as other,
    ):
        for room in ("1", "2"):
            await publish(broadcaster, room, f"n{room}")
        for receive in (one, two):
            assert await ids(receive, 1) == ["n1"]
        assert await ids(other, 1) == ["n2"]
        assert await connections(rooms) == 2


async def test_slow_consumer_delays_no_other(listen: Listen, rooms: str) -> None:
    """What it has not processed is bounded; it receives everything once and in order."""
    expected = [f"n{number}" for number in range(30)]
    async with (
        AsyncBroadcaster(rooms) as broadcaster,
        listen("request_1", rooms) as slow,
        listen("request_2", rooms) as receive,
    ):
        await publish(broadcaster, "1", "first")
        assert await ids(slow, 1) == ["first"]
        for id in expected:
            await publish(broadcaster, "1", id, size=100_000)
            await publish(broadcaster, "2", id)
            assert await ids(receive, 1) == [id]
        assert await ids(slow, 30) == expected
        await publish(broadcaster, "1", "last")
        assert await ids(slow, 1) == ["last"]
        assert await connections(rooms) == 1


async def test_on_a_bad_network_each_room_arrives_once_and_in_order(
    listen: Listen, rooms: str
) -> None:
    states: list[SubscriptionState] = []
    expected = [f"n{number}" for number in range(40)]
    async with contextlib.AsyncExitStack() as stack:
        link = await stack.enter_async_context(Link(rooms))
        broadcaster = await stack.enter_async_context(AsyncBroadcaster(rooms))
        listeners = [
            await stack.enter_async_context(
                listen(
                    f"request_{number}", link.url, max_reconnects=None,
                    on_state_change=states.append,
                )
            )
            for number in range(3)
        ]  # fmt: skip
        for sent, id in enumerate(expected):
            for number, receive in enumerate(listeners):
                await publish(broadcaster, str(number), id)
                assert await ids(receive, 1) == [id]
            if sent % 10 == 5:
                link.cut()
    assert {state.status for state in states} == {"connected", "reconnecting"}


async def test_acknowledges_each_room(listen: Listen, rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster:
        for user in ("1", "2"):
            for number in range(3):
                await broadcaster.broadcast_success(user, "a.completed", {}, id=f"n{number}")
    async with listen("user_1", rooms) as one, listen("user_2", rooms) as two:
        assert await ids(one, 3) == ["n0", "n1", "n2"]
        assert await ids(two, 1) == ["n0"]
    async with listen("user_1", rooms) as one, listen("user_2", rooms) as two:
        assert await ids(one, 1) == ["n2"], "no further one was requested"
        assert await ids(two, 1) == ["n0"]


async def test_room_that_the_token_does_not_allow_ends_no_other(listen: Listen) -> None:
    settings = ServerSettings(token_secrets=[SECRET], store="memory://")
    token = mint_token("1", secret=SECRET)
    async with (
        running_server(create_app(settings)) as url,
        listen("user_1", url, token) as receive,
        listen("user_2", url, token) as refused,
        listen("user_1", url, "nonsense") as unknown,
    ):
        publisher = mint_token(rooms=["user_1"], scope="broadcast", secret=SECRET)
        async with AsyncBroadcaster(url, publisher) as broadcaster:
            await broadcaster.broadcast_success("1", "a.completed", {}, id="n1")
            assert await ids(receive, 1) == ["n1"]
            for listener, code in ((refused, 403), (unknown, 401)):
                with pytest.raises(SubscriptionError, match="check the token") as error:
                    await listener()
                assert error.value.code == code
            await broadcaster.broadcast_success("1", "a.completed", {}, id="n2")
            assert await ids(receive, 1) == ["n2"]


class Credentials:
    """A token function that cannot be hashed."""

    def __init__(self) -> None:
        self.called = 0

    def __call__(self) -> str:
        self.called += 1
        return "any"

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = None  # type: ignore[assignment]


async def test_shares_a_connection_by_a_token_function_that_cannot_be_hashed(
    listen: Listen, rooms: str
) -> None:
    token = Credentials()
    async with (
        AsyncBroadcaster(rooms) as broadcaster,
        listen("request_1", rooms, token) as one,
        listen("request_2", rooms, token) as two,
    ):
        for room, receive in (("1", one), ("2", two)):
            await publish(broadcaster, room, "n1")
            assert await ids(receive, 1) == ["n1"]
        assert await connections(rooms) == 1
    assert token.called == 1


async def test_renews_a_token_before_it_expires(listen: Listen) -> None:
    settings = ServerSettings(token_secrets=[SECRET], store="memory://")
    called: list[float] = []

    def token() -> str:
        called.append(time.monotonic())
        return mint_token("1", rooms=["request_1", "request_2"], secret=SECRET, expires_in_s=3)

    states: list[str] = []
    publisher = mint_token(rooms=["*"], scope="broadcast", secret=SECRET)
    async with (
        running_server(create_app(settings)) as url,
        AsyncBroadcaster(url, publisher) as broadcaster,
        Link(url) as link,
        listen(
            "request_1", link.url, token, on_state_change=lambda state: states.append(state.status)
        ) as one,
        listen("request_2", link.url, token) as two,
    ):
        end = time.monotonic() + 5
        number = 0
        while time.monotonic() < end:
            number += 1
            for room, receive in (("1", one), ("2", two)):
                await publish(broadcaster, room, f"n{number}")
                assert await ids(receive, 1) == [f"n{number}"]
            await asyncio.sleep(0.1)
        assert link.accepted == 1
    assert states == ["connected"]
    assert 3 <= len(called) <= 12


async def test_asks_a_server_without_such_connections_once(listen: Listen) -> None:
    app = OneRoomOnly()
    async with running_server(app) as url, AsyncBroadcaster(url) as broadcaster:
        for number in range(3):
            async with listen(f"request_{number}", url) as receive:
                await publish(broadcaster, str(number), "n0")
                assert await ids(receive, 1) == ["n0"]
    assert app.connects.count("/subscribe") == 1


async def test_followed_jobs_share_one_connection(rooms: str) -> None:
    async def follow(number: int) -> str:
        async with contextlib.aclosing(follow_job(str(number), rooms)) as states:
            async for state in states:
                if state.is_finished:
                    return state.status
        raise AssertionError("it has not ended")

    async with AsyncBroadcaster(rooms) as broadcaster, asyncio.timeout(TIMEOUT_S):
        jobs = [asyncio.create_task(follow(number)) for number in range(50)]
        await until(lambda: has_connections(rooms, 1))
        for number in range(50):
            await publish(broadcaster, str(number), f"n{number}")
        assert await asyncio.gather(*jobs) == ["success"] * 50
    await until(lambda: has_connections(rooms, 0))


FORKS = """
import os, sys
from contextlib import closing
from synap_realtime import subscribe_sync

url = sys.argv[1]
with closing(subscribe_sync("request_1", url)) as one:
    print(next(one).id)
    sys.stdout.flush()
    child = os.fork()
    with closing(subscribe_sync("request_2", url)) as two:
        print(next(two).id)
    sys.stdout.flush()
    if not child:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    print(next(one).id)
"""


async def test_forked_process_has_connections_of_its_own(rooms: str) -> None:
    """As a worker of Celery is, whose parent has subscriptions."""
    async with AsyncBroadcaster(rooms) as broadcaster:
        for room, id in (("1", "n1"), ("1", "n2"), ("2", "m1")):
            await publish(broadcaster, room, id)
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORKS, rooms, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(TIMEOUT_S):
        output, _ = await program.communicate()
    assert output.split() == [b"n1", b"m1", b"m1", b"n2"]
    assert program.returncode == 0
