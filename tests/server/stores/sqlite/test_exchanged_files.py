"""Files that are deleted, replaced or overwritten under a running store."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import Publication
from synap_realtime.server.stores.sqlite import database
from synap_realtime.server.stores.sqlite.database import Database
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits

USER = Room("user_1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "rooms.db"


@pytest.fixture
def never_resting(set_waits: SetWaits) -> None:
    """What is published stays in the write-ahead log."""
    set_waits(sqlite_rest_s=60.0, sqlite_maintenance_interval_s=60.0)


async def publish(store: SqliteStore, id: str) -> None:
    text = json.dumps({"id": id})
    (receipt,) = await store.publish([Publication(USER, id, text)])
    assert not receipt.duplicate


async def ids(store: SqliteStore) -> list[str]:
    page = await store.read(USER, store.earliest(), 10_000)
    return [json.loads(entry.text)["id"] for entry in page.entries]


async def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Another process. (To close a descriptor of the file in this one would end its lock.)"""
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False
    )


async def copy(source: Path, to: Path) -> None:
    done = await run("cp", "-r", str(source), str(to))
    assert not done.returncode, done.stderr


async def after_a_crash(path: Path) -> list[str]:
    """What the next server would find if this process were killed now."""
    crashed = path.parent.with_name("crashed")
    shutil.rmtree(crashed, ignore_errors=True)
    await copy(path.parent, crashed)
    store = SqliteStore(crashed / path.name)
    try:
        return await ids(store)
    finally:
        await store.close()


def log_of(path: Path) -> Path:
    return Path(f"{path}-wal")


