"""Sends bad input, and looks whether the server keeps serving."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

import httpx
import websockets
from websockets.typing import Subprotocol

from tests.support.raw_http import http
from tests.support.timeouts import TIMEOUT_S

NOTE = {"type": "note.creation.completed", "data": {"entityId": "e1"}}

BODY = json.dumps(NOTE).encode()

HANDSHAKE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


async def require_alive(url: str, case: object) -> None:
    """A health check, and a notification that reaches a subscriber."""
    room = f"{url}/rooms/request_alive"
    async with httpx.AsyncClient() as client, asyncio.timeout(TIMEOUT_S):
        assert (await client.get(f"{url}/health")).status_code == 200, case
        address = room.replace("http", "ws") + "/subscribe?after=latest"
        async with websockets.connect(address, subprotocols=[Subprotocol("synap.v1")]) as ws:
            # A pong says nothing about the subscription: the store may still look for the latest.
            assert json.loads(await ws.recv())["type"] == "synap.subscribed", case
            await ws.send("ping")
            assert await ws.recv() == "pong", case
            receipt = (await client.post(f"{room}/broadcast", json=NOTE)).json()
            assert json.loads(await ws.recv())["id"] == receipt["id"], case


def note(**members: Any) -> bytes:
    return json.dumps({**NOTE, **members}).encode()


async def answer(url: str, sent: bytes) -> tuple[bytes, bytes]:
    """The head and the body of the first answer; both empty if the server only hung up."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            while head.startswith(b"HTTP/1.1 100 "):
                head = await reader.readuntil(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
            return head, b"" if sent.startswith(b"HEAD") else await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return b"", b""
    finally:
        writer.transport.abort()


POST = b"POST /rooms/user_1/broadcast"
SUBSCRIBE = b"GET /rooms/user_1/subscribe"
UPGRADE = HANDSHAKE.rstrip().split(b"\r\n")


async def spoken(url: str, sent: bytes, until: bytes) -> bytes:
    """What the server says in a WebSocket up to ``until``."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            writer.write(http(SUBSCRIBE, *UPGRADE))
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(sent)
            return await reader.readuntil(until)
    finally:
        writer.transport.abort()
