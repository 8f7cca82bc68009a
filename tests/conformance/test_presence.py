"""PROTOCOL.md, "Presence". Without keys, only a user's room identifies its user."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest

from tests.support.timeouts import TIMEOUT_S, scaled

from .client import V1, Client, Json, Listener, check_error, fresh_room, room_path
from .credentials import Secret

PRESENCE = "synap.presence"
GRACE_S = 5.0


async def _there(client: Client, room: str) -> Json:
    response = await client.get(room_path(room, "presence"))
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


async def _until_there(client: Client, room: str, expected: dict[str, int]) -> None:
    """Wait until these users are listed with so many connections: each look is a request."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            users = (await _there(client, room))["users"]
            if {user["user"]: user["connections"] for user in users} == expected:
                return


def _user(room: str) -> str:
    return room.partition("_")[2]


async def test_presence_of_an_empty_room(client: Client) -> None:
    """Presence: `GET /rooms/{room}/presence` answers `room`, `connections` and `users`."""
    room = fresh_room()
    assert await _there(client, room) == {"room": room, "connections": 0, "users": []}


async def test_one_user_on_devices(client: Client) -> None:
    """Presence: the users of its connections, and their devices; `connections`: all."""
    room = fresh_room()
    async with (
        client.listen(room, device="phone"),
        client.listen(room, v1=True, device="laptop"),
        client.listen(room, device="laptop"),
        client.listen(room),
        client.stream(room, device="tab") as stream,
    ):
        await stream.subscribed()
        await client.until_connections(room, 5)
        devices = ["laptop", "phone", "tab"]
        (user,) = (found := await _there(client, room))["users"]
        assert (found["room"], found["connections"]) == (room, 5)
        assert user == {"user": _user(room), "connections": 5, "devices": user["devices"]}
        assert sorted(user["devices"]) == devices


async def test_a_user_without_connections_has_not_left_yet(client: Client) -> None:
    """Presence: a user who reconnects within 5 s has not left; meanwhile it is listed with no
    connections."""
    room = fresh_room()
    async with client.listen(room, device="phone"):
        await client.until_connections(room, 1)
    ended_at = time.monotonic()
    await client.until_connections(room, 0)
    there = (await _there(client, room))["users"]
    if time.monotonic() - ended_at < GRACE_S - 1:  # else the machine was too slow to look
        assert there == [{"user": _user(room), "connections": 0, "devices": ["phone"]}]


async def test_the_state_comes_first_then_each_change(client: Client) -> None:
    """Presence: `state` and `users` first; `update` when a device of theirs came."""
    room = fresh_room()
    me = {"user": _user(room), "connections": 1, "devices": ["a"]}
    async with client.listen(room, v1=True, presence="1", device="a") as watcher:
        assert await watcher.control(PRESENCE) == {"event": "state", "users": [me]}
        async with client.listen(room, device="b"):
            event_of = await watcher.control(PRESENCE)
            assert sorted(event_of.pop("devices")) == ["a", "b"]
            assert event_of == {"event": "update", "user": _user(room), "connections": 2}


async def test_client_without_presence_receives_no_presence_frames(client: Client) -> None:
    """Presence: `?presence=1` brings control frames; no other client sees one."""
    room = fresh_room()
    async with client.listen(room, v1=True) as listener, client.listen(room, device="b"):
        await listener.subscribed()
        await client.until_connections(room, 2)
        assert await listener.ping() == []


async def test_refuses_presence_without_synap_v1(client: Client) -> None:
    """Presence: a WebSocket without `synap.v1` is refused with 400."""
    path = room_path(fresh_room(), "subscribe", presence="1")
    status, refusal = await client.refusal(path)
    assert (status, refusal["code"]) == (400, "invalid_request")
    async with client.listen_at(path, [V1]) as listener:
        assert (await listener.control(PRESENCE))["event"] == "state"


async def test_an_event_stream_receives_it(client: Client) -> None:
    """Server-Sent Events: the control frames come as named events, `data:` alone."""
    room = fresh_room()
    async with client.stream(room, presence="1") as stream:
        received = [await stream.event(), await stream.event()]
        (event,) = (event for event in received if event.name == PRESENCE)
        me = {"user": _user(room), "connections": 1, "devices": []}
        assert event.json() == {"event": "state", "users": [me]}
        async with client.listen(room, device="b"):
            event = await stream.event()
            assert (event.name, event.json()["event"]) == (PRESENCE, "update")


@pytest.mark.without_keys
async def test_without_keys_another_room_has_no_users(client: Client) -> None:
    """Presence: `connections`: all, also those without a user."""
    room = fresh_room("workspace")
    async with client.listen(room, device="phone"):
        await client.until_connections(room, 1)
        assert await _there(client, room) == {"room": room, "connections": 1, "users": []}


# --- several users: a server with keys


def _as(client: Client, user: str | None, room: str) -> Client:
    return client.showing(client.keys.token(user, rooms=[room], scope="subscribe presence"))


