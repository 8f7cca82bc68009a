"""Several rooms over one connection, by both drivers, on a real room server."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from synap_realtime import AsyncBroadcaster, InvalidArgumentError, SubscriptionError, subscribe
from synap_realtime.server import create_app
from synap_realtime.server.config import ServerSettings
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.link import Link

from .conftest import Listen
from .one_room_only import OneRoomOnly

USER, REQUEST = "user_1", "request_7"
SECRET = "of-the-tests-" * 4


async def test_receives_each_room_over_one_connection(listen: Listen, rooms: str) -> None:
    async with (
        AsyncBroadcaster(rooms) as broadcaster,
        httpx.AsyncClient(base_url=rooms) as client,
        listen([USER, REQUEST], rooms) as receive,
    ):
        await broadcaster.broadcast_success("1", "a.completed", {}, "7", id="n1")
        received = [await receive(), await receive()]
        assert {each.room for each in received} == {USER, REQUEST}
        assert {each.id for each in received} == {"n1"}
        metrics = (await client.get("/metrics")).text
    assert 'synap_realtime_connections{transport="websocket"} 1.0' in metrics


async def test_starts_each_room_at_its_position(listen: Listen, rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster:
        for number in range(3):
            await broadcaster.broadcast_success("1", "a.completed", {}, "7", id=f"n{number}")
    async with listen(REQUEST, rooms) as receive:
        cursor = (await receive()).cursor
    async with listen([USER, REQUEST], rooms, after={USER: "latest", REQUEST: cursor}) as receive:
        received = [await receive(), await receive()]
    assert [(each.room, each.id) for each in received] == [(REQUEST, "n1"), (REQUEST, "n2")]


async def test_acknowledges_each_room(listen: Listen, rooms: str) -> None:
    async with AsyncBroadcaster(rooms) as broadcaster:
        for user in ("1", "2"):
            for number in range(2):
                await broadcaster.broadcast_success(user, "a.completed", {}, id=f"n{number}")
    async with listen(["user_1", "user_2"], rooms) as receive:
        received = [await receive() for _ in range(4)]
        assert len({(each.room, each.id) for each in received}) == 4
    last = received[-1]  # not acknowledged: no further one was requested
    async with listen(["user_1", "user_2"], rooms) as receive:
        again = await receive()
        assert (again.room, again.id) == (last.room, last.id)


async def test_on_a_bad_network_everything_arrives_once_and_in_order(
    listen: Listen, rooms: str
) -> None:
    count = 60
    async with (
        Link(rooms) as link,
        AsyncBroadcaster(rooms) as broadcaster,
        listen([USER, REQUEST], link.url, max_reconnects=None) as receive,
    ):
        received: dict[str, list[str]] = {USER: [], REQUEST: []}
        for number in range(count):
            await broadcaster.broadcast_success("1", "a.completed", {}, "7", id=f"n{number}")
            if number % 20 == 10:
                link.cut()
            for _ in range(2):
                notification = await receive()
                received[str(notification.room)].append(str(notification.id))
    expected = [f"n{number}" for number in range(count)]
    assert received == {USER: expected, REQUEST: expected}


async def test_uses_a_connection_for_each_room_if_the_server_has_no_others(
    listen: Listen,
) -> None:
    app = OneRoomOnly()
    states: list[str] = []
    async with (
        running_server(app) as url,
        AsyncBroadcaster(url) as broadcaster,
        listen(
            [USER, REQUEST], url, on_state_change=lambda state: states.append(state.status)
        ) as receive,
    ):
        for number in range(3):
            await broadcaster.broadcast_success("1", "a.completed", {}, "7", id=f"n{number}")
        received = [await receive() for _ in range(6)]
        async with listen([USER, REQUEST], url) as receive:
            await receive()
    for room in (USER, REQUEST):
        assert [each.id for each in received if each.room == room] == ["n0", "n1", "n2"]
    paths = [f"/rooms/{REQUEST}/subscribe", f"/rooms/{USER}/subscribe"]
    assert sorted(app.connects) == sorted(["/subscribe", *paths, *paths])
    assert states == ["connected", "connected"]


async def test_room_that_the_token_does_not_allow_is_an_error(listen: Listen) -> None:
    settings = ServerSettings(token_secrets=[SECRET], store="memory://")
    token = mint_token("1", secret=SECRET)
    async with (
        running_server(create_app(settings)) as url,
        listen([USER, "user_2"], url, token) as receive,
    ):
        with pytest.raises(SubscriptionError, match=r"user_2: .*; check the token") as error:
            await receive()
    assert error.value.code == 403


async def test_slow_consumer_receives_everything_once_and_in_order(
    listen: Listen, rooms: str
) -> None:
    expected = [f"n{number}" for number in range(30)]
    async with AsyncBroadcaster(rooms) as broadcaster, listen([USER, REQUEST], rooms) as receive:
        for id in expected:
            await broadcaster.broadcast_success(
                "1", "a.completed", {"x": "x" * 100_000}, "7", id=id
            )
        received = [await receive() for _ in range(60)]
    for room in (USER, REQUEST):
        assert [each.id for each in received if each.room == room] == expected


async def test_shares_its_connection_with_no_other_subscription(listen: Listen, rooms: str) -> None:
    """A slow consumer of many rooms would leave and subscribe to them all the time."""
    async with (
        AsyncBroadcaster(rooms) as broadcaster,
        httpx.AsyncClient(base_url=rooms) as client,
        listen([USER, REQUEST], rooms) as several,
        listen("request_8", rooms) as one,
    ):
        await broadcaster.broadcast_success("1", "a.completed", {}, "7", id="n1")
        await broadcaster.broadcast_success(None, "a.completed", {}, "8", id="m1")
        assert [(await several()).id for _ in range(2)] == ["n1", "n1"]
        assert (await one()).id == "m1"
        metrics = (await client.get("/metrics")).text
    assert 'synap_realtime_connections{transport="websocket"} 2.0' in metrics


async def test_renews_a_token_before_it_expires(listen: Listen) -> None:
    settings = ServerSettings(token_secrets=[SECRET], store="memory://")
    called: list[float] = []

    def token() -> str:
        called.append(time.monotonic())
        return mint_token("1", rooms=[REQUEST], secret=SECRET, expires_in_s=3)

    states: list[str] = []
    publisher = mint_token(rooms=["*"], scope="broadcast", secret=SECRET)
    async with (
        running_server(create_app(settings)) as url,
        AsyncBroadcaster(url, publisher) as broadcaster,
        listen(
            [USER, REQUEST], url, token, on_state_change=lambda state: states.append(state.status)
        ) as receive,
    ):
        end = time.monotonic() + 5
        number = 0
        while time.monotonic() < end:
            number += 1
            await broadcaster.broadcast_success("1", "a.completed", {}, "7", id=f"n{number}")
            assert [(await receive()).id for _ in range(2)] == [f"n{number}"] * 2
            await asyncio.sleep(0.1)
    assert states == ["connected"]
    assert 3 <= len(called) <= 12


@pytest.mark.parametrize(
    ("room", "after", "field"),
    [
        ([], None, "room"),
        (["user_1"] * 129, None, "room"),
        (["user_1", "no room"], None, "room"),
        (["user_1"], {"user_2": "latest"}, "after"),
        (["user_1"], {"user_1": "?"}, "after"),
        ("user_1", {"user_1": "latest"}, "after"),
    ],
)
def test_rejects_an_invalid_argument(room: Any, after: Any, field: str) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        subscribe(room, after=after)
    assert error.value.field == field


async def test_ends_all_tasks(rooms: str) -> None:
    before = len(asyncio.all_tasks())
    notifications = subscribe([USER, REQUEST], rooms)
    async with AsyncBroadcaster(rooms) as broadcaster:
        await broadcaster.broadcast_success("1", "a.completed", {}, "7", id="n1")
        await anext(notifications)
        await notifications.aclose()
    assert len(asyncio.all_tasks()) == before
