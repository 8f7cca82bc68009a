"""The store's contract (stores/base.py), on every store."""

from __future__ import annotations

import asyncio
import json

import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import (
    MAX_DEVICES,
    DeliveryHandler,
    Entry,
    Publication,
    PublishResult,
    Store,
)
from tests.support.polling import until_ready
from tests.support.stores import ids, publication, publish
from tests.support.timeouts import TIMEOUT_S

from .conftest import Clock, OpenStore

USER, REQUEST = Room("user_1"), Room("request_1")


class Listeners:
    """Takes deliveries; says that each reached three connections."""

    def __init__(self) -> None:
        self.taken: list[tuple[Room, Entry]] = []
        self.published_at: list[float | None] = []

    def __call__(self, room: Room, entry: Entry, published_at: float | None) -> int:
        self.taken.append((room, entry))
        self.published_at.append(published_at)
        return 3

    def offsets(self, room: Room = USER) -> list[int]:
        return [entry.cursor.offset for where, entry in self.taken if where == room]


async def listen(store: Store, deliver: DeliveryHandler, *rooms: Room) -> None:
    """Subscribe three connections to each room."""
    store.subscribe(deliver)
    for room in rooms or (USER, REQUEST):
        for _ in range(3):
            await store.join(room)


async def test_reads_publishes_in_order_with_room_and_cursor(
    open_store: OpenStore,
) -> None:
    store = open_store()
    receipts = [await publish(store, f"n{n}") for n in range(5)]
    assert await ids(store, USER) == ["n0", "n1", "n2", "n3", "n4"]
    assert await ids(store, USER, receipts[2].cursor) == ["n3", "n4"]
    page = await store.read(USER, store.earliest(), 2)
    assert len(page.entries) == 2
    wire = json.loads(page.entries[0].text)
    assert (wire["room"], wire["cursor"]) == (USER, str(receipts[0].cursor))
    assert page.entries[0].size == len(page.entries[0].text.encode())


async def test_batch_returns_a_result_for_each(open_store: OpenStore) -> None:
    store, listeners = open_store(), Listeners()
    await listen(store, listeners)
    publications = [publication(f"n{n}", room) for n in range(300) for room in (USER, REQUEST)]
    receipts = await store.publish([*publications, publications[0]])
    assert [receipt.id for receipt in receipts[:-1]] == [each.id for each in publications]
    assert receipts[-1] == PublishResult("n0", receipts[0].cursor, 3, duplicate=True)
    for room in (USER, REQUEST):
        assert listeners.offsets(room) == sorted(listeners.offsets(room))
        assert len(listeners.offsets(room)) == 300
    assert await ids(store, REQUEST) == [f"n{n}" for n in range(300)]


async def test_batch_has_the_same_result_as_single_publishes(open_store: OpenStore) -> None:
    """Rooms that overflow, ids that come again, near and far."""
    rooms = [Room(f"user_{n}") for n in (1, 1, 1, 2, 3)]
    publications = [
        publication(f"n{n if n % 7 else n // 3}", rooms[n % len(rooms)]) for n in range(300)
    ]
    together, alone = open_store(count=50), open_store(count=50)
    for store in (together, alone):
        await listen(store, Listeners(), *rooms)
    batched = await together.publish(publications[:10])
    batched = [*batched, *await together.publish(publications[10:])]
    one_by_one = [(await alone.publish([each]))[0] for each in publications]
    for receipts in (batched, one_by_one):
        stored = [
            (each.room, receipt.cursor)
            for each, receipt in zip(publications, receipts, strict=True)
            if not receipt.duplicate
        ]
        assert len(set(stored)) == len(stored)
    assert [(r.id, r.broadcast_count, r.duplicate) for r in batched] == [
        (r.id, r.broadcast_count, r.duplicate) for r in one_by_one
    ]
    assert any(receipt.duplicate for receipt in batched)
    for room in set(rooms):
        kept = await ids(together, room)
        assert kept == await ids(alone, room)
        assert len(kept) <= 50


async def test_the_order_of_delivery_is_the_order_of_the_log(open_store: OpenStore) -> None:
    store, listeners = open_store(), Listeners()
    await listen(store, listeners)
    await asyncio.gather(*(store.publish([publication(f"n{n}")]) for n in range(200)))
    page = await store.read(USER, store.earliest(), 1000)
    assert [entry for _, entry in listeners.taken] == list(page.entries)


async def test_delivery_says_when_the_publish_arrived(open_store: OpenStore) -> None:
    store, listeners = open_store(), Listeners()
    await listen(store, listeners)
    measured = publication("n1")._replace(published_at=7.5)
    await store.publish([measured, publication("n2")])
    assert listeners.published_at == [7.5, None]


