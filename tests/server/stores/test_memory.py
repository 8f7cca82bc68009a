"""Rules of the memory store alone: one size bound for all rooms."""

from __future__ import annotations

import json
import random
import tracemalloc

import pytest

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores import memory
from synap_realtime.server.stores.base import Publication, Retention
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.folding import write

MEBIBYTE = 1024 * 1024


def notification(room: str, id: str, size: int = 0) -> Publication:
    return Publication(Room(room), id, json.dumps({"type": "a", "data": {"x": "x" * size}}))


async def publish(store: MemoryStore, *publications: Publication) -> None:
    await store.publish(publications)


async def test_over_its_size_drops_the_oldest_of_all_rooms_and_reports_gaps() -> None:
    store = MemoryStore(Retention(max_memory_bytes=MEBIBYTE))
    for number in range(20):
        await publish(store, notification(f"user_{number}", "n", 100_000))
    usage = await store.usage()
    assert usage.bytes <= MEBIBYTE
    assert 5 <= usage.evicted <= 15
    kept = [
        number
        for number in range(20)
        if (await store.read(Room(f"user_{number}"), store.earliest(), 10)).entries
    ]
    assert kept == list(range(20 - len(kept), 20)), "the newest stay"
    await publish(store, notification("user_19", "n", 100_000))
    assert (await store.usage()).evicted == usage.evicted, "an id that is known takes nothing"


async def test_resuming_before_the_dropped_entries_is_not_recovered() -> None:
    store = MemoryStore(Retention(max_memory_bytes=MEBIBYTE))
    room = Room("user_1")
    (first,) = await store.publish([notification(room, "n0")])
    (second,) = await store.publish([notification(room, "n1")])
    assert (await store.read(room, first.cursor, 10)).recovered
    for number in range(12):
        await publish(store, notification("user_2", f"n{number}", 100_000))
    page = await store.read(room, first.cursor, 10)
    assert not page.recovered
    assert not page.entries
    assert (await store.read(room, second.cursor, 10)).recovered, "nothing after it has gone"


async def test_growing_text_is_counted_and_evicted_with_its_key() -> None:
    store = MemoryStore(Retention(max_memory_bytes=MEBIBYTE))
    for number in range(20):
        for piece in range(10):
            room = Room(f"user_{number}")
            await write(store, f"p{piece}", piece="x" * 10_000, room=room, offset=piece * 10_000)
            assert (await store.usage()).bytes <= MEBIBYTE
    assert 5 <= (await store.usage()).evicted <= 15
    for number in range(20):
        room = Room(f"user_{number}")
        is_kept = bool((await store.read(room, store.earliest(), 10)).entries)
        result = await write(store, "next", piece="x", room=room, offset=100_000)
        assert (result.conflict is None) == is_kept
    await store.close()


async def test_accounting_is_exact_after_any_sequence() -> None:
    """Rooms, ids and devices that end by count, age and size leave nothing behind."""
    now = 0.0
    store = MemoryStore(
        Retention(
            count=5,
            max_age_s=50,
            request_max_age_s=20,
            dedupe_window_s=10,
            max_memory_bytes=MEBIBYTE,
        ),
        clock=lambda: now,
    )
    chance = random.Random(7)
    for _ in range(5000):
        now += chance.random()
        kind = chance.choice(("user", "request"))
        room = f"{kind}_{chance.randrange(40)}"
        size = chance.choice((0, 10, 60_000))
        await publish(store, notification(room, f"n{chance.randrange(100)}", size))
        if chance.random() < 0.3:
            await write(
                store,
                f"p{chance.randrange(1000)}",
                chance.choice(("append", "replace")),
                "x" * chance.choice((0, 10, 10_000)),
                key=chance.choice("abc"),
                room=Room(room),
                attempt=chance.choice((0, 0, 0, 0, 1)),
                final=chance.random() < 0.1,
            )
        if chance.random() < 0.2:
            store.register_device(
                Room(room), f"d{chance.randrange(80)}", await store.head(Room(room))
            )
        assert (await store.usage()).bytes <= MEBIBYTE
    assert (await store.usage()).evicted > 0
    now += 31 * 86_400.0
    for _ in range(10):
        store._sweep(now, 1000)
    assert not store._logs
    assert not store._kept
    assert not store._devices
    assert (await store.usage()).bytes == 0
    await store.close()


async def test_id_expires_after_the_dedupe_window() -> None:
    now = 0.0
    store = MemoryStore(Retention(max_age_s=1000, dedupe_window_s=10), clock=lambda: now)
    device, older = Room("user_1"), Room("user_2")
    store.register_device(device, "phone", store.earliest())  # it stays for a month
    await publish(store, notification(older, "older"))
    now = 11.0
    for room in (device, older):
        await publish(store, notification(room, "n"))
    for now in (20.0, 22.0):
        for room in (device, older):
            (receipt,) = await store.publish([notification(room, "n")])
            assert receipt.duplicate == (now < 21), (room, now)
    await store.close()


async def test_notification_expires_before_its_id() -> None:
    now = 0.0
    store = MemoryStore(Retention(max_age_s=10, dedupe_window_s=1000), clock=lambda: now)
    room = Room("user_1")
    await publish(store, notification(room, "first"))
    now = 11.0
    await publish(store, notification(room, "second"))
    for now in (20.0, 22.0):
        page = await store.read(room, store.earliest(), 10)
        assert len(page.entries) == (now < 21), now
    await store.close()


async def test_devices_have_a_bound_over_all_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_DEVICES_IN_ALL", 100)
    store = MemoryStore()
    for number in range(1000):
        room = Room(f"workspace_{number}")
        store.register_device(room, "phone", await store.head(room))
    assert len(store._devices) == 100
    assert await store.get_ack(Room("workspace_999"), "phone") is not None
    assert await store.get_ack(Room("workspace_0"), "phone") is None
    for _ in range(4):
        store._sweep(0.0, 1000)
    assert len(store._logs) == 100
    await store.close()


async def test_accounted_size_is_close_to_the_real_memory() -> None:
    """Within a third: an operator can give it to a machine."""
    for size, rooms in ((0, 5000), (200, 500), (20_000, 50)):
        tracemalloc.start()
        try:
            store = MemoryStore()
            before, _ = tracemalloc.get_traced_memory()
            for number in range(5000):
                await publish(store, notification(f"user_{number % rooms}", f"{number:036}", size))
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        taken = after - before
        counted = (await store.usage()).bytes
        assert 0.66 < counted / taken < 1.5, (size, rooms, counted, taken)
        await store.close()
