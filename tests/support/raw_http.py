"""HTTP/1.1 byte by byte: requests as they are on the wire, and a client that sends anything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

BODY = b'{"type":"a","data":{}}'
ROOM = b"/rooms/user_1"
HANDSHAKE = (
    b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)  # fmt: skip
CHUNKED = b"Transfer-Encoding: chunked"


def http(line: bytes, *fields: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return b"\r\n".join([line + b" HTTP/" + version, b"Host: localhost", *fields, b"", body])


def publish(*fields: bytes, room: bytes = ROOM, body: bytes = BODY) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return http(b"POST " + room + b"/broadcast", length, *fields, body=body)


HEALTH = http(b"GET /health")


class Peer:
    """A client that says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, has_body: bool = True) -> tuple[int, dict[str, str], bytes]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:-2])
        }
        body = b""
        if has_body and fields.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        elif has_body:
            body = await self.reader.readexactly(int(fields.get("content-length", "0")))
        return int(lines[0].split()[1]), fields, body

    async def status(self) -> int:
        return (await self.answer())[0]

    async def has_ended(self) -> bool:
        """Waits for the server's end; what it says before is wrong."""
        try:
            return await self.reader.read() == b""
        except ConnectionError:
            return True

    async def resets(self) -> None:
        """A reset, without a goodbye."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def peer(url: str, *, buffer: int | None = None) -> AsyncIterator[Peer]:
    where = urlsplit(url)
    raw = socket.socket()
    if buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, (where.hostname, where.port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=2**20)
    try:
        yield Peer(reader, writer)
    finally:
        writer.transport.abort()


def bearer(credential: str) -> bytes:
    return b"Authorization: Bearer " + credential.encode()
