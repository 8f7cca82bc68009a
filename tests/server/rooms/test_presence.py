"""PROTOCOL.md, "Presence"."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import websockets

from synap_realtime.protocol.control import ControlFrame
from synap_realtime.protocol.rooms import Room
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.rooms import presence
from synap_realtime.server.rooms.presence import Presence
from tests.support.credentials import bearer, token
from tests.support.http_client import ask
from tests.support.servers import Front, serving
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits
from tests.support.websocket_client import closed_with, frame, listening

GRACE_S = 0.2
ROOM = Room("workspace_7")
SCOPE = "subscribe presence"


@pytest.fixture(autouse=True)
def _short_grace(set_waits: SetWaits) -> None:
    set_waits(presence_grace_s=GRACE_S)


@pytest.fixture
async def url(front: Front) -> AsyncIterator[str]:
    async with serving(front) as url:
        yield url


def of(user: str, **options: Any) -> str:
    return token(user, rooms=("workspace_*",), scope=SCOPE, **options)


async def next_event(ws: websockets.ClientConnection) -> dict[str, Any]:
    data: dict[str, Any] = (await frame(ws, "synap.presence"))["data"]
    return data


async def users(url: str, room: str = ROOM, credential: str | None = None) -> Any:
    response = await ask(url, "GET", f"/rooms/{room}/presence", credential or of("ops"))
    assert response.status_code == 200, response.text
    return response.json()["users"]


async def test_a_new_token_has_to_allow_it_too(url: str) -> None:
    async with listening(url, ROOM, of("ops"), query="?presence=1") as watcher:
        new = token("ops", rooms=(ROOM,), scope="subscribe")
        await watcher.send(json.dumps({"action": "authenticate", "token": new}))
        assert await closed_with(watcher) == 4503


async def nobody_is_left(url: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            if not await users(url):
                return
            await asyncio.sleep(0.02)


async def test_two_tabs_and_a_phone_are_one_user_on_three_devices(url: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for device in ("tab1", "tab2", "phone"):
            ws = await stack.enter_async_context(
                listening(url, ROOM, of("1"), query=f"?device={device}")
            )
            await frame(ws, "synap.subscribed")
        ws = await stack.enter_async_context(listening(url, ROOM, of("2", device="laptop")))
        await frame(ws, "synap.subscribed")
        response = await ask(url, "GET", f"/rooms/{ROOM}/presence", of("ops"))
        assert response.json() == {
            "room": ROOM,
            "connections": 4,
            "users": [
                {"user": "1", "connections": 3, "devices": ["phone", "tab1", "tab2"]},
                {"user": "2", "connections": 1, "devices": ["laptop"]},
            ],
        }
    assert all(user["connections"] == 0 for user in await users(url))
    await nobody_is_left(url)


async def test_a_watcher_receives_the_state_then_each_change(url: str) -> None:
    async with listening(url, ROOM, of("ops"), query="?presence=1") as watcher:
        ops = {"user": "ops", "connections": 1, "devices": []}
        assert await next_event(watcher) == {"event": "state", "users": [ops]}
        async with listening(url, ROOM, of("1"), query="?device=a"):
            first = {"event": "join", "user": "1", "connections": 1, "devices": ["a"]}
            assert await next_event(watcher) == first
            async with listening(url, ROOM, of("1"), query="?device=b"):
                second = {"event": "update", "user": "1", "connections": 2, "devices": ["a", "b"]}
                assert await next_event(watcher) == second
            third = {"event": "update", "user": "1", "connections": 1, "devices": ["a"]}
            assert await next_event(watcher) == third
        last = {"event": "leave", "user": "1", "connections": 0, "devices": []}
        assert await next_event(watcher) == last
    await nobody_is_left(url)


async def test_reconnect_is_not_a_leave(url: str) -> None:
    async with listening(url, ROOM, of("ops"), query="?presence=1") as watcher:
        await next_event(watcher)
        for _ in range(3):
            async with listening(url, ROOM, of("1")) as ws:
                await frame(ws, "synap.subscribed")
        events = [await next_event(watcher) for _ in range(2)]
        assert [event["event"] for event in events] == ["join", "leave"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2 * GRACE_S):
                await watcher.recv()


async def test_a_second_tab_without_a_name_is_no_event(url: str) -> None:
    async with listening(url, ROOM, of("ops"), query="?presence=1") as watcher:
        await next_event(watcher)
        async with listening(url, ROOM, of("1")), listening(url, ROOM, of("1")) as second:
            await frame(second, "synap.subscribed")
            assert (await next_event(watcher))["event"] == "join"
            assert {"user": "1", "connections": 2, "devices": []} in await users(url)
            async with listening(url, ROOM, of("2")):
                assert (await next_event(watcher))["user"] == "2"


async def test_an_event_stream_receives_it_too(url: str) -> None:
    path = f"{url}/rooms/{ROOM}/events?presence=1"
    async with (
        httpx.AsyncClient(headers=bearer(of("ops"))) as client,
        client.stream("GET", path) as response,
    ):
        lines = response.aiter_lines()
        async for line in lines:
            if line == "event: synap.presence":
                break
        data = json.loads((await anext(lines)).removeprefix("data: "))
        assert data["event"] == "state"


async def test_presence_requires_its_scope_and_the_room(url: str) -> None:
    for credential in (token("1", rooms=(ROOM,)), token("1", scope=SCOPE)):
        response = await ask(url, "GET", f"/rooms/{ROOM}/presence", credential)
        assert response.status_code == 403
        async with listening(url, ROOM, credential, query="?presence=1") as ws:
            assert await closed_with(ws) == 4503
    only = token("1", rooms=(ROOM,), scope="presence")
    assert (await ask(url, "GET", f"/rooms/{ROOM}/presence", only)).status_code == 200
    assert (await ask(url, "GET", f"/rooms/{ROOM}/presence")).status_code == 401
    response = await ask(url, "GET", f"/rooms/{ROOM}/events?presence=1", token("1", rooms=(ROOM,)))
    assert response.status_code == 403
    async with listening(url, ROOM, token("1", rooms=(ROOM,)), query="?presence=0") as ws:
        await frame(ws, "synap.subscribed")


async def test_presence_without_synap_v1_is_refused(url: str) -> None:
    for query in ("?presence=yes", "?presence=1"):
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with listening(url, ROOM, of("1"), v1=False, query=query):
                pass
        assert caught.value.response.status_code == 400


async def test_without_keys_a_user_room_is_that_users(front: Front) -> None:
    async with front(create_app(load_settings())) as url:
        address = url.replace("http", "ws")
        async with (
            websockets.connect(f"{address}/rooms/user_42/subscribe"),
            websockets.connect(f"{address}/rooms/workspace_7/subscribe"),
        ):
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    if found := await users(url, "user_42"):
                        break
                    await asyncio.sleep(0.01)
            assert found == [{"user": "42", "connections": 1, "devices": []}]
            assert await users(url, ROOM) == []


class Recorder:
    """A watcher that keeps the frames and the picture that they give."""

    def __init__(self) -> None:
        self.frames: list[dict[str, Any]] = []

    def send_control(self, frame: ControlFrame) -> None:
        self.frames.append(dict(frame.data))

    @property
    def picture(self) -> dict[str, list[str]]:
        """Each user's devices, as a client would have them."""
        known: dict[str, list[str]] = {}
        for data in self.frames:
            if data["event"] == "state":
                known = {user["user"]: user["devices"] for user in data["users"]}
            elif data["event"] == "leave":
                del known[data["user"]]
            else:
                assert (data["event"] == "join") is (data["user"] not in known)
                known[data["user"]] = data["devices"]
        return known


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


