"""A TCP proxy between client and server that a test can break and restore."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit


class Link:
    """Carries bytes both ways between its clients and one server.

    ::

        async with Link(server_url) as link:
            connect_to(link.url)
            link.cut()

    Attributes:
        url: where clients connect.
        delay_s: each piece waits so long.
        chunk_bytes: the size of the pieces that the server's bytes are carried in.
        websockets: what becomes of a WebSocket's handshake; other requests are carried. A proxy
            that does not support WebSockets refuses them, or swallows what is no HTTP to it.
    """

    def __init__(self, server_url: str) -> None:
        self.move(server_url)
        self.url = ""
        self.delay_s = 0.0
        self.chunk_bytes = 65536
        self.accepted = 0
        self.websockets: Literal["carried", "refused", "swallowed"] = "carried"
        self._refusing = False
        self._budget: int | None = None
        self._pairs: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._connected = asyncio.Condition()

    def move(self, server_url: str) -> None:
        """Lead new connections to another server: the old one has restarted."""
        parts = urlsplit(server_url)
        self._host, self._port = parts.hostname, parts.port

    def refuse(self) -> None:
        """Close every new connection immediately, until :meth:`restore`."""
        self._refusing = True

    def restore(self) -> None:
        """Carry everything again."""
        self._refusing = False
        self._budget = None
        self._open.set()

    def stall(self) -> None:
        """Carry nothing, and close nothing, until :meth:`restore`: a cable that was pulled."""
        self._open.clear()

    def cut(self) -> None:
        """Break every connection now, without a goodbye."""
        for writer in list(self._pairs):
            writer.transport.abort()

    def cut_after(self, count: int) -> None:
        """Break the connections after so many more bytes from the server: amid a frame."""
        self._budget = count

    async def until_accepted(self, count: int) -> None:
        """Wait until so many connections have come in all."""
        async with self._connected:
            await self._connected.wait_for(lambda: self.accepted >= count)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        self.restore()
        self.cut()
        await self._server.wait_closed()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with self._connected:
            self.accepted += 1
            self._connected.notify_all()
        if self._refusing:
            writer.transport.abort()
            return
        head = b""
        if self.websockets != "carried":
            with contextlib.suppress(asyncio.IncompleteReadError):  # opened, and not used
                head = await reader.readuntil(b"\r\n\r\n")
            if b"upgrade: websocket" in head.lower():
                await self._deny(reader, writer)
                return
        async with self._joined(writer) as (up_reader, up_writer), asyncio.TaskGroup() as both:
            up_writer.write(head)
            both.create_task(self._pipe(reader, up_writer, from_server=False))
            both.create_task(self._pipe(up_reader, writer, from_server=True))

    async def _deny(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._pairs.add(writer)
        if self.websockets == "refused":
            writer.write(
                b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            )
        else:
            with contextlib.suppress(OSError):
                await reader.read()  # until the client gives up
        self._pairs.discard(writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    @asynccontextmanager
    async def _joined(
        self, writer: asyncio.StreamWriter
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        up_reader, up_writer = await asyncio.open_connection(self._host, self._port)
        pair = {writer, up_writer}
        self._pairs |= pair
        try:
            yield up_reader, up_writer
        finally:
            self._pairs -= pair
            for end in pair:
                end.close()
                with contextlib.suppress(OSError):
                    await end.wait_closed()

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_server: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(self.chunk_bytes):
                await asyncio.sleep(self.delay_s)
                await self._open.wait()
                if from_server and self._budget is not None:
                    data, rest = data[: self._budget], data[self._budget :]
                    self._budget -= len(data)
                    if rest:
                        self._budget = None
                        writer.write(data)
                        await writer.drain()
                        self.cut()
                        return
                writer.write(data)
                await writer.drain()
        writer.close()
