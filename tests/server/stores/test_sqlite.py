"""Rules of the SQLite store alone: restarts, crashes, locks, full and foreign files."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import sqlite3
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import (
    Entry,
    Publication,
    PublishResult,
    Retention,
    StoreUnavailableError,
)
from synap_realtime.server.stores.sqlite import write_queue, writer
from synap_realtime.server.stores.sqlite.file_guard import find_network_file_system
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.support.stores import ids, publish
from tests.support.timeouts import TIMEOUT_S

USER = Room("user_1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rooms.db"


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
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_queue, "MAINTENANCE_INTERVAL_S", 0.0)
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


async def test_crash_loses_at_most_a_minute_of_age(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_queue, "MAINTENANCE_INTERVAL_S", 0.01)
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
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its acknowledged cursor is the same as the written one, but its time is later."""
    monkeypatch.setattr(write_queue, "MAINTENANCE_INTERVAL_S", 0.0)
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
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_queue, "MAINTENANCE_INTERVAL_S", 0.01)
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
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synap_realtime.server.stores.sqlite.database._BUSY_TIMEOUT_S", 0.05)
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


async def test_one_server_for_one_file(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(ConfigurationError, match="in use by another server"):
        SqliteStore(path)
    await store.close()
    await SqliteStore(path).close()


async def test_a_file_is_one_file_under_all_its_names(path: Path) -> None:
    folder = path.with_name("other")
    folder.mkdir()
    link = folder / "link.db"
    link.symlink_to(path)
    store = SqliteStore(link)
    with pytest.raises(ConfigurationError, match="in use by another server"):
        SqliteStore(path)
    await store.close()
    store = SqliteStore(path)
    with pytest.raises(ConfigurationError, match="in use by another server"):
        SqliteStore(link)
    await store.close()
    (folder / "hard.db").hardlink_to(path)
    for name in (path, folder / "hard.db"):
        with pytest.raises(ConfigurationError, match="another name \\(a hard link\\)"):
            SqliteStore(name)
    (folder / "hard.db").unlink()
    await SqliteStore(path).close()
    circle = folder / "circle.db"
    circle.symlink_to(circle)
    with pytest.raises(ConfigurationError, match="choose another path"):
        SqliteStore(circle)


@pytest.mark.parametrize("was_there", [False, True])
async def test_only_its_owner_may_read_it(path: Path, was_there: bool) -> None:
    if was_there:
        path.touch()
        path.chmod(0o644)
    store = SqliteStore(path)
    await publish(store, "n0")
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file.name
    await store.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"this is a text, and no database, " * 100, "not a SQLite database"),
        ("CREATE TABLE theirs (x)", "another program's database"),
        (
            "PRAGMA application_id=1398361680; PRAGMA user_version=99; CREATE TABLE x (y)",
            r"--store .*rooms\.db was written by a newer version .* 99, .* upgrade this program",
        ),
        (
            "PRAGMA application_id=1398361680; PRAGMA user_version=1; CREATE TABLE x (y)",
            r"--store .*rooms\.db was written by an older version .* 1, .* move the file away",
        ),
    ],
)
def test_foreign_file_is_left_unchanged(path: Path, content: bytes | str, said: str) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with closing(sqlite3.connect(path)) as db:
            db.executescript(content)
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=said):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_invalid_path_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no directory"):
        SqliteStore(tmp_path / "none" / "rooms.db")
    with pytest.raises(ConfigurationError, match="is a directory; choose another path"):
        SqliteStore(tmp_path)
    with pytest.raises(ConfigurationError, match="choose another path") as wrong:
        SqliteStore(tmp_path / ("x" * 300))
    assert str(wrong.value).count(str(tmp_path)) == 1


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device"])
def test_a_path_that_is_no_regular_file_is_refused(path: Path, kind: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        if kind == "a named pipe":
            os.mkfifo(path)
        elif kind == "a socket":
            listener.bind(str(path))
        else:
            path.symlink_to("/dev/null")
        with pytest.raises(ConfigurationError, match=rf"--store .* is {kind}; choose another"):
            SqliteStore(path)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    return ballast


def test_full_disk_at_start_is_reported_with_a_remedy(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        fill(disk)
        with pytest.raises(ConfigurationError, match=r"--store .*rooms\.db .* full; free space"):
            SqliteStore(disk / "rooms.db")


async def test_full_disk_loses_and_duplicates_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls are kept whole or not at all, and kept again when there is space again."""
    with small_disk(tmp_path / "disk") as disk:
        store = SqliteStore(disk / "rooms.db")
        kept = ["n0"]
        await publish(store, "n0")
        ballast = fill(disk)
        refused = []
        for number in range(1, 200):
            batch = [
                Publication(USER, f"n{number}.{part}", json.dumps({"id": f"n{number}.{part}"}))
                for part in range(20)
            ]
            try:
                await store.publish(batch)
            except StoreUnavailableError:
                refused.append(batch)
            else:
                kept += [each.id for each in batch]
            if len(refused) == 5:
                break
        assert len(refused) == 5
        with pytest.raises(StoreUnavailableError):
            await store.check()
        assert await ids(store) == kept
        ballast.unlink()
        for batch in refused:
            receipts = await store.publish(batch)
            assert not any(receipt.duplicate for receipt in receipts)
            kept += [each.id for each in batch]
        assert await ids(store) == kept
        said = [r.levelname for r in caplog.records if r.message.startswith("store ")]
        assert said in (["ERROR", "WARNING"], ["ERROR"]), "once each"
        await store.close()
        store = SqliteStore(disk / "rooms.db")
        assert await ids(store) == kept
        await store.close()


async def test_damaged_file_is_reported_with_a_remedy(path: Path) -> None:
    await SqliteStore(path).close()
    whole = path.read_bytes()
    damages = {
        "half": whole[: len(whole) // 2],
        "no pages": whole[:4096] + b"\xff" * (len(whole) - 4096),
    }
    for content in damages.values():
        path.write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"is damaged .*; restore a copy") as wrong:
            SqliteStore(path)
        assert str(wrong.value).count(str(path)) == 1
    for statement in ("DELETE FROM meta", "DROP TABLE meta", "DELETE FROM sqlite_sequence"):
        path.write_bytes(whole)
        with closing(sqlite3.connect(path)) as db:
            db.executescript(statement)
        with pytest.raises(ConfigurationError, match=r"is damaged .*; restore a copy"):
            SqliteStore(path)
    path.write_bytes(whole)
    await SqliteStore(path).close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory", "has no scheme"),
        ("rooms.db", "has no scheme"),
        ("", "is empty"),
        ("sqlite://rooms.db", "three slashes"),
        ("sqlite://host/path", "three slashes"),
        ("sqlite:///a?b=1", "options after .* not supported"),
        ("sqlite:///a?", "options after .* not supported"),
        ("sqlite:///:memory:", "use memory://"),
        ("postgres://x", "got postgres://"),
    ],
)
def test_invalid_url_is_reported_with_a_remedy(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as wrong:
        open_store(url, Retention())
    assert "no://" not in str(wrong.value)


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite://host/path", "redis://:secret@host", "memory:///x",
     "rooms.db", "", "sqlite:///a?b=1"],
)  # fmt: skip
def test_error_of_an_invalid_url_holds_no_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as wrong:
        open_store(url, Retention())
    assert "--store" in str(wrong.value)
    assert "secret" not in str(wrong.value)


async def test_a_url_chooses_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, promised in (
        ("memory://", "lost when it ends"),
        ("sqlite:///here.db", str(tmp_path / "here.db")),
        (f"sqlite:///{tmp_path}/with%20space.db", "with space.db"),
    ):
        store = open_store(url, Retention())
        assert promised in store.description
        await store.close()


MOUNTS = """\
/dev/sda1 / ext4 rw,relatime 0 0
server:/export /mnt/my\\040share nfs4 rw,vers=4.2 0 0
/dev/sdb1 /mnt/my\\040share/local ext4 rw 0 0
//host/share /srv cifs rw 0 0
"""


@pytest.mark.parametrize(
    ("where", "kind"),
    [
        ("/var/lib/rooms.db", None),
        ("/mnt/my share/rooms.db", "nfs4"),
        ("/mnt/my share/local/rooms.db", None),
        ("/srv/rooms.db", "cifs"),
        ("/srvother/rooms.db", None),
    ],
)
def test_finds_a_network_file_system(where: str, kind: str | None) -> None:
    assert find_network_file_system(Path(where), MOUNTS) == kind