async def test_burst_of_devices_is_one_update() -> None:
    there, watchers = Presence(grace_s=60), [Recorder() for _ in range(45)]
    for watcher in watchers:
        there.watch(ROOM, watcher)
    for n in range(500):
        there.join(ROOM, "1", f"d{n}")
        there.leave(ROOM, "1", f"d{n}")
    await until(lambda: all(len(watcher.frames) > 2 for watcher in watchers))
    await asyncio.sleep(2 * presence.UPDATE_INTERVAL_S)
    for watcher in watchers:
        assert [data["event"] for data in watcher.frames] == ["state", "join", "update"]
    there.close()


async def test_devices_of_a_user_are_bounded_within_the_grace() -> None:
    there, watcher = Presence(grace_s=60), Recorder()
    there.watch(ROOM, watcher)
    for n in range(presence.MAX_DEVICES):
        there.join(ROOM, "1", f"stays{n}")
    for n in range(500):
        there.join(ROOM, "1", f"d{n}")
        there.leave(ROOM, "1", f"d{n}")
    (user,) = there.users(ROOM)
    assert (user["connections"], len(user["devices"])) == (presence.MAX_DEVICES,) * 2
    for n in range(presence.MAX_DEVICES):
        there.leave(ROOM, "1", f"stays{n}")
    for n in range(500):
        there.join(ROOM, "1", f"d{n}")
        there.leave(ROOM, "1", f"d{n}")
    (user,) = there.users(ROOM)
    assert (user["connections"], len(user["devices"])) == (0, presence.MAX_DEVICES)
    there.close()


