"""Fan-out groups with connections that are in several of them, over real sockets."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator

import pytest

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.config import ServerSettings
from tests.support.websocket_frames import TEXT, frame

from .conftest import WAYS, Run
from .fanout_clients import MANY, Client, Server, serving, settings_of, upgraded

ROOMS = tuple(Room(f"workspace_{number}") for number in range(3))


@pytest.fixture(params=WAYS)
def settings(request: pytest.FixtureRequest) -> ServerSettings:
    return settings_of(io_uring=request.param != "loop")


class ManyRooms(Client):
    """A client with a connection of many rooms, which reads only when the test calls for it."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, ROOMS[0])
        self.before: dict[Room, int] = {}  # how many a room had published before

    async def act(self, action: str, room: Room) -> None:
        text = json.dumps({"action": action, "room": room, "after": "latest"})
        await self.say(frame(TEXT, text.encode()))

    async def subscribe(self, server: Server, room: Room) -> None:
        count = len(self.control)
        await self.act("subscribe", room)
        await self.until(lambda: len(self.control) > count)
        self.before[room] = len(server.published.get(room, []))

    async def unsubscribe(self, room: Room) -> None:
        count = len(self.control)
        await self.act("unsubscribe", room)
        await self.until(lambda: len(self.control) > count)
        del self.before[room]

    async def until_received_all(self, server: Server) -> None:
        """Everything that was published to the rooms came, in order, and nothing twice."""
        expected = {
            room: server.published.get(room, [])[before:] for room, before in self.before.items()
        }
        wanted = {id for ids in expected.values() for id in ids}
        await self.until(lambda: wanted <= set(self.ids))
        for room, ids in expected.items():
            mine = [id for id in self.ids if id.startswith(f"{room}.")]
            assert mine[len(mine) - len(ids) :] == ids
        assert len(set(self.ids)) == len(self.ids)


@contextlib.asynccontextmanager
async def connected(
    server: Server, count: int, *rooms: Room, receive_bytes: int | None = None
) -> AsyncIterator[list[ManyRooms]]:
    head = (
        b"GET /subscribe HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        b"Sec-WebSocket-Protocol: synap.v2\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    clients = []
    with contextlib.ExitStack() as undo:
        for _ in range(count):
            sock, rest = await upgraded(server, head, undo, receive_bytes)
            client = ManyRooms(sock)
            client.feed(rest)
            for room in rooms:
                await client.subscribe(server, room)
            clients.append(client)
        yield clients


def test_is_a_member_of_the_group_of_each_large_room(run: Run, settings: ServerSettings) -> None:
    async def test() -> None:
        async with (
            serving(settings) as server,
            connected(server, MANY, *ROOMS[:2]) as clients,
            connected(server, 2, *ROOMS),
        ):
            assert [server.together(room) for room in ROOMS] == [MANY + 2, MANY + 2, 0]
            for room in ROOMS[:2]:
                assert await server.publish(room) == MANY + 2
            for client in clients:
                await client.until_received_all(server)
            await clients[0].unsubscribe(ROOMS[0])
            assert [server.together(room) for room in ROOMS] == [MANY + 1, MANY + 2, 0]

    run(test())


def test_slow_connection_leaves_all_groups_and_delays_nobody(
    run: Run, settings: ServerSettings
) -> None:
    async def test() -> None:
        async with (
            serving(settings) as server,
            connected(server, MANY, *ROOMS[:2]) as quick,
            connected(server, 2, *ROOMS[:2], receive_bytes=4096) as slow,
        ):
            while server.together(ROOMS[0]) > MANY:
                assert await server.publish(ROOMS[0], size=60_000) == MANY + 2
                for client in quick:
                    await client.until_received_all(server)
            assert server.together(ROOMS[1]) == MANY, "its socket is blocked"
            for size in (60_000, 10, 60_000):  # these wait
                for room in ROOMS[:2]:
                    assert await server.publish(room, size=size) == MANY + 2
            for client in (*quick, *slow):
                await client.until_received_all(server)
            for room in ROOMS[:2]:
                await server.until(lambda room=room: server.together(room) == MANY + 2)  # type: ignore[misc]
                await server.publish(room)
            for client in (*quick, *slow):
                await client.until_received_all(server)

    run(test())


def test_all_receive_all_in_order_while_rooms_and_connections_come_and_go(
    run: Run, settings: ServerSettings
) -> None:
    rng = random.Random(5)

    async def test() -> None:
        async with serving(settings) as server, contextlib.AsyncExitStack() as undo:
            everyone: list[ManyRooms] = []
            for number in range(400):
                room = rng.choice(ROOMS)
                match rng.choice(
                    ["come", "subscribe", "subscribe", "leave", "go", *["publish"] * 4]
                ):
                    case "come" if len(everyone) < 40:
                        everyone += await undo.enter_async_context(connected(server, 1, room))
                    case "subscribe" if everyone:
                        client = rng.choice(everyone)
                        if room not in client.before:
                            await client.subscribe(server, room)
                    case "leave" if everyone:
                        client = rng.choice(everyone)
                        if room in client.before:
                            await client.until_received_all(server)
                            await client.unsubscribe(room)
                    case "go" if everyone:
                        client = everyone.pop(rng.randrange(len(everyone)))
                        if rng.random() < 0.3:
                            client.reset()
                        else:
                            await client.until_received_all(server)
                            client.socket.close()
                    case _:
                        await server.publish(room, rng.choice([0, 0, 100, 5000]))
                if number % 50 == 49:
                    for client in everyone:
                        await client.until_received_all(server)
            assert max(server.together(room) for room in ROOMS) > 3

    run(test())
