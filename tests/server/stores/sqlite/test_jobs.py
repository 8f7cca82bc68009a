"""The records of jobs in the file: restarts, crashes and the deletion of old ones."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import Retention
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.server.stores.conftest import Clock
from tests.support.folding import write
from tests.support.jobs import REQUEST, lifecycle, report
from tests.support.polling import until
from tests.support.stores import USER, ids
from tests.support.waits import SetWaits


async def test_records_and_closed_keys_survive_a_crash(
    path: Path, tmp_path: Path, set_waits: SetWaits
) -> None:
    set_waits(sqlite_rest_s=60.0, sqlite_maintenance_interval_s=60.0)
    store = SqliteStore(path)
    await report(store, "started")
    await write(store, "p0", piece="é" * 1000, key="r1:text", room=REQUEST)
    last = await report(store, "completed", at=9, title="T")
    crashed = tmp_path / "crashed"
    shutil.copytree(path.parent, crashed)  # what a process that is killed now leaves behind
    await store.close()

    store = SqliteStore(crashed / path.name)
    record, cursor = await store.get_job(REQUEST, "q1")
    assert record is not None
    assert (record.status, record.result, record.text) == (
        "completed",
        {"title": "T"},
        "é" * 1000,
    )
    assert cursor == last.cursor
    late = await write(store, "p1", piece="zombie", key="r1:text", room=REQUEST)
    assert late.conflict is not None
    await store.close()


async def test_record_and_entry_are_written_together_or_not_at_all(path: Path) -> None:
    """A transaction that fails leaves neither."""
    store = SqliteStore(path)
    await report(store, "started")
    await store.close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON job WHEN NEW.status = 'completed'"
            " BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    store = SqliteStore(path)
    with pytest.raises(StoreUnavailableError, match="refused"):
        await report(store, "completed", at=9)
    record, _ = await store.get_job(REQUEST, "q1")
    assert record is not None
    assert record.status == "running"
    assert len(await ids(store, REQUEST)) == 1
    await store.close()


async def test_expired_records_are_deleted_without_publishes(
    path: Path, set_waits: SetWaits
) -> None:
    set_waits(sqlite_maintenance_interval_s=0.01)
    clock = Clock()
    store = SqliteStore(path, Retention(job_age_s=100), clock=clock)
    await store.publish(
        [lifecycle("completed", request=f"q{n}", room=USER, x="x" * 100) for n in range(300)]
    )
    clock.now += 101
    with closing(sqlite3.connect(path)) as other:
        await until(lambda: not other.execute("SELECT count(*) FROM job").fetchone()[0])
    await store.close()