async def test_delivered_notification_is_in_the_log(open_store: OpenStore) -> None:
    store = open_store()
    asked: list[asyncio.Task[list[str]]] = []

    def deliver(room: Room, _entry: Entry, _published_at: float | None) -> int:
        asked.append(asyncio.create_task(ids(store, room)))
        return 1

    await listen(store, deliver)
    await store.publish([publication("n1")])
    assert await asked[0] == ["n1"]


async def test_the_same_id_is_kept_and_delivered_once_and_answers_with_the_first_result(
    open_store: OpenStore,
) -> None:
    store, listeners = open_store(), Listeners()
    await listen(store, listeners)
    (first,) = await store.publish([publication("same")])
    (again,) = await store.publish([publication("same")])
    (elsewhere,) = await store.publish([publication("same", REQUEST)])
    assert (first.broadcast_count, first.duplicate) == (3, False)
    assert again == PublishResult("same", first.cursor, 3, duplicate=True)
    assert not elsewhere.duplicate
    assert len(listeners.taken) == 2


async def test_one_of_many_concurrent_duplicates_is_the_first(open_store: OpenStore) -> None:
    store, listeners = open_store(), Listeners()
    await listen(store, listeners)
    calls = (store.publish([publication("same")]) for _ in range(50))
    receipts = [receipt for (receipt,) in await asyncio.gather(*calls)]
    assert [receipt.duplicate for receipt in receipts].count(False) == 1
    assert len({(receipt.cursor, receipt.broadcast_count) for receipt in receipts}) == 1
    assert len(listeners.taken) == 1


async def test_an_id_is_remembered_for_the_window_only(open_store: OpenStore, clock: Clock) -> None:
    store = open_store(dedupe_window_s=300)
    await publish(store, "same")
    clock.now += 299
    assert (await publish(store, "same")).duplicate
    clock.now += 2
    assert not (await publish(store, "same")).duplicate
    assert (await publish(store, "same")).duplicate


async def test_id_outlives_its_notification(
    open_store: OpenStore,
) -> None:
    store = open_store(count=2)
    for n in range(5):
        await publish(store, f"n{n}")
    assert (await publish(store, "n0")).duplicate
    assert await ids(store, USER) == ["n3", "n4"]


async def test_drops_the_oldest_over_the_count_and_reports_the_gap(
    open_store: OpenStore,
) -> None:
    store = open_store(count=3)
    receipts = [await publish(store, f"n{n}") for n in range(5)]
    assert await ids(store, USER) == ["n2", "n3", "n4"]
    lost = await store.read(USER, receipts[0].cursor, 10)
    assert not lost.recovered
    assert len(lost.entries) == 3
    assert (await store.read(USER, receipts[1].cursor, 10)).recovered
    assert (await store.read(USER, store.earliest(), 10)).recovered