async def test_all_watchers_converge_to_the_same_state(
    set_waits: SetWaits,
) -> None:
    set_waits(presence_update_interval_s=0.01)
    chance = random.Random(7)
    there, watchers = Presence(grace_s=0.02), [Recorder()]
    connected: list[tuple[str, str]] = []
    there.watch(ROOM, watchers[0])
    for _ in range(400):
        if chance.random() < 0.5 or not connected:
            connected.append((f"u{chance.randrange(5)}", f"d{chance.randrange(4)}"))
            there.join(ROOM, *connected[-1])
        else:
            there.leave(ROOM, *connected.pop(chance.randrange(len(connected))))
        if chance.random() < 0.05:
            watchers.append(Recorder())
            there.watch(ROOM, watchers[-1])
        if chance.random() < 0.2:
            await asyncio.sleep(0.005)
    expected: dict[str, list[str]] = {}
    for user, device in sorted(set(connected)):
        expected.setdefault(user, []).append(device)
    await until(lambda: all(watcher.picture == expected for watcher in watchers))
    there.close()


async def test_many_watchers_are_notified_in_slices() -> None:
    there, watchers = Presence(grace_s=60), [Recorder() for _ in range(1200)]
    for watcher in watchers:
        there.watch(ROOM, watcher)

    def next_event() -> int:
        return sum(len(watcher.frames) == 2 for watcher in watchers)

    there.join(ROOM, "1", None)
    assert 0 < next_event() <= 500, "others have their turn in between"
    await until(lambda: next_event() == len(watchers))
    there.close()


async def test_disconnected_watcher_receives_nothing_and_leaks_nothing() -> None:
    class Ear:
        def __init__(self) -> None:
            self.received: list[ControlFrame] = []

        def send_control(self, frame: ControlFrame) -> None:
            self.received.append(frame)

    there, ear = Presence(grace_s=0), Ear()
    there.watch(ROOM, ear)
    there.unwatch(ROOM, ear)
    assert len(ear.received) == 1
    there.join(ROOM, "1", None)
    there.leave(ROOM, "1", None)
    assert len(ear.received) == 1
    await asyncio.sleep(0.01)
    assert not there._rooms
    assert not there._leaving
    there.watch(ROOM, ear)
    there.join(ROOM, "1", None)
    there.close()
    there.leave(ROOM, "1", None)
    there.unwatch(ROOM, ear)
    assert not there._rooms


def test_grace_period_matches_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert presence.GRACE_S == 5.0


@pytest.mark.parametrize("device", [None, "phone"])
@pytest.mark.parametrize("another", ["1", "2"])
@pytest.mark.parametrize("is_read", [False, True])
async def test_a_lone_user_is_counted_like_others(
    device: str | None, another: str, is_read: bool
) -> None:
    """Alone and unwatched, a user is kept as a text. Another connection must not change the sum."""
    there, watcher = Presence(grace_s=0), Recorder()

    def shown() -> list[tuple[str, int]]:
        known = [(user["user"], user["connections"]) for user in there.users(ROOM)]
        return [(user, connections) for user, connections in known if connections]

    for _ in range(2):  # the second time within the grace period
        there.join(ROOM, "1", None)
        if is_read:
            assert shown() == [("1", 1)]
        there.join(ROOM, another, device)
        assert shown() == ([("1", 2)] if another == "1" else [("1", 1), ("2", 1)])
        there.watch(ROOM, watcher)
        there.leave(ROOM, another, device)
        there.leave(ROOM, "1", None)
        there.unwatch(ROOM, watcher)
    await until(lambda: not there.users(ROOM))
    assert watcher.frames[0]["users"]
    there.close()
