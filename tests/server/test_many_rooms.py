"""Connections with many rooms on both fronts, where the wire alone does not show everything.

What the wire shows is checked in tests/conformance/test_many_rooms.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from synap_realtime.protocol.control import MAX_ROOMS, MAX_STREAM_ROOMS
from tests.support.credentials import API_KEY, bearer, token
from tests.support.http_client import ask
from tests.support.polling import until
from tests.support.servers import Front, running_node, serving
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import Valkey, running_valkey
from tests.support.waits import SetWaits

V2 = Subprotocol("synap.v2")


class Peer:
    """A client with many rooms that reads everything it receives, by room.

    Attributes:
        ids: the ids of the notifications of each room.
        frames: the control frames.
    """

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.ids: dict[str, list[str]] = {}
        self.frames: list[dict[str, Any]] = []

    async def act(self, action: str, room: str | None = None, **members: object) -> None:
        message = {"action": action, "room": room, **members}
        given = {name: value for name, value in message.items() if value is not None}
        await self.ws.send(json.dumps(given))

    async def read(self) -> dict[str, Any]:
        async with asyncio.timeout(TIMEOUT_S):
            message: dict[str, Any] = json.loads(await self.ws.recv())
        if message["type"].startswith("synap."):
            self.frames.append(message)
        else:
            self.ids.setdefault(message["room"], []).append(message["id"])
        return message

    async def until(self, *types: str, room: str | None = None) -> dict[str, Any]:
        """Return the data of the next control frame of these types, of a room if it is given."""
        while True:
            message = await self.read()
            data: dict[str, Any] = message.get("data", {})
            if message["type"] in types and room in (None, data.get("room")):
                return data

    async def subscribe(self, room: str, **members: object) -> None:
        await self.act("subscribe", room, **members)
        await self.until("synap.subscribed", room=room)

    async def until_ids(self, room: str, *ids: str) -> None:
        while self.ids.get(room) != list(ids):
            message = await self.read()
            assert message["type"] != "synap.unsubscribed", message

    async def is_well(self) -> bool:
        """Return whether the connection answers."""
        await self.ws.send("ping")
        async with asyncio.timeout(TIMEOUT_S):
            while await self.ws.recv() != "pong":
                pass
        return True


@contextlib.asynccontextmanager
async def connected(url: str, credential: str | None = None, **more: Any) -> AsyncIterator[Peer]:
    headers = bearer(credential) if credential else None
    async with websockets.connect(
        url.replace("http", "ws") + "/subscribe",
        subprotocols=[V2], additional_headers=headers, max_size=None, **more,
    ) as ws:  # fmt: skip
        yield Peer(ws)


async def publish(url: str, room: str, id: str, size: int = 0, key: str | None = None) -> None:
    note = {"type": "a", "data": {"x": "x" * size}, "id": id}
    answer = await ask(url, "POST", f"/rooms/{room}/broadcast", key, json=note)
    assert answer.status_code == 200, answer.text


# ---- the authorizer


async def test_authorizer_of_one_room_delays_and_ends_no_other(
    front: Front, set_waits: SetWaits
) -> None:
    set_waits(authorizer_timeout_s=5)
    allowed = {"user_1", "user_2", "user_slow"}
    is_checked = asyncio.Event()

    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        if room == "user_slow":
            is_checked.set()
            await asyncio.Event().wait()
        if room == "user_broken":
            raise RuntimeError("the rule has failed")
        return action == "broadcast" or room in allowed

    everything = token(rooms=["*"], scope="subscribe presence")
    async with serving(front, may) as url, connected(url, everything) as peer:
        await peer.act("subscribe", "user_slow")
        await is_checked.wait()
        for room in ("user_broken", "user_3"):
            await peer.act("subscribe", room)
            error = await peer.until("synap.error", room=room)
            assert error["code"] == "forbidden"
            assert "the rule" not in json.dumps(error)
        for room in ("user_1", "user_2"):
            await peer.subscribe(room, presence=True)
        await peer.act("unsubscribe", "user_slow")
        await peer.until("synap.unsubscribed", room="user_slow")
        allowed.remove("user_2")
        await peer.act("authenticate", token=token(rooms=["*"], scope="subscribe presence"))
        ended = await peer.until("synap.unsubscribed", room="user_2")
        assert ended["code"] == 4503
        await publish(url, "user_1", "n1", key=API_KEY)
        await peer.until_ids("user_1", "n1")


async def test_slow_authorizer_denies_its_room(front: Front, set_waits: SetWaits) -> None:
    set_waits(authorizer_timeout_s=0.05)

    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        if room == "user_2":
            await asyncio.Event().wait()
        return True

    async with serving(front, may) as url, connected(url, token(rooms=["*"])) as peer:
        await peer.act("subscribe", "user_2")
        assert (await peer.until("synap.error"))["code"] == "forbidden"
        await peer.subscribe("user_1")
        await peer.subscribe("user_3", token=token(rooms=["*"]))


# ---- hostile messages


@pytest.mark.parametrize(
    "text",
    [
        '{"action":"subscribe","room":"user_1","token":"\\ud800"}',
        '{"action":"authenticate","room":"user_0","token":"\\udfff"}',
        '{"action":"subscribe","room":"user_1","device":"\\ud800"}',
        '{"action":"subscribe","room":"user_\\ud800"}',
        '{"action":"subscribe","room":"user_1","after":"\\ud800-1"}',
        '{"action":"\\ud800","room":"user_1"}',
        '{"action":"ack","room":"user_0","cursor":"a-99999999999999999999"}',
        '{"action":"ack","room":"user_0","cursor":"a-999999999999999999"}',
        '{"action":"subscribe","room":"user_1","after":"a-999999999999999999","room":7}',
        '{"action":"subscribe","room":{"room":"user_1"}}',
        '{"action":{"action":"subscribe"},"room":"user_1"}',
        '{"action":"subscribe","room":"user_1","presence":1e999}',
        '{"action":"unsubscribe","room":["user_0"]}',
        "[" * 6000 + "]" * 6000,
        '{"action":"subscribe","a":' + "[" * 5000,
        '{"action":' + "9" * 5000 + "}",
        "NaN", "null", "", " ", "PING", "ping ", "\x00", "\ufeff{}",
    ],
)  # fmt: skip
async def test_hostile_message_harms_no_room(front: Front, text: str) -> None:
    """It is answered, or has no effect; nothing is logged as a fault of the server."""
    async with serving(front) as url, connected(url, token(rooms=["*"])) as peer:
        await peer.subscribe("user_0")
        await peer.ws.send(text)
        await peer.act("unsubscribe", "user_9")
        while (frame := await peer.read())["data"].get("room") != "user_9":
            assert frame["type"] in ("synap.error", "synap.unsubscribed"), frame
            assert frame["data"].get("room") in (None, "user_0", "user_1")
        if "authenticate" in text:
            assert (await peer.until("synap.unsubscribed", room="user_0"))["code"] == 4501
        elif not any(frame["type"] == "synap.unsubscribed" for frame in peer.frames):
            await publish(url, "user_0", "n1", key=API_KEY)
            await peer.until_ids("user_0", "n1")
        for room in ("user_1", "user_2"):  # the room of the message is free
            await peer.subscribe(room)


@pytest.mark.parametrize("message", [b"{}", "x" * (12 * 1024 + 1), "é" * 6200])
async def test_message_that_closes_the_connection(front: Front, message: str | bytes) -> None:
    async with serving(front) as url, connected(url, token(rooms=["*"])) as peer:
        await peer.subscribe("user_0")
        await peer.ws.send(message)
        async with asyncio.timeout(TIMEOUT_S):
            await peer.ws.wait_closed()
        assert peer.ws.close_code == 4540
        await until(lambda: has_connections(url, "user_0", 0))


async def has_connections(url: str, room: str, count: int) -> bool:
    answer = await ask(url, "GET", f"/rooms/{room}/health", token(rooms=["*"]))
    assert answer.status_code == 200, answer.text
    return bool(answer.json()["connections"] == count)


async def test_actions_in_one_burst(front: Front) -> None:
    """Each is answered, in the end with the state that the last ones describe."""
    async with serving(front, client_messages_per_s=1000, requests_per_s=1000) as url:
        async with connected(url, token(rooms=["*"])) as peer:
            for number in range(MAX_ROOMS):
                for action in ("subscribe", "unsubscribe", "subscribe"):
                    await peer.act(action, f"user_{number}")
            await peer.act("subscribe", "user_one_more")
            error = await peer.until("synap.error", room="user_one_more")
            assert error["code"] == "too_many_rooms"
            while len(subscribed_rooms(peer)) < MAX_ROOMS:
                await peer.read()
            await publish(url, f"user_{MAX_ROOMS - 1}", "n1", key=API_KEY)
            await peer.until_ids(f"user_{MAX_ROOMS - 1}", "n1")
            errors = [f for f in peer.frames if f["type"] == "synap.error"]
            assert len(errors) == 1
        await until(lambda: has_connections(url, "user_5", 0))


def subscribed_rooms(peer: Peer) -> set[str]:
    """Return the rooms whose last frame says that they are subscribed."""
    last = {frame["data"].get("room"): frame["type"] for frame in peer.frames}
    return {room for room, type in last.items() if type == "synap.subscribed"}


async def test_too_many_actions_close_their_connection_only(front: Front) -> None:
    async with (
        serving(front, client_messages_per_s=20) as url,
        connected(url, token(rooms=["*"])) as peer,
        connected(url, token("2", rooms=["*"])) as other,
    ):
        await other.subscribe("user_1")
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                for _ in range(10):
                    await peer.act("ack", "user_1", cursor="a-1")
                await peer.read()
        assert peer.ws.close_code == 4029
        assert await other.is_well()


# ---- many rooms, presence, slow peers


async def test_presence_of_many_rooms(front: Front) -> None:
    rooms = [f"workspace_{number}" for number in range(40)]
    everything: dict[str, Any] = {"rooms": ["*"], "scope": "subscribe presence"}
    async with serving(front) as url, connected(url, token("2", **everything)) as watcher:
        for room in rooms:
            await watcher.subscribe(room, presence=True)
        async with connected(url, token("1", **everything)) as peer:
            for room in rooms:
                await peer.subscribe(room, device="laptop")
            joined: set[str] = set()
            while joined < set(rooms):
                data = await watcher.until("synap.presence")
                if data["event"] == "join" and data["user"] == "1":
                    joined.add(data["room"])
            answer = await ask(url, "GET", f"/rooms/{rooms[7]}/presence", token(**everything))
            assert {each["user"] for each in answer.json()["users"]} == {"1", "2"}


async def test_128_rooms_of_a_peer_that_does_not_read(front: Front) -> None:
    """No room ends, and none has a gap, while all of them together are below 1 MiB."""
    rooms = [f"user_{number}" for number in range(MAX_ROOMS)]
    async with (
        serving(front, client_messages_per_s=1000, requests_per_s=1000) as url,
        connected(url, token(rooms=["*"]), max_queue=None) as peer,
        connected(url, token("2", rooms=["*"])) as other,
    ):
        for room in rooms:
            await peer.subscribe(room)
        await other.subscribe(rooms[0])
        peer.ws.transport.pause_reading()
        for number in range(3):
            for room in rooms:
                await publish(url, room, f"n{number}", size=2_000, key=API_KEY)
            await other.until_ids(rooms[0], *(f"n{n}" for n in range(number + 1)))
        peer.ws.transport.resume_reading()
        for room in rooms:
            await peer.until_ids(room, "n0", "n1", "n2")
        assert all(frame["type"] == "synap.subscribed" for frame in peer.frames)


async def test_stalled_stream_of_many_rooms_is_closed(front: Front, set_waits: SetWaits) -> None:
    """Whoever reads on receives everything from the position of the last event."""
    set_waits(slow_consumer_timeout_s=0.5)
    rooms = [f"user_{number}" for number in range(MAX_STREAM_ROOMS)]
    query = "&".join(f"room={room}" for room in rooms)
    async with serving(front) as url:
        host, port = url.removeprefix("http://").split(":")
        _reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        head = f"GET /events?{query} HTTP/1.1\r\nHost: x\r\n"
        credential = token(rooms=["*"])
        writer.write(f"{head}Authorization: Bearer {credential}\r\n\r\n".encode())
        await until(lambda: has_connections(url, rooms[-1], 1))
        number = 0
        while not await has_connections(url, rooms[0], 0):
            await publish(url, rooms[number % 24], f"n{number}", size=100_000, key=API_KEY)
            number += 1
            assert number < 1000, "it was not closed"
        writer.close()
        metrics = (await ask(url, "GET", "/metrics", API_KEY)).text
        assert "internal_errors_total 0.0" in metrics or "internal_errors" not in metrics
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(f"{url}/rooms/{rooms[1]}/history", headers=bearer(credential))
        assert len(answer.json()["notifications"]) >= number // 24


# ---- several nodes


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running_valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


async def test_token_of_a_room_is_revoked_on_another_node(valkey: Valkey) -> None:
    room_token = token(rooms=["request_2"])
    async with (
        running_node(valkey.url) as one,
        running_node(valkey.url) as two,
        connected(one, token()) as peer,
    ):
        await peer.subscribe("user_1")
        await peer.subscribe("request_2", token=room_token)
        admin = token(None, scope="admin")
        answer = await ask(two, "POST", "/revoke", admin, json={"token": room_token})
        assert answer.status_code == 200, answer.text
        ended = await peer.until("synap.unsubscribed")
        assert (ended["room"], ended["code"]) == ("request_2", 4504)
        await publish(two, "user_1", "n1", key=API_KEY)
        await peer.until_ids("user_1", "n1")
        await peer.act("subscribe", "request_2", token=room_token)
        assert (await peer.until("synap.error"))["code"] == "unauthorized"
