"""The records of jobs on the stores (stores/base.py and PROTOCOL.md, "Job state")."""

from __future__ import annotations

import json
from typing import Any

import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.folding import MAX_ATTEMPT, Mode
from synap_realtime.protocol.job_state import JobRecord
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import (
    MAX_JOBS_BYTES,
    JobPage,
    JobQuery,
    PublishResult,
    Store,
    position_of,
)
from tests.support.folding import write
from tests.support.jobs import REQUEST, jobs_of, lifecycle, report
from tests.support.stores import USER, ids, publish

from .conftest import Clock, OpenStore

MODES: tuple[Mode, ...] = ("append", "replace")


async def job(store: Store, job_id: str = "q1", room: Room = REQUEST) -> JobRecord | None:
    return (await jobs_of(store).get_job(room, job_id)).record


async def known(store: Store, job_id: str = "q1", room: Room = REQUEST) -> JobRecord:
    record = await job(store, job_id, room)
    assert record is not None
    return record


async def list_of(store: Store, room: Room = USER, limit: int = 100, **query: Any) -> JobPage:
    return await jobs_of(store).list_jobs(room, JobQuery(limit, **query))


async def listed(store: Store, room: Room = USER, **query: Any) -> list[str]:
    return [record.job_id for record in (await list_of(store, room, **query)).records]


async def all_of(store: Store, room: Room = USER, limit: int = 100) -> list[JobRecord]:
    """Return the records of all pages."""
    page = await list_of(store, room, limit)
    found = list(page.records)
    while page.more:
        assert len(page.records) <= limit
        page = await list_of(store, room, limit, after=position_of(found[-1]))
        found += page.records
    return found


async def ended(store: Store, *, room: Room = REQUEST, run: str = "r1") -> PublishResult:
    return await report(store, "completed", run, at=50, room=room, title="T")


async def test_record_follows_the_lifecycle(open_store: OpenStore) -> None:
    store = open_store()
    assert await job(store) is None
    await report(store, "started", at=1, attempt=1, maxAttempts=3)
    await report(store, "progress", at=2, attempt=1, progress=0.5, label="é😀")
    assert await known(store) == JobRecord(
        "note.creation", "running", "r1", "u1", "q1", 0.5, "é😀", 1, 3,
        started_at="2026-01-31T12:00:01.000Z", updated_at="2026-01-31T12:00:02.000Z", fence=1,
    )  # fmt: skip
    await report(store, "retrying", at=3, attempt=2, error="Again.")
    assert (await known(store)).status == "retrying"
    await report(store, "started", at=4, attempt=2)
    await report(store, "completed", at=5, title="T", parts=[1, {"a": None}])
    record = await known(store)
    assert (record.status, record.attempt, record.progress) == ("completed", 2, 1.0)
    assert record.result == {"title": "T", "parts": [1, {"a": None}]}
    assert record.ended_at == "2026-01-31T12:00:05.000Z"
    await report(store, "failed", at=6, error="late")
    assert await known(store) == record


async def test_record_of_each_room_is_its_own(open_store: OpenStore) -> None:
    store = open_store()
    await store.publish([lifecycle("started"), lifecycle("started", room=USER)])
    await ended(store)
    assert (await known(store)).status == "completed"
    assert (await known(store, room=USER)).status == "running"
    assert await job(store, room=Room("user_2")) is None


async def test_job_without_a_request_has_the_id_of_its_run(open_store: OpenStore) -> None:
    store = open_store()
    await report(store, "started", "r9", request=None, room=USER)
    record = await known(store, "r9", USER)
    assert (record.run_id, record.request_id) == ("r9", None)


async def test_later_run_of_a_request_begins_its_record_anew(open_store: OpenStore) -> None:
    store = open_store()
    await report(store, "started", at=1)
    await report(store, "failed", at=2, error="x")
    await report(store, "started", "r2", at=9)
    await report(store, "progress", at=10, progress=0.5)
    record = await known(store)
    assert (record.run_id, record.status, record.error) == ("r2", "running", None)
    assert record.started_at == "2026-01-31T12:00:09.000Z"
    assert await listed(store, REQUEST) == ["q1"]