async def test_a_requests_room_forgets_after_an_hour_and_a_users_after_a_day(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store()
    first = await publish(store, "n", USER)
    await publish(store, "n", REQUEST)
    clock.now += 3601
    assert await ids(store, REQUEST) == []
    assert await ids(store, USER) == ["n"]
    await publish(store, "m", USER)
    clock.now += 24 * 3600 - 3600
    assert await ids(store, USER) == ["m"]
    assert (await store.read(USER, first.cursor, 10)).recovered, "it was received"
    clock.now += 3601
    page = await store.read(USER, first.cursor, 10)
    assert (list(page.entries), page.recovered) == ([], False)


async def test_a_position_of_another_log_means_all_that_is_retained(open_store: OpenStore) -> None:
    store = open_store()
    receipt = await publish(store, "n0")
    for foreign in (Cursor("elsewhere", 1), Cursor(receipt.cursor.epoch, 10**17)):
        page = await store.read(USER, foreign, 10)
        assert not page.recovered
        assert len(page.entries) == 1
        assert not (await store.read(REQUEST, foreign, 10)).recovered


async def test_the_head_is_a_position_after_everything_and_never_the_beginning(
    open_store: OpenStore,
) -> None:
    store = open_store(count=2)
    empty = await store.head(USER)
    assert empty.offset > 0
    assert (await store.read(USER, empty, 10)).recovered
    for n in range(5):
        await publish(store, f"n{n}")
    assert not (await store.read(USER, empty, 10)).recovered, "what came since is gone in part"
    assert await ids(store, USER, await store.head(USER)) == []


async def test_an_empty_room_is_no_error(open_store: OpenStore) -> None:
    store = open_store()
    page = await store.read(USER, store.earliest(), 10)
    assert (list(page.entries), page.recovered) == ([], True)
    assert await store.get_ack(USER) is None
    store.ack(USER, await store.head(USER))
    await until_ready(store)


async def test_empty_rooms_are_dropped(open_store: OpenStore, clock: Clock) -> None:
    store = open_store()
    await store.publish([publication("n", Room(f"request_{n}")) for n in range(5000)])
    old = await store.head(USER)
    clock.now += 3700
    for start in range(0, 4000, 500):
        await store.publish(
            [publication(f"m{n}", Room("request_new")) for n in range(start, start + 500)],
        )
    # A position from before the drop cannot be reported as recovered.
    await publish(store, "back", Room("request_7"))
    page = await store.read(Room("request_7"), Cursor(old.epoch, 8), 10)
    assert not page.recovered
    assert len(page.entries) == 1


async def test_dropping_request_rooms_reports_no_gap_in_an_idle_user_room(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store()
    await publish(store, "r1", Room("request_1"))
    quiet = await store.head(USER)
    for n in range(2, 20):
        await publish(store, f"r{n}", Room(f"request_{n}"))
    clock.now += 3 * 3600
    for n in range(20, 40):
        await publish(store, f"r{n}", Room(f"request_{n}"))
    assert (await store.read(USER, quiet, 10)).recovered
    await publish(store, "n1")
    page = await store.read(USER, quiet, 10)
    assert (len(page.entries), page.recovered) == (1, True)


async def test_acknowledged_cursor_only_moves_forward(open_store: OpenStore) -> None:
    store = open_store()
    assert await store.get_ack(USER) is None
    first, second = [(await publish(store, id)).cursor for id in ("a", "b")]
    assert await store.get_ack(USER) is None
    store.ack(USER, second)
    store.ack(USER, first)
    assert await store.get_ack(USER) == second
    store.ack(USER, Cursor("elsewhere", 10**9))
    assert await store.get_ack(USER) == second
    assert await store.get_ack(REQUEST) is None


async def test_cancelled_publish_is_stored(open_store: OpenStore) -> None:
    store, listeners = open_store(), Listeners()
    await listen(store, listeners)
    task = asyncio.create_task(store.publish([publication("n1")]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await publish(store, "n2")
    assert await ids(store, USER) == ["n1", "n2"]
    delivered = [json.loads(entry.text)["id"] for _, entry in listeners.taken]
    assert delivered == ["n1", "n2"]


async def test_each_device_has_its_own_acknowledged_cursor(open_store: OpenStore) -> None:
    store = open_store()
    store.register_device(USER, "phone", store.earliest())
    note = Publication(USER, "d1", '{"id":"d1"}')
    ((first,), (second,)) = (
        await store.publish([note]),
        await store.publish([Publication(USER, "d2", '{"id":"d2"}')]),
    )
    store.ack(USER, second.cursor, "tab")
    store.ack(USER, first.cursor, "tab")
    assert await store.get_ack(USER, "tab") == second.cursor
    assert await store.get_ack(USER, "phone") == store.earliest(), "it has taken nothing yet"
    assert await store.get_ack(USER) == second.cursor, "the furthest of all"
    assert await store.get_ack(USER, "new") == second.cursor, "a new one starts there"
    store.ack(USER, first.cursor, "phone")
    assert await store.get_ack(USER, "phone") == first.cursor
    assert await store.get_ack(USER) == second.cursor
    store.register_device(USER, "tv", Cursor("elsewhere", 10**9))
    assert await store.get_ack(USER, "tv") == second.cursor, "another log's position is none"


@pytest.mark.parametrize("backwards", [False, True])
async def test_room_keeps_its_most_recent_devices(open_store: OpenStore, backwards: bool) -> None:
    """By when they came, and not by their names, also where many come in the same second."""
    store = open_store()
    receipt = await publish(store, "n0")
    store.ack(USER, receipt.cursor)
    names = [f"d{number:02}" for number in range(MAX_DEVICES + 6)]
    if backwards:
        names.reverse()
    for name in names:
        store.register_device(USER, name, store.earliest())
    returned = names.pop(0)
    store.register_device(USER, returned, store.earliest())
    names.append(returned)
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            if await store.get_ack(USER, names[0]) != store.earliest():
                break
            await asyncio.sleep(0.05)  # a store on disk forgets them with its next upkeep
    known = [name for name in names if await store.get_ack(USER, name) == store.earliest()]
    assert known == names[-MAX_DEVICES:]


async def test_control_rooms_are_exempt_from_retention(open_store: OpenStore, clock: Clock) -> None:
    """A revocation outlives the count, the age and the memory budget of other rooms."""
    control = Room("synap_revocations")
    store = open_store(
        count=1, max_age_s=10, request_max_age_s=10, max_memory_bytes=50_000, control_age_s=1000
    )
    for n in range(20):
        await publish(store, f"c{n}", control)
        clock.now += 1
    for n in range(200):
        await publish(store, f"n{n}", Room(f"user_{n}"))
    clock.now += 900
    await publish(store, "late", USER)
    assert await ids(store, control) == [f"c{n}" for n in range(20)]
    clock.now += 200
    await publish(store, "later", USER)
    assert await ids(store, control) == []


async def test_control_room_is_bounded_by_its_own_count(open_store: OpenStore) -> None:
    control = Room("synap_revocations")
    store = open_store(count=1, control_count=3)
    for n in range(5):
        await publish(store, f"c{n}", control)
    assert await ids(store, control) == ["c2", "c3", "c4"]