@pytest.mark.parametrize("stale", [False, True], ids=["deleted", "replaced by an old copy"])
@pytest.mark.usefixtures("never_resting")
async def test_replaced_log_loses_nothing(
    path: Path, stale: bool, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(path)
    await publish(store, "n0")
    old = log_of(path).read_bytes()
    assert old
    await publish(store, "n1")
    log_of(path).unlink()
    if stale:
        log_of(path).write_bytes(old)
    await publish(store, "n2")
    assert await after_a_crash(path) == ["n0", "n1", "n2"]
    await publish(store, "n3")
    assert await ids(store) == ["n0", "n1", "n2", "n3"]
    assert await after_a_crash(path) == ["n0", "n1", "n2", "n3"]
    said = [record for record in caplog.records if "by another program" in record.message]
    assert len(said) == 1
    await store.close()
    assert await after_a_crash(path) == ["n0", "n1", "n2", "n3"]


async def test_deleted_log_is_noticed_without_publishes(path: Path, set_waits: SetWaits) -> None:
    set_waits(sqlite_maintenance_interval_s=0.01)
    store = SqliteStore(path)
    await publish(store, "n0")
    before = log_of(path).stat().st_ino
    log_of(path).rename(path.with_name("away"))  # so that the new one gets another inode
    async with asyncio.timeout(TIMEOUT_S):
        while not log_of(path).exists() or log_of(path).stat().st_ino == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await after_a_crash(path) == ["n0"]
    await store.close()


@pytest.mark.parametrize("left_bytes", [0, 100, 5000])
@pytest.mark.usefixtures("never_resting")
async def test_truncated_log_is_refused_and_the_file_left_unchanged(
    path: Path, left_bytes: int, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(path)
    await publish(store, "n0")
    await store.close()
    store = SqliteStore(path)
    await publish(store, "n1")
    os.truncate(log_of(path), left_bytes)
    for id in ("n2", "n3"):
        with pytest.raises(StoreUnavailableError, match=r"rooms.db-wal was truncated .* restart"):
            await publish(store, id)
    with pytest.raises(StoreUnavailableError):
        await store.check()
    assert [r.levelname for r in caplog.records if "truncated" in r.message] == ["ERROR"]
    await store.close()
    assert (await after_a_crash(path))[:1] == ["n0"]


async def test_a_file_that_was_overwritten_in_place_is_left_as_it_is(path: Path) -> None:
    store = SqliteStore(path)
    await publish(store, "n0")
    with closing(sqlite3.connect(path.with_name("other.db"))) as other:
        other.executescript("CREATE TABLE its (own TEXT); PRAGMA user_version=7")
        other.execute("INSERT INTO its VALUES (?)", ("x" * 500_000,))
        other.commit()
    await copy(path.with_name("other.db"), path)
    with pytest.raises(StoreUnavailableError, match=r"overwritten .* restore a copy"):
        await publish(store, "n1")
    await store.close()
    assert path.read_bytes() == path.with_name("other.db").read_bytes()


async def test_a_file_that_was_truncated_is_refused(path: Path) -> None:
    store = SqliteStore(path)
    await publish(store, "n0")
    os.truncate(path, 0)
    with pytest.raises(StoreUnavailableError, match=r"truncated .* restore a copy"):
        await publish(store, "n1")
    await store.close()


@pytest.mark.usefixtures("never_resting")
async def test_moved_file_stays_intact(path: Path) -> None:
    """Alone: what stood in the log beside it was moved into it."""
    store = SqliteStore(path)
    await publish(store, "n0")
    moved = path.parent.with_name("moved")
    moved.mkdir()
    path.rename(moved / path.name)
    path.write_bytes(b"")  # and a fresh one in its place
    with pytest.raises(StoreUnavailableError, match=r"moved or deleted, and another one"):
        await publish(store, "n1")
    assert await after_a_crash(moved / path.name) == ["n0"]
    assert await after_a_crash(path) == [], "the log of the old one does not get into the fresh one"
    (moved / path.name).replace(path)
    await publish(store, "n1")
    assert await ids(store) == ["n0", "n1"]
    await store.close()


@pytest.mark.usefixtures("never_resting")
async def test_replaced_directory_is_refused_until_restored(path: Path) -> None:
    store = SqliteStore(path)
    await publish(store, "n0")
    away = path.parent.with_name("away")
    path.parent.rename(away)
    path.parent.mkdir()
    for _ in range(2):
        with pytest.raises(StoreUnavailableError, match="moved or deleted"):
            await publish(store, "n1")
    assert not list(path.parent.iterdir()), "nothing is made in its place"
    assert await after_a_crash(away / path.name) == ["n0"]
    path.parent.rmdir()
    away.rename(path.parent)
    await publish(store, "n1")
    assert await after_a_crash(path) == ["n0", "n1"]
    await store.close()


async def test_touched_file_stays_in_use(path: Path) -> None:
    store = SqliteStore(path)
    await publish(store, "n0")
    for file in (path, log_of(path)):
        os.utime(file)
    path.chmod(0o640)
    await publish(store, "n1")
    assert await after_a_crash(path) == ["n0", "n1"]
    await store.close()


OPEN = """
import sys
from synap_realtime import ConfigurationError
from synap_realtime.server.stores.sqlite.store import SqliteStore
for path in sys.argv[1:]:
    try:
        SqliteStore(path)
        print("opened")
    except ConfigurationError as error:
        print(error)
"""


READ = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute('SELECT 1 FROM meta')"


async def test_no_second_process_opens_the_file_under_any_name(path: Path) -> None:
    """Also when everything beside it was deleted."""
    store = SqliteStore(path)
    await publish(store, "n0")
    for beside in path.parent.iterdir():
        if beside != path:
            beside.unlink()
    symbolic, hard = path.with_name("symbolic.db"), path.with_name("hard.db")
    symbolic.symlink_to(path)
    hard.hardlink_to(path)
    relative = os.path.relpath(path)
    names = [str(path), str(symbolic), str(hard), relative, f"{path.parent}/../data/rooms.db"]
    done = await run(sys.executable, "-c", OPEN, *names)
    said = done.stdout.splitlines()
    assert len(said) == len(names), done.stderr
    for line in said:
        assert f"is in use by another server or program (process {os.getpid()})" in line
    assert "database is locked" in (await run(sys.executable, "-c", READ, str(path))).stderr
    await publish(store, "n1")
    hard.unlink()
    assert await after_a_crash(path) == ["n0", "n1"]
    await store.close()


HOLD = """
import sys
from synap_realtime.server.stores.sqlite.store import SqliteStore
store = SqliteStore(sys.argv[1])
print("opened", flush=True)
sys.stdin.read()
"""


async def test_file_locked_by_another_process_meanwhile_is_in_use(
    path: Path, monkeypatch: pytest.MonkeyPatch, set_waits: SetWaits
) -> None:
    """Its lock was looked for before, and was not there; on some systems it cannot be seen."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, str(path),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"opened\n"
    monkeypatch.setattr(database, "find_lock_holder", lambda _: None)
    set_waits(sqlite_busy_timeout_s=0.01)
    with pytest.raises(ConfigurationError, match="is in use by another server or program; stop it"):
        SqliteStore(path)
    process.stdin.close()
    assert await process.wait() == 0


def test_no_connection_recreates_a_removed_file(path: Path) -> None:
    file = Database(path, lambda: 0.0)
    path.unlink()
    with pytest.raises(sqlite3.Error, match="unable to open"):
        file.connect()
    assert not path.exists()
    file.close()
