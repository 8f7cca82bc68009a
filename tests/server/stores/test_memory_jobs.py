"""The records of jobs in memory: they are counted, bounded and freed."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Retention
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.jobs import lifecycle
from tests.support.polling import until
from tests.support.stores import ids, publication

MEBIBYTE = 1024 * 1024


async def test_records_take_at_most_half_of_the_memory() -> None:
    """Many short jobs cannot push the logs out, and the oldest records go first."""
    now = 0.0
    retention = Retention(max_memory_bytes=MEBIBYTE, request_max_age_s=1, dedupe_window_s=1)
    store = MemoryStore(retention, clock=lambda: now)
    await store.publish([publication("n0", Room("user_9"))])
    for number in range(3000):
        now += 1
        room = Room(f"request_q{number}")
        await store.publish(
            [lifecycle("completed", f"r{number}", request=f"q{number}", room=room, x="x" * 200)]
        )
    usage = await store.usage()
    assert usage.bytes <= MEBIBYTE
    kept = [
        number
        for number in range(3000)
        if (await store.get_job(Room(f"request_q{number}"), f"q{number}")).record is not None
    ]
    assert kept == list(range(3000 - len(kept), 3000)), "the newest stay"
    assert 100 < len(kept) < 500
    assert await ids(store, Room("user_9")) == ["n0"]
    await store.close()


async def test_records_are_counted_as_they_are() -> None:
    store = MemoryStore(Retention(count=1, dedupe_window_s=0.001))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        counted = (await store.usage()).bytes
        for number in range(500):
            room = Room(f"user_{number % 50}")
            result: dict[str, Any] = {"title": "t" * 1000, "parts": ["é"] * 50}
            event = lifecycle("completed", f"r{number}", request=f"q{number}", room=room, **result)
            await store.publish([event])
        taken = tracemalloc.get_traced_memory()[0] - before
        counted = (await store.usage()).bytes - counted
    finally:
        tracemalloc.stop()
        await store.close()
    assert 0.6 < counted / taken < 1.7


async def test_expired_records_are_freed_without_publishes() -> None:
    now = 0.0
    store = MemoryStore(Retention(job_age_s=100), clock=lambda: now)
    await store.publish([lifecycle("completed", request=f"q{number}") for number in range(10)])
    now = 100_000.0
    await until(lambda: _is_empty(store))
    await store.close()


async def _is_empty(store: MemoryStore) -> bool:
    await asyncio.sleep(0)
    return (await store.usage()).bytes == 0
