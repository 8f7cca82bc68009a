"""Clients of a room server that read when a test calls for it, and the server's fan-out groups."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

from synap_realtime.protocol.rooms import Room
from synap_realtime.server import RoomServer, create_app
from synap_realtime.server.config import ServerSettings, load_settings
from synap_realtime.server.rooms.hub import FanoutGroup, Hub
from synap_realtime.server.serve import running_server
from synap_realtime.server.stores.base import Publication
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.timeouts import TIMEOUT_S

ROOM, OTHER = Room("workspace_1"), Room("workspace_2")
MANY = 20  # more than fan.FEWEST


def settings_of(**given: Any) -> ServerSettings:
    limits = ("connections_per_room", "connections_per_address", "connections_per_user")
    return load_settings(**{f"max_{name}": 0 for name in limits}, new_connections_per_s=0, **given)


class Server:
    """A room server, and what a publish to it does, without HTTP."""

    def __init__(self, app: RoomServer, url: str) -> None:
        self.app = app
        parts = urlsplit(url)
        self.address = (str(parts.hostname), int(parts.port or 0))
        self.store = app.node._store
        self.hub: Hub = app.node.sessions._hub
        self.published: dict[Room, list[str]] = {}
        self._count = 0

    async def publish(self, room: Room = ROOM, size: int = 0) -> int:
        """How many took it; nothing else has run meanwhile."""
        self._count += 1
        id = f"{room}.{self._count}"
        self.published.setdefault(room, []).append(id)
        assert self._count < 2000, "what a test waits for does not come"
        text = json.dumps({"id": id, "type": "a", "data": {"x": "x" * size}})
        (receipt,) = await self.store.publish([Publication(room, id, text)])
        return receipt.broadcast_count

    def group(self, room: Room = ROOM) -> FanoutGroup | None:
        return getattr(self.hub._rooms.get(room), "group", None)

    def together(self, room: Room = ROOM) -> int:
        group = self.group(room)
        return 0 if group is None else len(group)

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not is_so():  # noqa: ASYNC110 - the server says so to nobody
                await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def serving(
    settings: ServerSettings, store: MemoryStore | None = None
) -> AsyncIterator[Server]:
    app = create_app(settings, store)
    async with running_server(app) as url:
        yield Server(app, url)


class Client:
    """A client that reads only when the test calls for it.

    Attributes:
        ids: of the notifications that came, in order; control: the other frames' texts, each with
            how many notifications came before.
    """

    def __init__(self, sock: socket.socket, room: Room) -> None:
        self.socket = sock
        self.room = room
        self.ids: list[str] = []
        self.control: list[tuple[int, Any]] = []
        self.close_code: int | None = None
        self.has_ended = False
        self._rest = b""
        self._loop = asyncio.get_running_loop()

    async def say(self, data: bytes) -> None:
        await self._loop.sock_sendall(self.socket, data)

    async def read(self) -> None:
        """What comes next, whole frames of it."""
        async with asyncio.timeout(TIMEOUT_S):
            data = await self._loop.sock_recv(self.socket, 1 << 18)
        if not data:
            assert not self._rest, "half a frame"
            self.has_ended = True
        self.feed(data)

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        while (end := _end_of(data)) is not None:
            self._take(data[0] & 15, data[end[0] : end[1]])
            data = data[end[1] :]
        self._rest = data

    def _take(self, opcode: int, payload: bytes) -> None:
        assert self.close_code is None, "a frame behind the last one"
        if opcode == 8:
            self.close_code = int.from_bytes(payload[:2], "big")
        elif opcode == 10:
            self.control.append((len(self.ids), payload))
        elif payload == b"pong":
            self.control.append((len(self.ids), "pong"))
        else:
            assert opcode == 1
            wire = json.loads(payload)
            if wire["type"].startswith("synap."):
                self.control.append((len(self.ids), wire))
            else:
                self.ids.append(wire["id"])

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            assert not self.has_ended, (self.ids[-3:], self.close_code)
            await self.read()

    async def until_received(self, ids: list[str]) -> None:
        """These came, and nothing else."""
        await self.until(lambda: len(self.ids) >= len(ids))
        assert self.ids == ids

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.socket.close()


def _end_of(data: bytes) -> tuple[int, int] | None:
    """Where the payload of the first frame begins and ends; None: it is not all there."""
    if len(data) < 2:
        return None
    size, begin = data[1], 2
    if size >= 126:
        begin = 4 if size == 126 else 10
        if len(data) < begin:
            return None
        size = int.from_bytes(data[2:begin], "big")
    return None if len(data) < begin + size else (begin, begin + size)


async def upgraded(
    server: Server, head: bytes, undo: contextlib.ExitStack, receive_bytes: int | None
) -> tuple[socket.socket, bytes]:
    """Open a WebSocket. Return its socket, and what came after the response.

    Args:
        head: the request.
        undo: closes the socket.
        receive_bytes: the size of the receive buffer; None: the system's.
    """
    loop = asyncio.get_running_loop()
    sock = undo.enter_context(socket.socket())
    sock.setblocking(False)
    if receive_bytes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    await loop.sock_connect(sock, server.address)
    await loop.sock_sendall(sock, head)
    got = b""
    while b"\r\n\r\n" not in got:
        got += await loop.sock_recv(sock, 65536)
    answer, _, rest = got.partition(b"\r\n\r\n")
    assert b" 101 " in answer
    return sock, rest


@contextlib.asynccontextmanager
async def listening(
    server: Server,
    count: int = MANY,
    room: Room = ROOM,
    *,
    query: str = "after=latest",
    acknowledges: bool = True,
    receive_bytes: int | None = None,
) -> AsyncIterator[list[Client]]:
    """So many clients that are live."""
    clients = []
    protocol = "Sec-WebSocket-Protocol: synap.v1\r\n" if acknowledges else ""
    head = (
        f"GET /rooms/{room}/subscribe?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"{protocol}Sec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    with contextlib.ExitStack() as undo:
        for _ in range(count):
            sock, rest = await upgraded(server, head, undo, receive_bytes)
            client = Client(sock, room)
            client.feed(rest)
            clients.append(client)
            if acknowledges:
                await client.until(lambda: bool(client.control))  # noqa: B023 - it is awaited here
        yield clients