@contextlib.asynccontextmanager
async def _talking(
    listening: contextlib.AbstractAsyncContextManager[Listener],
) -> AsyncIterator[Listener]:
    """A connection that is not silent meanwhile."""

    async def talk(listener: Listener) -> None:
        while True:
            await asyncio.sleep(1)
            await listener.send("ping")

    async with listening as listener:
        talking = asyncio.create_task(talk(listener))
        try:
            yield listener
        finally:
            talking.cancel()


@pytest.mark.with_keys
async def test_users_by_id(client: Client) -> None:
    """Presence: the users of its connections, by `sub`, as a list by id."""
    room = fresh_room("workspace")
    async with (
        _as(client, "b", room).listen(room, device="x"),
        _as(client, "a", room).listen(room),
        _as(client, "c", room).listen(room),
        _as(client, None, room).listen(room, device="y"),
        _as(client, "a", room).listen(room),
    ):
        await _as(client, None, room).until_connections(room, 5)
        assert await _there(client, room) == {
            "room": room,
            "connections": 5,
            "users": [
                {"user": "a", "connections": 2, "devices": []},
                {"user": "b", "connections": 1, "devices": ["x"]},
                {"user": "c", "connections": 1, "devices": []},
            ],
        }


@pytest.mark.with_keys
async def test_the_tokens_device_counts_more(client: Client) -> None:
    """Devices: a token with `device`, which takes precedence over `?device=`."""
    room = fresh_room()
    mine = client.showing(client.keys.token(_user(room), device="phone"))
    async with mine.listen(room, device="laptop"):
        await client.until_connections(room, 1)
        assert (await _there(client, room))["users"][0]["devices"] == ["phone"]


@pytest.mark.with_keys
async def test_join_update_leave(client: Client) -> None:
    """Presence: `join` with a user's first connection, `leave` after the last, `update` when a
    device came or went. Who comes back within 5 s has not left: meanwhile they are listed."""
    room = fresh_room("workspace")
    watching = _as(client, None, room).listen(room, v1=True, presence="1")
    async with _talking(watching) as watcher, contextlib.AsyncExitStack() as stays:
        assert await watcher.control(PRESENCE) == {"event": "state", "users": []}
        stack = await stays.enter_async_context(contextlib.AsyncExitStack())
        for user, device, event in (
            ("stays", "a", "join"), ("stays", "b", "update"), ("leaves", "c", "join"),
            ("returns", "d", "join"),
        ):  # fmt: skip
            here = stays if (user, device) == ("stays", "a") else stack
            listening = _as(client, user, room).listen(room, device=device)
            await here.enter_async_context(_talking(listening))
            event_of = await watcher.control(PRESENCE)
            assert (event_of["event"], event_of["user"]) == (event, user)
            assert device in event_of["devices"]
            assert event_of["connections"] == (2 if event == "update" else 1)
        await stack.aclose()
        left_at = time.monotonic()
        # They have not left yet: they are listed, without a connection.
        await _until_there(client, room, {"stays": 1, "leaves": 0, "returns": 0})
        returning = _as(client, "returns", room).listen(room, device="d")
        await stays.enter_async_context(_talking(returning))
        events = [await watcher.control(PRESENCE) for _ in range(2)]
        assert GRACE_S * 0.9 < time.monotonic() - left_at < GRACE_S + scaled(5)
        by_user = {event.pop("user"): event for event in events}
        assert by_user == {
            "stays": {"event": "update", "connections": 1, "devices": ["a"]},
            "leaves": {"event": "leave", "connections": 0, "devices": []},
        }
        assert [user["user"] for user in (await _there(client, room))["users"]] == [
            "returns", "stays",
        ]  # fmt: skip


@pytest.mark.with_keys
async def test_presence_requires_its_scope(client: Client) -> None:
    """Presence: `?presence=1` on a subscription, scope `presence` beside `subscribe`."""
    room = fresh_room()
    for scope in ("subscribe", "presence"):
        mine = client.showing(client.keys.token(_user(room), scope=scope))
        check_error(await mine.get(room_path(room, "events", presence="1")), 403, "forbidden")
        path = room_path(room, "subscribe", presence="1")
        headers = {"Origin": client.keys.origin}
        async with mine.listen_at(path, [V1], headers) as listener:
            assert await listener.closed() == 4503
    mine = client.showing(client.keys.token(_user(room), scope="subscribe"))
    check_error(await mine.get(room_path(room, "presence")), 403, "forbidden")


@pytest.mark.with_keys
async def test_a_new_token_must_be_good_for_presence_too(client: Client) -> None:
    """WebSocket: `authenticate`: good for the room, and for presence where the client watches."""
    user = _user(fresh_room())
    room = f"user_{user}"
    more = client.keys.token(user, scope="subscribe presence")
    less = client.keys.token(user, scope="subscribe")
    said = Secret(f'{{"action":"authenticate","token":"{less}"}}')
    async with client.showing(more).listen(room, v1=True, presence="1") as watcher:
        await watcher.send(said)
        assert await watcher.closed() == 4503
    async with client.showing(more).listen(room, v1=True) as listener:
        await listener.send(said)
        await listener.ping()
