"""Subscribing over a WebSocket, as a page does."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

from tests.support.credentials import ORIGIN
from tests.support.timeouts import TIMEOUT_S


@contextlib.asynccontextmanager
async def listening(
    url: str, room: str, credential: str | None = None, *, v1: bool = True, query: str = ""
) -> AsyncIterator[ClientConnection]:
    names = (["synap.v1"] if v1 else []) + ([f"bearer.{credential}"] if credential else [])
    address = f"{url.replace('http', 'ws')}/rooms/{room}/subscribe{query}"
    async with websockets.connect(address, subprotocols=names or None, origin=ORIGIN) as ws:  # type: ignore[arg-type]
        yield ws


async def closed_with(ws: ClientConnection) -> int:
    async with asyncio.timeout(TIMEOUT_S):
        await ws.wait_closed()
    return int(ws.close_code or 0)


async def frame(ws: ClientConnection, type: str) -> dict[str, Any]:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found: dict[str, Any] = json.loads(await ws.recv())
            if found["type"] == type:
                return found
