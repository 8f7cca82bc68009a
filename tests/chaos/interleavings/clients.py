"""Clients of every kind, and what they show."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, ClassVar
from urllib.parse import urlsplit

import httpx
from websockets import Subprotocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from synap_realtime import SubscriptionError, subscribe

RETRY_S = 0.05
SMALL_BUFFER_BYTES = 64 * 1024


class View:
    """What a client shows of a room: the texts and the state of its keys.

    Raises (from :meth:`apply`):
        AssertionError: a piece or a notification is missing, or came twice.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.value = -1
        self.plain = 0
        """The number of the last notification without ``fold``."""
        self.cursor: str | None = None
        self.is_over = False
        self._indexed: dict[str, tuple[str, int]] = {}
        self._replay: list[int] | None = None
        self._resumes = False

    def begin(self) -> None:
        """A connection begins; its replay follows."""
        self._indexed = {}
        self.plain = max([self.plain, *(self._replay or [])])
        self._replay = []
        self._resumes = self.cursor is not None

    def subscribed(self, *, recovered: bool) -> None:
        """The replay is over: nothing may be missing in it, nor before it, if it is complete."""
        numbers, self._replay = self._replay or [], None
        assert numbers == sorted(set(numbers)), numbers
        if recovered and self._resumes:
            numbers.insert(0, self.plain)
        if recovered and numbers:
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
        self.plain = max([self.plain, *numbers])

    def apply(self, wire: dict[str, Any], *, by_index: bool = False) -> None:
        """Apply a notification.

        Args:
            by_index: join pieces by ``data.index``, as a client does that knows no ``fold``.
        """
        self.cursor = wire["cursor"]
        if wire["type"] == "t.end":
            self.is_over = True
        elif wire["type"] == "t.plain":
            self._count(int(wire["id"][1:]))
        elif wire["fold"]["mode"] == "replace":
            self.value = wire["data"]["value"]
        elif by_index:
            self.join_by_index(wire["data"])
        else:
            fold = wire["fold"]
            self.join_by_offset(fold["key"], fold["offset"], wire["data"]["delta"])

    def _count(self, number: int) -> None:
        if self._replay is not None:  # or the client has no control frames
            self._replay.append(number)
        else:
            assert number == self.plain + 1, f"{number} follows {self.plain}"
            self.plain = number

    def join_by_offset(self, key: str, offset: int, piece: str) -> None:
        text = self.texts.get(key, "")
        assert offset <= len(text), f"a gap: {offset} follows {len(text)}"
        self.texts[key] = text[:offset] + piece

    def join_by_index(self, data: dict[str, Any]) -> None:
        key, index = data["key"], data["index"]
        text, expected = self._indexed.get(key, ("", 0))
        if index == 0:
            text, expected = "", 0
        assert index == expected, f"{key}: index {index} follows {expected - 1}"
        self.texts[key] = text + data["delta"]
        self._indexed[key] = (self.texts[key], index + 1)


class Client:
    """A client that connects again whenever its connection ends, and that a test can hold up."""

    resumes: ClassVar[bool] = True
    """Whether a new connection continues after the last cursor; else it begins anew."""

    def __init__(
        self, url: str, rooms: tuple[str, ...], make_view: Callable[[], View] = View
    ) -> None:
        self.url = url
        self.views = {room: make_view() for room in rooms}
        self._make_view = make_view
        self.connections = 0
        self._may_read = asyncio.Event()
        self._may_connect = asyncio.Event()
        self._connection: asyncio.Task[None] | None = None
        self._fault: Exception | None = None
        self._task = asyncio.create_task(self._run())

    @property
    def is_over(self) -> bool:
        if self._fault is not None:
            raise self._fault
        return all(view.is_over for view in self.views.values())

    def shown(self) -> str:
        """Return a summary for a failed test."""
        rooms = (f"{room} at {view.cursor}" for room, view in self.views.items())
        return f"{self.connections} connections, {', '.join(rooms)}"

    def connect(self) -> None:
        self._may_read.set()
        self._may_connect.set()

    def disconnect(self, *, forget: bool) -> None:
        """Drop the connection, as a page that is closed.

        Args:
            forget: the next connection begins anew, as a page that is reloaded.
        """
        self._may_connect.clear()
        if self._connection is not None:
            self._connection.cancel()
        if forget or not self.resumes:
            self.views = {room: self._make_view() for room in self.views}

    def pause(self) -> None:
        """Read nothing more until :meth:`connect`."""
        self._may_read.clear()

    async def until_readable(self) -> None:
        await self._may_read.wait()

    async def close(self) -> None:
        for task in (self._connection, self._task):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def receive(self) -> None:
        """Receive until the connection ends."""
        raise NotImplementedError

    async def _run(self) -> None:
        while True:
            await self._may_connect.wait()
            self.connections += 1
            if not self.resumes:
                self.views = {room: self._make_view() for room in self.views}
            for view in self.views.values():
                view.begin()
            self._connection = asyncio.create_task(self.receive())
            try:
                await asyncio.wait([self._connection])
                if not self._connection.cancelled() and (error := self._connection.exception()):
                    raise error
            except (OSError, WebSocketException, httpx.HTTPError, SubscriptionError, EOFError):
                pass
            except Exception as error:  # noqa: BLE001 - reported where the test waits
                self._fault = error
                return
            await asyncio.sleep(RETRY_S)

    def after_of(self, room: str) -> str:
        return self.views[room].cursor or "earliest"

    @contextlib.asynccontextmanager
    async def _websocket(self, target: str, *protocols: str) -> AsyncIterator[ClientConnection]:
        """Open a connection that the system buffers little of: the server notices a pause."""
        parts = urlsplit(self.url)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        except BaseException:
            sock.close()
            raise
        async with connect(
            f"ws://{parts.netloc}{target}",
            sock=sock,
            subprotocols=[Subprotocol(each) for each in protocols] or None,
            max_size=2 << 20,
            max_queue=1,
            compression=None,
            ping_interval=None,
            close_timeout=0,
        ) as connection:
            yield connection