async def test_duplicates_and_conflicts_change_no_record(open_store: OpenStore) -> None:
    store = open_store()
    fold = {"key": "r1:progress", "mode": "replace"}
    await report(store, "progress", id="p1", progress=0.1, fold={**fold, "attempt": 2})
    again = await report(store, "progress", id="p1", progress=0.9)
    assert again.duplicate
    stale = await report(store, "progress", progress=0.9, fold={**fold, "attempt": 1})
    assert stale.conflict is not None
    assert (await known(store)).progress == 0.1


async def test_notification_without_job_changes_no_record(open_store: OpenStore) -> None:
    store = open_store()
    await report(store, "started")
    before = await jobs_of(store).get_job(REQUEST, "q1")
    result = await publish(store, "n1", REQUEST)
    after = await jobs_of(store).get_job(REQUEST, "q1")
    assert after.record == before.record
    assert after.cursor == result.cursor


async def test_events_after_the_cursor_of_a_snapshot_are_what_it_lacks(
    open_store: OpenStore,
) -> None:
    store = open_store()
    empty = await jobs_of(store).get_job(REQUEST, "q1")
    assert (empty.record, empty.cursor.offset > 0) == (None, True)
    await report(store, "started")
    running = await jobs_of(store).get_job(REQUEST, "q1")
    last = await ended(store)
    final = await jobs_of(store).get_job(REQUEST, "q1")
    assert final.cursor == last.cursor
    for cursor, expected in ((empty.cursor, 2), (running.cursor, 1), (final.cursor, 0)):
        page = await store.read(REQUEST, cursor, 10)
        assert page.recovered
        assert len(page.entries) == expected
    assert (await list_of(store, REQUEST)).cursor == last.cursor


async def test_text_of_a_running_job_is_that_of_its_key(open_store: OpenStore) -> None:
    store = open_store()
    await report(store, "started")
    assert (await known(store)).text is None
    for number, piece in enumerate(["aé", "😀", ""]):
        last = await write(store, f"p{number}", piece=piece, key="r1:text", room=REQUEST)
    snapshot = await jobs_of(store).get_job(REQUEST, "q1")
    assert snapshot.record is not None
    assert (snapshot.record.text, snapshot.cursor) == ("aé😀", last.cursor)
    await write(store, "q0", piece="two", key="r1:text", room=REQUEST, attempt=2)
    assert (await known(store)).text == "two"
    assert (await list_of(store, REQUEST)).records[0].text is None
    await report(store, "started", room=USER)
    assert (await known(store, room=USER)).text is None, "another room has other keys"


