"""Rules of the SQLite store alone: restarts, crashes, times and the write queue."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import Entry, Publication, PublishResult, Retention
from synap_realtime.server.stores.sqlite import write_queue, writer
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.support.stores import ids, publish
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits

USER = Room("user_1")


async def test_everything_survives_a_restart(path: Path) -> None:
    store = SqliteStore(path)
    receipts = [await publish(store, f"n{n}", count=2) for n in range(3)]
    store.ack(USER, receipts[1].cursor)
    await store.close()

    store = SqliteStore(path)
    assert await ids(store) == ["n0", "n1", "n2"]
    assert await store.get_ack(USER) == receipts[1].cursor
    assert (await store.read(USER, receipts[0].cursor, 10)).recovered
    again = await publish(store, "n2")
    assert again == PublishResult("n2", receipts[2].cursor, 2, duplicate=True)
    assert (await publish(store, "n3")).cursor.offset > receipts[2].cursor.offset
    await store.close()


async def test_no_offset_is_used_twice_even_when_the_log_was_emptied(path: Path) -> None:
    now = 1000.0
    store = SqliteStore(path, Retention(max_age_s=10, dedupe_window_s=10), clock=lambda: now)
    last = await publish(store, "n0")
    now += 20
    assert await ids(store) == []
    await store.close()
    store = SqliteStore(path, clock=lambda: now)
    assert (await publish(store, "n1")).cursor.offset > last.cursor.offset
    assert not (await store.read(USER, Cursor(last.cursor.epoch, 1), 10)).recovered
    await store.close()


async def test_a_copy_that_was_put_back_hides_nothing(path: Path) -> None:
    """A backup has the offsets of its day; cursors of later days are of a log that is gone."""
    store = SqliteStore(path)
    kept = await publish(store, "kept")
    await store.close()
    backup = path.read_bytes()
    store = SqliteStore(path)
    lost = [await publish(store, f"lost{n}") for n in range(5)]
    await store.close()
    path.write_bytes(backup)
    for rest in path.parent.glob("*.db-*"):
        rest.unlink()
    store = SqliteStore(path)
    for n in range(8):
        await publish(store, f"new{n}")
    page = await store.read(USER, lost[-1].cursor, 100)
    assert not page.recovered
    assert len(page.entries) == 9
    page = await store.read(USER, kept.cursor, 100)
    assert page.recovered
    assert len(page.entries) == 8
    await store.close()


async def test_duplicate_returns_the_first_count_during_a_write(
    path: Path, set_waits: SetWaits
) -> None:
    set_waits(sqlite_maintenance_interval_s=0.0)
    store = SqliteStore(path)
    for n in range(40):
        await publish(store, f"n{n}", count=3)
        again = await asyncio.gather(*(publish(store, f"n{n}", count=9) for _ in range(5)))
        assert {receipt.broadcast_count for receipt in again} == {3}
    await store.close()


async def test_failing_delivery_handler_affects_nobody(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(path)

    def deliver(_room: Room, _entry: Entry, _published_at: float | None) -> int:
        raise ValueError("a defect")

    store.subscribe(deliver)
    (receipt,) = await store.publish([Publication(USER, "n0", '{"id":"n0"}')])
    assert receipt.broadcast_count == 0
    assert (await publish(store, "n1", count=1)).broadcast_count == 1
    assert "delivery to room user_1 failed" in caplog.text
    await store.close()


async def test_single_call_may_exceed_the_queue_limit(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_queue, "MAX_QUEUED_BYTES", 1000)
    store = SqliteStore(path)
    await publish(store, "n0", size=5000)
    assert await ids(store) == ["n0"]
    await store.close()


async def test_age_continues_across_restarts(path: Path) -> None:
    """The clock of each process has its own origin; the file says how far the last one was."""
    now = 0.0
    retention = Retention(max_age_s=100)

    def clock() -> float:
        return now

    store = SqliteStore(path, retention, clock=clock)
    await publish(store, "n0")
    for origin in (7e5, -300.0, 5.0):
        now += 33
        await store.close()
        now = origin
        store = SqliteStore(path, retention, clock=clock)
        assert await ids(store) == ["n0"], origin
    now += 2
    assert await ids(store) == []
    await store.close()


async def test_crash_loses_at_most_a_minute_of_age(path: Path, set_waits: SetWaits) -> None:
    set_waits(sqlite_maintenance_interval_s=0.01)
    now = 0.0
    store = SqliteStore(path, Retention(max_age_s=1000), clock=lambda: now)
    await publish(store, "n0")
    with closing(sqlite3.connect(path)) as other:
        (began,) = other.execute("SELECT value FROM meta WHERE name = 'clock'").fetchone()
        now += 900
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                row = other.execute("SELECT value FROM meta WHERE name = 'clock'").fetchone()
                if row[0] >= began + 900 - 60:
                    break
                await asyncio.sleep(0.01)  # another thread's work, seen through the file
    await store.close()


async def test_restart_with_a_wrong_wall_clock_retains_the_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path)
    await publish(store, "n0")
    await store.close()
    right = time.time()
    for wrong in (right + 3 * 86_400, right - 3 * 86_400, 0.0, right + 1e9):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: wrong)
        store = SqliteStore(path)
        assert await ids(store) == ["n0"]
        assert (await publish(store, "n0")).duplicate
        await store.close()


async def test_device_that_reconnects_during_a_write_is_the_last_to_be_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch, set_waits: SetWaits
) -> None:
    """Its acknowledged cursor is the same as the written one, but its time is later."""
    set_waits(sqlite_maintenance_interval_s=0.0)
    monkeypatch.setattr(writer, "MAX_DEVICES", 2)
    is_written, may_return = threading.Event(), threading.Event()
    may_return.set()
    write = writer.DatabaseWriter.write

    def paused(self: writer.DatabaseWriter, *arguments: Any) -> Any:
        result = write(self, *arguments)
        if not may_return.is_set():
            is_written.set()
            may_return.wait(TIMEOUT_S)
        return result

    monkeypatch.setattr(writer.DatabaseWriter, "write", paused)
    store = SqliteStore(path)
    start = (await publish(store, "n0")).cursor
    may_return.clear()
    store.register_device(USER, "first", start)
    store.register_device(USER, "second", start)
    writing = asyncio.ensure_future(publish(store, "n1"))
    assert await asyncio.to_thread(is_written.wait, TIMEOUT_S)
    store.register_device(USER, "first", start)
    may_return.set()
    await writing
    store.register_device(USER, "third", start)
    await store.close()
    store = SqliteStore(path)
    registered = [d for d in ("first", "second", "third") if await store.get_ack(USER, d)]
    assert registered == ["first", "third"]
    await store.close()


async def test_expired_entries_are_deleted_without_publishes(
    path: Path, set_waits: SetWaits
) -> None:
    set_waits(sqlite_maintenance_interval_s=0.01)
    now = 1000.0
    store = SqliteStore(path, clock=lambda: now)
    await publish(store, "n0")
    now += 25 * 3600
    with closing(sqlite3.connect(path)) as other:
        async with asyncio.timeout(TIMEOUT_S):
            while other.execute("SELECT count(*) FROM room").fetchone()[0]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)  # another thread's work, seen through the file
        assert other.execute("SELECT count(*) FROM entry").fetchone() == (0,)
        assert other.execute("SELECT count(*) FROM dedupe").fetchone() == (0,)
    await store.close()


async def test_a_retention_that_was_lowered_is_reached_step_by_step(path: Path) -> None:
    store = SqliteStore(path)
    for n in range(100):
        await publish(store, f"n{n}")
    await store.close()
    store = SqliteStore(path, Retention(count=10))
    for n in range(100, 107):
        await publish(store, f"n{n}")
    assert await ids(store) == [f"n{n}" for n in range(97, 107)]
    await store.close()


async def test_locked_file_is_logged_once_and_publishes_resume(
    path: Path, caplog: pytest.LogCaptureFixture, set_waits: SetWaits
) -> None:
    set_waits(sqlite_busy_timeout_s=0.05)
    store = SqliteStore(path)
    await publish(store, "n0")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for id in ("n1", "n2"):
            with pytest.raises(StoreUnavailableError, match="locked"):
                await publish(store, id)
        with pytest.raises(StoreUnavailableError):
            await store.check()
        assert await ids(store) == ["n0"], "it can still be read"
        other.execute("ROLLBACK")
    delivered: list[Entry] = []

    def deliver(_room: Room, entry: Entry, _published_at: float | None) -> int:
        delivered.append(entry)
        return 1

    store.subscribe(deliver)
    await store.publish([Publication(USER, "n1", '{"id":"n1"}')])
    await store.check()
    assert await ids(store) == ["n0", "n1"]
    assert len(delivered) == 1, "what was refused was not delivered"
    said = [record.levelno for record in caplog.records if record.message.startswith("store ")]
    assert said == [logging.ERROR, logging.WARNING]
    await store.close()


async def test_full_file_refuses_and_recovers(path: Path) -> None:
    store = SqliteStore(path)
    await publish(store, "n0")
    pages = store._writer._db.execute("PRAGMA page_count").fetchone()[0]
    connect = store._file.connect

    def small() -> sqlite3.Connection:
        db = connect()
        db.execute(f"PRAGMA max_page_count={pages + 2}")
        return db

    store._file.connect = small  # type: ignore[method-assign]
    store._writer._db.execute(f"PRAGMA max_page_count={pages + 2}")
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="full"):
            await publish(store, "big", size=200_000)
    store._file.connect = connect  # type: ignore[method-assign]
    assert not (await publish(store, "big", size=200_000)).duplicate
    assert await ids(store) == ["n0", "big"]
    await store.close()


async def test_moved_file_refuses_publishes_until_restored(path: Path) -> None:
    store = SqliteStore(path)
    await publish(store, "n0")
    elsewhere = path.with_suffix(".away")
    path.rename(elsewhere)
    with pytest.raises(StoreUnavailableError, match="moved or deleted"):
        await publish(store, "n1")
    assert not path.exists(), "no new file in its place"
    elsewhere.rename(path)
    await publish(store, "n1")
    assert await ids(store) == ["n0", "n1"]
    await store.close()


async def test_full_write_queue_is_refused_immediately(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_queue, "MAX_QUEUED_BYTES", 1000)
    store = SqliteStore(path)
    first = asyncio.create_task(publish(store, "n0", size=900))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailableError, match="write queue full"):
        await publish(store, "n1", size=900)
    await first
    await publish(store, "n1", size=900)
    assert await ids(store) == ["n0", "n1"]
    await store.close()
