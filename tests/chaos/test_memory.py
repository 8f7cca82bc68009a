"""The memory of 5,000 short-lived rooms is released."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import tracemalloc
from urllib.parse import urlsplit

import httpx

from synap_realtime.server import create_app
from synap_realtime.server.rooms.subscription import Subscription
from synap_realtime.server.serve import running_server
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.timeouts import TIMEOUT_S

HANDSHAKE = (
    "GET /rooms/{room}/subscribe HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


async def come_and_go(url: str, room: str) -> None:
    """A WebSocket that opens, receives one notification, and vanishes."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    writer.write(HANDSHAKE.format(room=room).encode())
    assert b"101" in await reader.readuntil(b"\r\n\r\n")
    head = await reader.readexactly(4)  # a frame of 126 to 65,535 bytes
    frame = json.loads(await reader.readexactly(int.from_bytes(head[2:])))
    assert frame["room"] == room
    writer.transport.abort()


async def use_rooms(url: str, first: int, count: int) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        for start in range(first, first + count, 100):
            rooms = [f"request_{n}" for n in range(start, start + 100)]
            item = {"rooms": rooms, "type": "a.completed", "data": {"x": "y" * 500}, "id": "same"}
            answer = await client.post("/broadcast", json={"notifications": [item]})
            assert answer.json()["success"]
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.gather(*(come_and_go(url, room) for room in rooms))


async def test_memory_returns_to_its_baseline() -> None:
    days = 0
    store = MemoryStore(clock=lambda: time.monotonic() + days * 86400)

    async def taken() -> int:
        """Traced bytes, a day later, once the rooms have expired and the connections are gone."""
        nonlocal days
        days += 1
        async with asyncio.timeout(TIMEOUT_S):
            while store._logs:  # noqa: ASYNC110 - the store sweeps by itself
                await asyncio.sleep(0.1)
            # In a process with many objects, Python itself seldom collects cycles of the clients.
            gc.collect()
            while any(type(each) is Subscription for each in gc.get_objects()):
                await asyncio.sleep(0.1)
                gc.collect()
        return tracemalloc.get_traced_memory()[0]

    async with running_server(create_app(store=store)) as url:
        tracemalloc.start()
        try:
            await use_rooms(url, 0, 1200)  # what is made once is made now, and caches are full
            before = await taken()
            await use_rooms(url, 2000, 5000)
            held = tracemalloc.get_traced_memory()[1] - before
            after = await taken()
        finally:
            tracemalloc.stop()
    assert held > 300_000, "5,000 rooms cannot weigh nothing"
    # 60 bytes a room; Python's own caches take between 70,000 and 170,000 now and then.
    assert after - before < 300_000, f"{after - before} bytes stayed"