async def test_text_is_kept_with_the_record_at_the_end_and_outlives_the_log(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store()
    await report(store, "started")
    for number in range(600):
        await write(store, f"p{number}", piece=f"{number} é", key="r1:text", room=REQUEST)
    await ended(store)
    text = "".join(f"{number} é" for number in range(600))
    assert (await known(store)).text == text
    assert (await list_of(store, REQUEST)).records[0].text is None
    clock.now += 2 * 24 * 3600
    assert await ids(store, REQUEST) == []
    record = await known(store)
    assert (record.status, record.text) == ("completed", text)
    page = await list_of(store, REQUEST)
    assert page.records[0].status == "completed"
    later = await publish(store, "later", REQUEST)
    assert later.cursor.offset > page.cursor.offset
    assert [entry.cursor for entry in (await store.read(REQUEST, page.cursor, 10)).entries] == [
        later.cursor
    ]
    assert (await store.read(REQUEST, page.cursor, 10)).recovered


@pytest.mark.parametrize("ending", ["completed", "failed", "cancelled"])
async def test_ending_closes_the_keys_of_its_run_for_good(
    open_store: OpenStore, clock: Clock, ending: str
) -> None:
    store = open_store()
    await write(store, "p0", piece="all", key="r1:text", room=REQUEST, attempt=3)
    await report(store, ending, error="x", room=REQUEST)

    async def refused(key: str, id: str, room: Room = REQUEST, **fold: Any) -> bool:
        for mode in MODES:
            result = await write(store, f"{id}{mode}", mode, key=key, room=room, **fold)
            if result.conflict is None:
                return False
            assert (result.conflict.code, result.conflict.attempt) == ("stale_attempt", MAX_ATTEMPT)
        return True

    for key in ("r1:text", "r1:progress"):
        for attempt in (0, 3, 4, MAX_ATTEMPT):
            assert await refused(key, f"{key}{attempt}", attempt=attempt)
    assert not await refused("r1:other", "o")
    assert not await refused("r2:text", "o2")
    assert not await refused("r1:text", "u", USER)
    clock.now += 24 * 3600
    assert await ids(store, REQUEST) == []
    assert await refused("r1:text", "late"), "the record outlives the log"
    assert (await known(store)).text == "all"


async def test_keys_of_a_run_that_was_superseded_stay_closed(open_store: OpenStore) -> None:
    store = open_store()
    await write(store, "p0", piece="old", key="r1:text", room=REQUEST, attempt=2)
    await report(store, "failed", error="x")
    await report(store, "started", "r2", at=9)
    late = await write(store, "p1", piece="zombie", key="r1:text", room=REQUEST, attempt=2)
    assert late.conflict is not None
    assert late.conflict.code == "stale_attempt"
    assert (await write(store, "p2", piece="new", key="r2:text", room=REQUEST)).conflict is None
    await report(store, "completed", "r2", at=10)
    assert (await known(store)).text == "new"


async def test_ending_of_a_superseded_run_closes_its_keys_only(open_store: OpenStore) -> None:
    store = open_store()
    await report(store, "started")
    await write(store, "p0", piece="old", key="r1:text", room=REQUEST)
    await report(store, "started", "r2", at=9)
    await write(store, "p1", piece="new", key="r2:text", room=REQUEST)
    await report(store, "failed", error="x", at=10)
    late = await write(store, "p2", piece="!", key="r1:text", room=REQUEST)
    assert late.conflict is not None
    assert (await write(store, "p3", piece="!", key="r2:text", room=REQUEST)).conflict is None
    record = await known(store)
    assert (record.run_id, record.status, record.text) == ("r2", "running", "new!")


async def test_ended_keys_leave_room_for_others(open_store: OpenStore) -> None:
    store = open_store()
    for number in range(100):
        for kind, mode in zip(("text", "progress"), MODES, strict=True):
            key = f"r{number}:{kind}"
            written = await write(store, key, mode, key=key, room=REQUEST)
            assert written.conflict is None
        await report(store, "completed", f"r{number}", at=number)


async def test_list_has_the_newest_first_and_pages_meet(open_store: OpenStore) -> None:
    store = open_store()
    for at, request in ((5, "b"), (9, "a"), (5, "c"), (1, "d")):
        await report(store, "started", f"r{request}", at=at, request=request, room=USER)
    await report(store, "completed", "rd", at=99, request="d", room=USER, result="x" * 100)
    assert await listed(store) == ["a", "c", "b", "d"]
    found = await all_of(store, limit=1)
    assert [record.job_id for record in found] == ["a", "c", "b", "d"]
    last = await list_of(store, after=position_of(found[-1]))
    assert (list(last.records), last.more) == ([], False)


async def test_a_page_of_large_records_ends_early(open_store: OpenStore) -> None:
    store = open_store()
    for at in range(10):
        await report(store, "completed", at=at, request=f"q{at}", room=USER, x="x" * 200_000)
    page = await list_of(store)
    assert len(page.records) <= 6
    assert page.more
    found = [record.job_id for record in await all_of(store)]
    assert found == [f"q{at}" for at in reversed(range(10))]


async def test_list_is_limited_to_statuses_and_a_type(open_store: OpenStore) -> None:
    store = open_store()
    for at, (event, name) in enumerate(
        [("started", "a"), ("failed", "a"), ("retrying", "b"), ("cancelled", "b")]
    ):
        await report(
            store, event, f"r{at}", at=at, request=f"q{at}", name=name, room=USER, error="x"
        )
    assert await listed(store, statuses=frozenset({"failed", "cancelled"})) == ["q3", "q1"]
    assert await listed(store, type="b") == ["q3", "q2"]
    assert await listed(store, statuses=frozenset({"running"}), type="a") == ["q0"]
    assert await listed(store, type="c") == []
    page = await list_of(store, limit=1, type="b")
    assert page.more
    assert await listed(store, type="b", after=position_of(page.records[0])) == ["q2"]


async def test_record_is_kept_for_its_time_after_the_last_change(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store(job_age_s=100)
    await report(store, "started")
    await report(store, "started", request="other")
    clock.now += 60
    await report(store, "progress", progress=0.5)
    clock.now += 60
    assert await job(store, "other") is None
    assert await listed(store, REQUEST) == ["q1"]
    await ended(store)
    clock.now += 101
    assert await job(store) is None
    assert await listed(store, REQUEST) == []


async def test_count_deletes_the_oldest_that_has_ended_first(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store(job_count=3)

    async def event(event: str, request: str, at: int) -> None:
        clock.now += 1
        await report(store, event, f"r{request}", at=at, request=request, room=USER)

    for at, request in enumerate("abc"):
        await event("started", request, at)
    await event("completed", "c", 10)
    await event("completed", "b", 11)
    await event("started", "d", 12)
    assert await listed(store) == ["d", "b", "a"], "c ended first"
    await event("started", "e", 13)
    assert await listed(store) == ["e", "d", "a"]
    await event("started", "f", 14)
    assert await listed(store) == ["f", "e", "d"], "none has ended"


async def test_records_of_a_room_are_bounded_in_bytes(open_store: OpenStore, clock: Clock) -> None:
    store = open_store()
    size = 250_000
    most = MAX_JOBS_BYTES // size
    for number in range(most + 10):
        clock.now += 0.001
        await report(
            store, "completed", f"r{number}", at=number, request=f"q{number}", text="x" * size
        )
    kept = [record.job_id for record in await all_of(store, REQUEST)]
    assert most - 5 <= len(kept) <= most + 1
    assert kept[0] == f"q{most + 9}"
    assert await job(store, "q0") is None
    assert (await known(store, kept[-1])).result == {"text": "x" * size}


async def test_a_batch_changes_records_in_its_order(open_store: OpenStore) -> None:
    store = open_store()
    results = await store.publish(
        [
            lifecycle("started", at=1),
            lifecycle("progress", at=2, progress=0.2),
            lifecycle("started", "r2", at=3, request="q2", room=USER),
            lifecycle("failed", at=4, error="x"),
            lifecycle("completed", at=5),
        ]
    )
    assert all(not result.duplicate and result.conflict is None for result in results)
    assert (await known(store)).status == "failed"
    assert (await known(store, "q2", USER)).status == "running"


async def test_delivered_event_is_in_the_record(open_store: OpenStore) -> None:
    store = open_store()
    cursors: list[Cursor] = []

    def deliver(_room: Room, entry: Any, _published_at: float | None) -> int:
        assert json.loads(entry.text)["job"]["event"] == "completed"
        cursors.append(entry.cursor)
        return 1

    store.subscribe(deliver)
    await store.join(REQUEST)
    await ended(store)
    snapshot = await jobs_of(store).get_job(REQUEST, "q1")
    assert [snapshot.cursor] == cursors
    assert snapshot.record is not None
    assert snapshot.record.has_ended
