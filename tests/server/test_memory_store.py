"""The store's contract (stores/base.py), on the store in memory."""

from __future__ import annotations

import json
from typing import Any

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Entry, Receipt, Retention
from synap_realtime.server.stores.memory import MemoryStore

USER, REQUEST = Room("user_1"), Room("request_1")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def deliver_to(taken: list[int]) -> Any:
    def deliver(entry: Entry) -> int:
        taken.append(entry.offset)
        return 3

    return deliver


async def publish(store: MemoryStore, id: str, room: Room = USER) -> Receipt:
    return await store.publish(room, id, {"type": "a", "data": {}, "id": id}, lambda _: 0)


async def ids(store: MemoryStore, room: Room, after: Cursor | None = None) -> list[str]:
    page = await store.read(room, after or store.earliest(), 1000)
    return [json.loads(entry.text)["id"] for entry in page.entries]


async def test_what_is_published_is_read_in_order_with_room_and_cursor() -> None:
    store = MemoryStore()
    receipts = [await publish(store, f"n{n}") for n in range(5)]
    assert await ids(store, USER) == ["n0", "n1", "n2", "n3", "n4"]
    assert await ids(store, USER, receipts[2].cursor) == ["n3", "n4"]
    page = await store.read(USER, store.earliest(), 2)
    assert len(page.entries) == 2
    wire = json.loads(page.entries[0].text)
    assert (wire["room"], wire["cursor"]) == (USER, str(receipts[0].cursor))


async def test_the_same_id_is_kept_and_delivered_once_and_answers_with_the_first_result() -> None:
    store, taken = MemoryStore(), list[int]()
    notification = {"type": "a", "data": {}}
    first = await store.publish(USER, "same", notification, deliver_to(taken))
    again = await store.publish(USER, "same", notification, deliver_to(taken))
    elsewhere = await store.publish(REQUEST, "same", notification, deliver_to(taken))
    assert (first.broadcast_count, first.duplicate) == (3, False)
    assert again == Receipt("same", first.cursor, 3, duplicate=True)
    assert not elsewhere.duplicate
    assert len(taken) == 2


async def test_an_id_is_remembered_for_the_window_only() -> None:
    clock = Clock()
    store = MemoryStore(Retention(dedupe_s=300), clock=clock)
    await publish(store, "same")
    clock.now += 299
    assert (await publish(store, "same")).duplicate
    clock.now += 2
    assert not (await publish(store, "same")).duplicate


async def test_the_oldest_go_beyond_the_count_and_their_readers_are_told() -> None:
    store = MemoryStore(Retention(count=3))
    receipts = [await publish(store, f"n{n}") for n in range(5)]
    assert await ids(store, USER) == ["n2", "n3", "n4"]
    lost = await store.read(USER, receipts[0].cursor, 10)
    assert not lost.recovered
    assert len(lost.entries) == 3
    assert (await store.read(USER, receipts[1].cursor, 10)).recovered
    assert (await store.read(USER, store.earliest(), 10)).recovered


async def test_a_requests_room_forgets_after_an_hour_and_a_users_after_a_day() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    for room in (USER, REQUEST):
        await publish(store, "n", room)
    clock.now += 3601
    assert await ids(store, REQUEST) == []
    assert await ids(store, USER) == ["n"]
    clock.now += 24 * 3600
    assert await ids(store, USER) == []


async def test_a_position_of_another_log_means_all_that_is_retained() -> None:
    store = MemoryStore()
    await publish(store, "n0")
    for foreign in (Cursor("elsewhere", 1), Cursor(store.head().epoch, 10**9)):
        page = await store.read(USER, foreign, 10)
        assert not page.recovered
        assert len(page.entries) == 1


async def test_rooms_that_hold_nothing_any_more_are_dropped() -> None:
    clock = Clock()
    store = MemoryStore(clock=clock)
    for n in range(5000):
        await publish(store, "n", Room(f"request_{n}"))
    old = store.head()
    clock.now += 3700
    for n in range(3000):
        await publish(store, f"m{n}", Room("request_new"))
    assert len(store._logs) == 1
    # A position from before the drop cannot be told to be complete.
    await publish(store, "back", Room("request_7"))
    page = await store.read(Room("request_7"), Cursor(old.epoch, 8), 10)
    assert not page.recovered
    assert len(page.entries) == 1


async def test_the_received_mark_only_moves_forward() -> None:
    store = MemoryStore()
    assert await store.received_mark(USER) is None
    first, second = [(await publish(store, id)).cursor for id in ("a", "b")]
    assert await store.received_mark(USER) is None
    await store.set_received_mark(USER, second)
    await store.set_received_mark(USER, first)
    assert await store.received_mark(USER) == second