class V1(Client):
    """A WebSocket with ``synap.v1``, and the text by ``fold.offset``."""

    async def receive(self) -> None:
        ((room, view),) = self.views.items()
        async with self._websocket(
            f"/rooms/{room}/subscribe?after={self.after_of(room)}", "synap.v1"
        ) as connection:
            async for text in connection:
                wire = json.loads(text)
                if wire["type"] == "synap.subscribed":
                    view.subscribed(recovered=wire["data"]["recovered"])
                elif not wire["type"].startswith("synap."):
                    view.apply(wire)
                await self.until_readable()


class Plain(Client):
    """A WebSocket without a subprotocol that begins anew each time; the text by ``data.index``."""

    resumes = False

    async def receive(self) -> None:
        ((room, view),) = self.views.items()
        async with self._websocket(f"/rooms/{room}/subscribe?after=earliest") as connection:
            async for text in connection:
                view.apply(json.loads(text), by_index=True)
                await self.until_readable()


class V2(Client):
    """All rooms on one WebSocket."""

    async def receive(self) -> None:
        async with self._websocket("/subscribe", "synap.v2") as connection:
            for room in self.views:
                await self._subscribe(connection, room)
            async for text in connection:
                wire = json.loads(text)
                if wire["type"] == "synap.subscribed":
                    room = wire["data"]["room"]
                    self.views[room].subscribed(recovered=wire["data"]["recovered"])
                elif wire["type"] == "synap.unsubscribed":  # it was too slow
                    room = wire["data"]["room"]
                    self.views[room].begin()
                    await self._subscribe(connection, room)
                elif wire["type"] == "synap.error":
                    raise AssertionError(wire)
                elif not wire["type"].startswith("synap."):
                    self.views[wire["room"]].apply(wire)
                await self.until_readable()

    async def _subscribe(self, connection: ClientConnection, room: str) -> None:
        action = {"action": "subscribe", "room": room, "after": self.after_of(room)}
        await connection.send(json.dumps(action))


class EventStream(Client):
    """All rooms in one stream of Server-Sent Events, which resumes by ``Last-Event-ID``."""

    def __init__(
        self, url: str, rooms: tuple[str, ...], make_view: Callable[[], View] = View
    ) -> None:
        super().__init__(url, rooms, make_view)
        self._last_id = ""

    def disconnect(self, *, forget: bool) -> None:
        super().disconnect(forget=forget)
        if forget:
            self._last_id = ""

    async def receive(self) -> None:
        position = {"Last-Event-ID": self._last_id} if self._last_id else {}
        params = {"room": list(self.views), "after": "earliest"}
        fields: dict[str, str] = {}
        async with (
            httpx.AsyncClient(timeout=None, trust_env=False) as http,  # noqa: S113
            http.stream("GET", f"{self.url}/events", params=params, headers=position) as stream,
        ):
            async for line in stream.aiter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                    continue
                if "data" in fields and "event" not in fields:
                    wire = json.loads(fields["data"])
                    self.views[wire["room"]].apply(wire)
                self._last_id = fields.get("id", self._last_id)  # only of a complete event
                fields = {}
                await self.until_readable()


class Sdk(Client):
    """``subscribe`` of the Python SDK, which reconnects by itself."""

    async def receive(self) -> None:
        after = {room: self.after_of(room) for room in self.views}
        rooms = list(self.views)
        async with aclosing(
            subscribe(rooms, self.url, after=after, max_reconnects=None, on_gap=self._on_gap)
        ) as notifications:
            async for notification in notifications:
                assert notification.room is not None
                self.views[notification.room].apply(notification.to_wire())
                await self.until_readable()

    def _on_gap(self, room: str) -> None:
        """Its notifications came before."""


KINDS: tuple[type[Client], ...] = (V1, Plain, V2, EventStream, Sdk)
