"""The SQLite file of ``SqliteStore``: its lock, its schema, its writer and its reader.

The code blocks. One :class:`LogWriter` and one :class:`LogReader` may work at the same time, each
in its own thread: SQLite's write-ahead log isolates them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import secrets
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from ....errors import ConfigurationError
from ....protocol.rooms import Room, is_request_room
from ..base import DEVICE_AGE_S, MAX_DEVICES, OPTION, Publication, Retention, StoreStats
from ..file_guard import (
    HELD,
    Change,
    GuardedFile,
    describe_irregular,
    find_network_file_system,
    find_user,
)
from ..offsets import OffsetClock

logger = logging.getLogger(__name__)

_APPLICATION_ID = 0x53594E50  # "SYNP"
_VERSION = 1
_BUSY_TIMEOUT_S = 1.0
_CHECKED_EVERY_S = 60.0  # a crash loses at most this much of the store's running time

_ROWS = (64, 8, 1)  # rows per statement: few sizes, so that SQLite's statement cache has each
_EXTRA_DELETES = 15  # surplus entries deleted beside as many as were inserted
_MAX_ROOMS = 16_384  # rooms in the writer's cache
_AMPLE = 8  # without this many times the size free on the disk, a trial write is made
_CHECKPOINT_US = 10_000_000  # between two checkpoints

# entry.offset: see OffsetClock. AUTOINCREMENT keeps the highest offset that was issued, even if it
# was only a checkpoint, so that no offset is reused. At each start it continues from the clock's
# microseconds, so that a restored copy of the file does not reuse offsets that were issued after
# the copy was made. jump: the ranges of offsets that were skipped so. A cursor in such a range
# belongs to a log that is lost.
_TABLES = """
CREATE TABLE room (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL DEFAULT 0,
    forgotten INTEGER NOT NULL,       -- the highest offset that was deleted from its log
    mark INTEGER NOT NULL DEFAULT 0   -- acknowledged offset; 0: nothing was received
);
CREATE TABLE entry (
    offset INTEGER PRIMARY KEY AUTOINCREMENT,
    room INTEGER NOT NULL,
    expires REAL NOT NULL,            -- by the store's clock: see Database.now
    text TEXT NOT NULL
);
CREATE INDEX entry_room ON entry (room);
CREATE INDEX entry_expires ON entry (expires);
CREATE TABLE seen (
    offset INTEGER PRIMARY KEY,
    room INTEGER NOT NULL,
    id TEXT NOT NULL,
    expires REAL NOT NULL,
    count INTEGER NOT NULL DEFAULT 0, -- subscribers that it was delivered to
    UNIQUE (room, id)
);
CREATE INDEX seen_expires ON seen (expires);
CREATE TABLE jump (after INTEGER PRIMARY KEY, until INTEGER NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO sqlite_sequence (name, seq) VALUES ('entry', 0);
INSERT INTO meta VALUES
    ('epoch', :epoch), ('dropped_request', 0), ('dropped_other', 0),
    ('checked', :now);                -- the store's clock at the last write
"""

_DEVICES = """
CREATE TABLE IF NOT EXISTS device (
    room TEXT NOT NULL,
    name TEXT NOT NULL,
    mark INTEGER NOT NULL,            -- acknowledged offset; 0: nothing was received
    seen REAL NOT NULL,               -- when it last connected, by the store's clock
    PRIMARY KEY (room, name)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS device_seen ON device (seen)
"""


_CHECKPOINT_BYTES = 32 * 1024 * 1024
"""A larger write-ahead log is moved into the database file even while notifications are
published."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

P = ParamSpec("P")
T = TypeVar("T")

UNUSABLE = (sqlite3.Error, TypeError)
"""Raised for a file that SQLite cannot read. TypeError: a required row is missing."""


@dataclass(frozen=True, slots=True)
class InsertResult:
    """The offset of a publication. For a duplicate, that of the first publish."""

    offset: int
    duplicate: bool
    count: int


@dataclass(frozen=True, slots=True)
class PageRows:
    """The rows of a page: offsets and texts."""

    entries: Sequence[tuple[int, str]]
    recovered: bool


class Database:
    """The database file and its write-ahead log, locked by one process.

    SQLite's VFS ``unix-excl`` locks the file for as long as this process has it open. The lock is
    on the inode, so no other process can open the database under any name. The index of the log is
    in memory, so there is no ``-shm`` file that could be lost.

    One thread writes and calls :meth:`require_intact`. Another one may read under :attr:`reading`.

    Attributes:
        reading: held while a connection of the reader is in use.
        generation: increases when all connections were closed. Call :meth:`connect` again then.
    """

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        """Lock the file, and create its tables if it is new. Only its owner can read it.

        Args:
            path: the database file.
            clock: running time of this process in seconds, from any origin.

        Raises:
            ConfigurationError: the file cannot be opened or locked, or is not such a database.
        """
        self._clock = clock
        self._clock_origin = clock()
        self._began = 0.0
        self.reading = threading.Lock()
        self.generation = 0
        self._connections: list[sqlite3.Connection] = []
        self._log: GuardedFile | None = None  # None while there is no connection
        self._broken: str | None = None
        self._is_away = False
        # Resolve symbolic links: SQLite puts the log beside the file itself.
        try:
            self.path = path.resolve()
        except (OSError, RuntimeError) as error:  # a loop of links: RuntimeError until 3.12
            raise ConfigurationError(
                f"{OPTION}: {path} cannot be used: its symbolic links lead nowhere; "
                "choose another path"
            ) from error
        if not self.path.parent.is_dir():
            raise ConfigurationError(
                f"{OPTION}: there is no directory {self.path.parent}; create it first. "
                "(An absolute path has four slashes: sqlite:////var/lib/rooms.db)"
            )
        self._log_path = Path(f"{self.path}-wal")
        try:
            self._database = self._open_database()
        except OSError as error:
            raise self.to_config_error(error) from error
        try:
            self._connect_first()
        except (*UNUSABLE, OSError) as error:
            self.close()
            raise self.to_config_error(error) from error
        except BaseException:
            self.close()
            raise

    def now(self) -> float:
        """Return the time of the store's clock in seconds. It runs while a server uses this file.

        The clock starts with the Unix time at which the file was created, and continues from the
        last write of the previous server. The wall clock is not read again, since a wrong reading
        would delete the log.
        """
        return self._began + self._clock() - self._clock_origin

    @property
    def log_bytes(self) -> int:
        """The size of the write-ahead log, which is not in the database file yet."""
        return self._log.size if self._log is not None else 0

    def connect(self) -> sqlite3.Connection:
        """Open a connection.

        Raises:
            sqlite3.Error: the file cannot be opened.
        """
        db = self._open()
        try:
            self._configure(db)
        except BaseException:
            db.close()
            raise
        self._connections.append(db)
        return db

    def disconnect(self, db: sqlite3.Connection) -> None:
        """Close a connection. A closed one is ignored."""
        if db not in self._connections:
            return
        self._connections.remove(db)
        if self._broken is not None:
            _prevent_checkpoint(db)
        else:
            db.close()

    def require_intact(self, *, own_append: bool = False) -> None:
        """Check that committed data is still in the files at the path.

        A log that was deleted or replaced still exists while this process has it open: its content
        is moved into the database file, and a new log is created.

        Args:
            own_append: a transaction was committed since the last call.

        Raises:
            sqlite3.Error: the data is not there. The message names the cause and the fix.
        """
        if self._broken is not None:
            raise sqlite3.OperationalError(self._broken)
        try:
            self._require_intact(own_append)
        except OSError as error:
            raise sqlite3.OperationalError(f"the file cannot be examined: {error}") from error
        except ConfigurationError as error:  # another program has locked the file
            raise sqlite3.OperationalError(str(error)) from error

    def _require_intact(self, own_append: bool) -> None:
        change = self._database.find_change()
        if change in (Change.DELETED, Change.REPLACED):
            if not self._is_away:
                # Complete the database file, wherever it is now. The old log must not stay, as it
                # would corrupt a new file at the path.
                self._empty_log()
                self._is_away = True
            there = ", and another one is in its place" if change is Change.REPLACED else ""
            raise sqlite3.OperationalError(
                f"the file was moved or deleted{there}; put it back, or restart the server"
            )
        self._is_away = False
        log = self._log or self._connect_first()  # creating a new log may have failed before
        if change is not None:
            self._break(
                f"the file was {change.value} by another program; stop the server, restore a copy "
                f"of the file, delete {self._log_path.name}, and start the server"
            )
        change = log.find_change(own_append=own_append)
        if change in (Change.DELETED, Change.REPLACED):
            self._begin_new_log(change)
        elif change is not None:
            self._break(
                f"{self._log_path.name} was {change.value} by another program, so that "
                "notifications of the last seconds may be lost; restart the server"
            )
        elif own_append:
            log.accept()

    def checkpoint(self) -> bool:
        """Move the content of the log into the database file. Call it outside of a transaction.

        Returns:
            Whether the log is empty now. False: a reader is using it.

        Raises:
            sqlite3.Error: a part of it is still in the log only.
        """
        if self._log is None:
            raise sqlite3.OperationalError("the file is not open")
        try:
            (is_busy, _, _) = (
                self._connections[0].execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            )
        finally:  # even a failed checkpoint may have moved a part
            self._database.accept()
            self._log.accept()
        return not is_busy

    def close(self) -> None:
        """Close all connections and release the lock."""
        self._close_connections()
        HELD.discard(self._database.identity)
        self._database.close()

    def _open_database(self) -> GuardedFile:
        if (kind := describe_irregular(self.path)) is not None:
            raise ConfigurationError(
                f"{OPTION}: {self.path} is {kind}; choose another path: a file, such as rooms.db"
            )
        if (pid := find_user(self.path)) is not None:
            raise self._in_use(pid)
        return GuardedFile(self.path, create=True)

    def _connect_first(self) -> GuardedFile:
        """Open the connection that holds the lock and runs the checkpoints."""
        db = self._open()
        try:
            if not self.generation:
                self._prepare(db)
            self._configure(db)
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            log = GuardedFile(self._log_path)
        except BaseException as error:
            db.close()
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
            if code == sqlite3.SQLITE_BUSY:
                raise self._in_use(find_user(self.path)) from error
            raise
        if not self.generation and (kind := find_network_file_system(self.path)) is not None:
            logger.warning(
                "%s is on a network file system (%s): SQLite's locks and flushes are not reliable "
                "there, so notifications may be lost; move it to a local disk with --store",
                self.path,
                kind,
            )
        self._connections.append(db)
        self._log = log
        self._database.accept()
        HELD.add(self._database.identity)
        return log

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Create missing tables, and read the time of the store's clock."""
        self._make_tables(db)
        if self._database.links > 1:
            raise ConfigurationError(
                f"{OPTION}: {self.path} has another name (a hard link), but its log has only one: "
                "after a crash, a program that opens the other name would miss the content of the "
                "log. Remove one of the names, or choose another path"
            )
        self._skip_offsets(db)
        (_,) = db.execute("SELECT value FROM meta WHERE name='epoch'").fetchone()
        (self._began,) = db.execute(
            "SELECT max(value, 0.0) FROM meta WHERE name='checked'"
        ).fetchone()

    def _empty_log(self) -> None:
        if not self.checkpoint():
            raise sqlite3.OperationalError("the write-ahead log is in use by a reader; try again")

    def _begin_new_log(self, change: Change) -> None:
        self._empty_log()
        with self.reading:
            self._close_connections()  # SQLite deletes the file that has replaced the old log
            self.generation += 1
            self._connect_first()
        logger.warning(
            "%s was %s by another program: its notifications were saved into %s; using a new log",
            self._log_path,
            change.value,
            self.path.name,
        )

    def _break(self, problem: str) -> NoReturn:
        """Fail every operation from now on, as continuing could damage intact data."""
        self._broken = problem
        raise sqlite3.OperationalError(problem)

    def _close_connections(self) -> None:
        for db in self._connections[::-1]:
            self.disconnect(db)
        if self._log is not None:
            self._log.close()
            self._log = None

    def _in_use(self, pid: int | None) -> ConfigurationError:
        process = f" (process {pid})" if pid else ""
        return ConfigurationError(
            f"{OPTION}: {self.path} is in use by another server or program{process}; stop it, or "
            "choose another path: each server needs a file of its own"
        )

    def _configure(self, db: sqlite3.Connection) -> None:
        # FULL flushes each commit to the disk; fullfsync flushes the disk's own cache on macOS. The
        # page caches of writer and reader have 32 MB each. Automatic checkpoints are off, so that
        # this process knows of each change of the database file.
        db.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA fullfsync=ON;"
            "PRAGMA wal_autocheckpoint=0; PRAGMA cache_size=-32768;"
        )

    def _open(self) -> sqlite3.Connection:
        # mode=rw: never create a new file in place of a deleted one.
        vfs = "" if sys.platform == "win32" else "&vfs=unix-excl"
        return sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw{vfs}",
            uri=True,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )

    def to_config_error(self, error: Exception) -> ConfigurationError:
        """Return an error that says why the file cannot be used, and what to do."""
        return ConfigurationError(f"{OPTION}: {self.path} {_problem(error)}")

    def _make_tables(self, db: sqlite3.Connection) -> None:
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application == _APPLICATION_ID and version == _VERSION:
            db.executescript(_DEVICES)  # created by a version without devices
            return
        (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application == _APPLICATION_ID and tables:
            newer = version > _VERSION
            advice = "upgrade this program" if newer else "start it once with the version between"
            raise ConfigurationError(
                f"{OPTION}: {self.path} was written by {'a newer' if newer else 'another'} version "
                f"of this program (its tables have version {version}, and this one reads "
                f"{_VERSION}); {advice}, or choose another path"
            )
        if tables:
            raise ConfigurationError(
                f"{OPTION}: {self.path} is another program's database; choose another path"
            )
        # Restrict a file that existed empty, if this user owns it.
        with contextlib.suppress(PermissionError):
            self.path.chmod(0o600)
        epoch = secrets.token_hex(6)
        db.executescript(
            f"BEGIN; {_TABLES.replace(':epoch', repr(epoch)).replace(':now', repr(time.time()))}"
            f"{_DEVICES};"
            f"PRAGMA application_id={_APPLICATION_ID}; PRAGMA user_version={_VERSION}; COMMIT;"
        )

    def _skip_offsets(self, db: sqlite3.Connection) -> None:
        last, now = _last_offset(db), time.time_ns() // 1000
        if last < now:
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT OR REPLACE INTO jump VALUES (?, ?)", (last, now))
            db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'entry'", (now,))
            db.execute("COMMIT")


class _Room:
    """A room in the writer's cache.

    Attributes:
        size: the number of entries in its log.
        pending_growth: entries that were inserted since the size was last written.
    """

    __slots__ = ("id", "name", "pending_growth", "size")

    def __init__(self, id: int, name: Room, size: int) -> None:
        self.id = id
        self.name = name
        self.size = size
        self.pending_growth = 0


class _Rooms:
    """A cache of the rooms that were published to recently."""

    def __init__(self) -> None:
        self._by_name: dict[Room, _Room] = {}
        self._by_id: dict[int, _Room] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, db: sqlite3.Connection, name: Room) -> _Room:
        """Return a room of the file. Create it if it is new."""
        room = self._by_name.get(name)
        if room is None:
            row = db.execute("SELECT id, size FROM room WHERE name = ?", (name,)).fetchone()
            if row is None:
                row = db.execute(
                    "INSERT INTO room (name, forgotten)"
                    " SELECT ?, value FROM meta WHERE name = ? RETURNING id, size",
                    (name, _dropped(name)),
                ).fetchone()
            room = _Room(row[0], name, row[1])
            self._by_name[name] = self._by_id[room.id] = room
        return room

    def shrink(self, id: int) -> None:
        if (room := self._by_id.get(id)) is not None:
            room.size -= 1

    def forget(self, id: int) -> None:
        if (room := self._by_id.pop(id, None)) is not None:
            del self._by_name[room.name]

    def clear(self) -> None:
        self._by_name.clear()
        self._by_id.clear()


class LogWriter:
    """Performs all writes to the file. Use it from one thread."""

    def __init__(self, file: Database, retention: Retention) -> None:
        self._file = file
        self._retention = retention
        self._checked = file.now()  # as stored in the file
        self._connected = False
        self._generation = 0
        self._connect()
        self._rooms = _Rooms()
        (self.epoch,) = self._db.execute("SELECT value FROM meta WHERE name='epoch'").fetchone()
        self._offsets = OffsetClock(_last_offset(self._db))
        self.checkpoint = _last_offset(self._db)
        """A recent offset, higher than all that were committed before it: the head of a room
        without a log. It changes at most every ten seconds, so that subscribers of a quiet room
        cannot see when others publish."""

    def write(
        self,
        calls: Sequence[Sequence[Publication]],
        acks: Mapping[tuple[Room, str | None], int],
        counts: Mapping[int, int],
        sweep: int,
    ) -> list[list[InsertResult]]:
        """Write publications, acks and counts, and delete expired rows, in one transaction.

        Args:
            calls: groups of publications; the result has the same shape.
            acks: acknowledged offsets by room and device; None stands for the whole room.
            counts: number of subscribers that received the entry, by its offset.
            sweep: most expired entries, and most expired ids, that are deleted.

        Raises:
            sqlite3.Error: nothing was written.
        """
        with self._transaction():
            checkpoint = self._next_checkpoint()
            publications = [publication for call in calls for publication in call]
            places = iter(
                [
                    place
                    for start in range(0, len(publications), _ROWS[0])
                    for place in self._insert(publications[start : start + _ROWS[0]])
                ]
            )
            kept = [list(islice(places, len(call))) for call in calls]
            self._db.executemany(
                "UPDATE room SET mark = max(mark, ?) WHERE name = ?",
                [(offset, room) for (room, device), offset in acks.items() if device is None],
            )
            self._store_devices(
                [(room, device, offset) for (room, device), offset in acks.items() if device]
            )
            self._db.executemany(
                "UPDATE seen SET count = ? WHERE offset = ?",
                [(count, offset) for offset, count in counts.items()],
            )
            self._sweep(sweep)
            checked = self._file.now()
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'checked'", (checked,))
        self._checked = checked
        self.checkpoint = checkpoint  # only once it is in the file
        return kept

    def try_writing(self, size: int, *, only_if_nearly_full: bool) -> None:
        """Check that the file is writable, by writing some bytes and deleting them.

        Args:
            size: how many bytes to write.
            only_if_nearly_full: write nothing if the disk has ample space.

        Raises:
            sqlite3.Error: the write failed.
        """
        if only_if_nearly_full:
            self._file.require_intact()
            with contextlib.suppress(OSError):
                if shutil.disk_usage(self._file.path.parent).free > _AMPLE * size:
                    return
        with self._transaction():
            self._db.execute("REPLACE INTO meta VALUES ('trial', zeroblob(?))", (size,))
        with self._transaction():
            self._db.execute("DELETE FROM meta WHERE name = 'trial'")

    def _next_checkpoint(self) -> int:
        """Return the checkpoint. Store a new one if it is old."""
        last, now = _last_offset(self._db), self._offsets.now()
        if now < self.checkpoint + _CHECKPOINT_US:
            return self.checkpoint
        now = max(now, last)
        self._db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'entry'", (now,))
        return now

    def is_maintenance_due(self) -> bool:
        """Return whether a write without publications has anything to do.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        if not self._connected:
            return True  # the write reconnects
        now = self._file.now()
        if now - self._checked >= _CHECKED_EVERY_S and self._holds_anything():
            return True
        for query in (
            "SELECT expires FROM entry ORDER BY expires LIMIT 1",
            "SELECT expires FROM seen ORDER BY expires LIMIT 1",
        ):
            oldest = self._db.execute(query).fetchone()
            if oldest is not None and oldest[0] <= now:
                return True
        return False

    def _holds_anything(self) -> bool:
        (answer,) = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM entry) OR EXISTS (SELECT 1 FROM seen)"
            " OR EXISTS (SELECT 1 FROM device)"
        ).fetchone()
        return bool(answer)

    def idle(self) -> None:
        """Move the log into the database file. Call it while nothing is published.

        Raises:
            sqlite3.Error: another program has changed the files.
        """
        self._file.require_intact()
        self._checkpoint_over(0)

    def close(self) -> None:
        self._file.disconnect(self._db)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        has_begun = False
        try:
            self._file.require_intact()
            if not self._connected or self._generation != self._file.generation:
                self._connect()
            self._db.execute("BEGIN IMMEDIATE")
            has_begun = True
            yield
            self._db.execute("COMMIT")
            self._file.require_intact(own_append=True)
        except BaseException:
            # Whatever the error, the next transaction starts with a new connection.
            self._connected = False
            self._rooms.clear()
            with contextlib.suppress(sqlite3.Error):
                self._file.disconnect(self._db)
            if has_begun:
                with contextlib.suppress(sqlite3.Error, ConfigurationError):
                    self._file.require_intact(own_append=True)
            raise
        self._checkpoint_over(_CHECKPOINT_BYTES)

    def _checkpoint_over(self, log_bytes: int) -> None:
        if self._file.log_bytes > log_bytes:
            # The log stays valid if this fails; the next call tries again.
            with contextlib.suppress(sqlite3.Error):
                self._file.checkpoint()

    def _connect(self) -> None:
        self._db = self._file.connect()
        self._connected = True
        self._generation = self._file.generation

    def _insert(self, publications: Sequence[Publication]) -> list[InsertResult]:
        """Insert publications with few statements, as each one releases the interpreter's lock."""
        now = self._file.now()
        if len(self._rooms) > _MAX_ROOMS:
            self._rooms.clear()
        rooms = [self._rooms.find(self._db, publication.room) for publication in publications]
        keys = [(room.id, each.id) for room, each in zip(rooms, publications, strict=True)]
        first = self._find_duplicates(keys, now)
        kept, entries, seen = [], [], []
        offset = _last_offset(self._db)
        for room, key, (_, id, text) in zip(rooms, keys, publications, strict=True):
            before = first.get(key)
            if before is not None:
                kept.append(before)
                continue
            offset = self._offsets.next(offset)
            entries.append((offset, room.id, now + self._retention.age_s(room.name), text))
            seen.append((offset, room.id, id, now + self._retention.dedupe_window_s))
            room.pending_growth += 1
            kept.append(InsertResult(offset, duplicate=False, count=0))
            first[key] = InsertResult(offset, duplicate=True, count=0)
        self._execute_values("INSERT INTO entry (offset, room, expires, text) VALUES {}", entries)
        self._execute_values(
            "INSERT OR REPLACE INTO seen (offset, room, id, expires) VALUES {}", seen
        )
        self._write_sizes(rooms)
        return kept

    def _find_duplicates(
        self, keys: Sequence[tuple[int, str]], now: float
    ) -> dict[tuple[int, str], InsertResult]:
        """Return the keys that are in the file already, with the result of their first publish."""
        rows = self._execute_values(
            "SELECT seen.room, seen.id, offset, count, expires FROM (VALUES {}) AS asked"
            # CROSS JOIN fixes the order: the reverse order would scan the whole table.
            " CROSS JOIN seen ON seen.room = asked.column1 AND seen.id = asked.column2",
            keys,
        )
        return {
            (room, id): InsertResult(offset, duplicate=True, count=count)
            for room, id, offset, count, expires in rows
            if expires > now
        }

    def _write_sizes(self, rooms: Iterable[_Room]) -> None:
        grown = [room for room in dict.fromkeys(rooms) if room.pending_growth]
        self._execute_values(
            "UPDATE room SET size = size + more.column2"
            " FROM (VALUES {}) AS more WHERE id = more.column1",
            [(room.id, room.pending_growth) for room in grown],
        )
        for room in grown:
            room.size += room.pending_growth
            # A few at a time, so that a retention that was lowered does not cause a stall.
            surplus = min(
                room.size - self._retention.count_of(room.name),
                room.pending_growth + _EXTRA_DELETES,
            )
            room.pending_growth = 0
            if surplus > 0:
                self._delete_oldest(room, surplus)

    def _execute_values(self, sql: str, rows: Sequence[tuple[object, ...]]) -> list[Any]:
        """Execute a statement for many rows.

        Args:
            sql: a statement with ``{}`` in place of the row values.
            rows: the values.
        """
        found, start = [], 0
        for size in _ROWS:
            while len(rows) - start >= size:
                part = rows[start : start + size]
                row = f"({', '.join('?' * len(part[0]))})"
                values = [value for each in part for value in each]
                found += self._db.execute(sql.format(", ".join([row] * size)), values).fetchall()
                start += size
        return found

    def _store_devices(self, acks: Sequence[tuple[Room, str, int]]) -> None:
        """Store the acks of devices. Times differ by a microsecond, to preserve their order."""
        now = self._file.now()
        self._db.executemany(
            "INSERT INTO device (room, name, mark, seen) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET mark = max(mark, excluded.mark), seen = excluded.seen",
            [(*ack, now + number * 1e-6) for number, ack in enumerate(acks)],
        )
        self._db.executemany(
            "DELETE FROM device WHERE room = ? AND name NOT IN"
            " (SELECT name FROM device WHERE room = ? ORDER BY seen DESC LIMIT ?)",
            [(room, room, MAX_DEVICES) for room in {room for room, _, _ in acks}],
        )

    def _delete_oldest(self, room: _Room, count: int) -> None:
        oldest = self._db.execute(
            "SELECT offset FROM entry WHERE room = ? ORDER BY offset LIMIT ?", (room.id, count)
        ).fetchall()
        self._delete([(offset, room.id) for (offset,) in oldest])

    def _delete(self, entries: Sequence[tuple[int, int]]) -> None:
        self._db.executemany("DELETE FROM entry WHERE offset = ?", [(e[0],) for e in entries])
        self._db.executemany(
            "UPDATE room SET size = size - 1, forgotten = max(forgotten, ?) WHERE id = ?", entries
        )
        for _, id in entries:
            self._rooms.shrink(id)

    def _sweep(self, limit: int) -> None:
        now, execute = self._file.now(), self._db.execute
        entries = execute(
            "SELECT offset, room FROM entry WHERE expires <= ? ORDER BY expires LIMIT ?",
            (now, limit),
        ).fetchall()
        self._delete(entries)
        ids = execute(
            "SELECT offset, room FROM seen WHERE expires <= ? ORDER BY expires LIMIT ?",
            (now, limit),
        ).fetchall()
        self._db.executemany("DELETE FROM seen WHERE offset = ?", [(i[0],) for i in ids])
        execute(
            "DELETE FROM device WHERE (room, name) IN"
            " (SELECT room, name FROM device WHERE seen <= ? ORDER BY seen LIMIT ?)",
            (now - DEVICE_AGE_S, limit),
        )
        for room in {room for _, room in (*entries, *ids)}:
            dropped = execute(
                "DELETE FROM room WHERE id = ? AND size = 0"
                " AND NOT EXISTS (SELECT 1 FROM seen WHERE seen.room = room.id)"
                " RETURNING forgotten, name",
                (room,),
            ).fetchone()
            if dropped is not None:
                forgotten, name = dropped
                self._rooms.forget(room)
                execute(
                    "UPDATE meta SET value = max(value, ?) WHERE name = ?",
                    (forgotten, _dropped(name)),
                )


class LogReader:
    """Performs all queries of the file. Use it from one thread."""

    def __init__(self, file: Database) -> None:
        self._file = file
        self._path = file.path
        self._connect()

    def run(self, query: Callable[P, T], *arguments: P.args, **_: P.kwargs) -> T:
        """Call one of the methods below, with a connection of the present generation.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        with self._file.reading:
            if self._generation != self._file.generation:
                self._connect()
            return query(*arguments, **_)

    def _connect(self) -> None:
        self._db = self._file.connect()
        self._generation = self._file.generation
        self._db.execute("PRAGMA query_only=ON")

    def page(self, room: Room, after: int, limit: int, checkpoint: int) -> PageRows:
        """Return up to ``limit`` entries after an offset, from one snapshot.

        Args:
            room: the room.
            after: the offset.
            limit: most entries to return.
            checkpoint: no higher cursor was issued for a room without a log.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        self._db.execute("BEGIN")
        try:
            return self._page(room, after, limit, checkpoint)
        finally:
            self._db.execute("ROLLBACK")

    def last_offset(self) -> int:
        """Return the highest offset that was issued.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        return _last_offset(self._db)

    def head(self, room: Room, checkpoint: int) -> int:
        """Return the highest offset that was ever in a room's log, or the checkpoint without a log.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        row = self._db.execute(
            "SELECT max(forgotten, ifnull((SELECT max(offset) FROM entry WHERE room = room.id), 0))"
            " FROM room WHERE name = ?",
            (room,),
        ).fetchone()
        if row is not None and row[0]:
            return int(row[0])
        # An entry with a retention of seconds may have been deleted after the checkpoint.
        return max(checkpoint, self._dropped(room))

    def device_ack(self, room: Room, device: str) -> int | None:
        """Return the acknowledged offset of a device; None if it is not registered.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        row = self._db.execute(
            "SELECT mark FROM device WHERE room = ? AND name = ? AND seen > ?",
            (room, device, self._file.now() - DEVICE_AGE_S),
        ).fetchone()
        return int(row[0]) if row is not None else None

    def ack(self, room: Room) -> int:
        """Return the acknowledged offset of a room; 0 if nothing was received.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        row = self._db.execute("SELECT mark FROM room WHERE name = ?", (room,)).fetchone()
        return int(row[0]) if row is not None else 0

    def usage(self) -> StoreStats:
        """Return the size of the file, including SQLite's write-ahead log.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        (rooms,) = self._db.execute("SELECT count(*) FROM room").fetchone()
        path = self._path
        sizes = [each.stat().st_size for each in (path, Path(f"{path}-wal")) if each.exists()]
        return StoreStats(sum(sizes), rooms)

    def close(self) -> None:
        self._file.disconnect(self._db)

    def _page(self, room: Room, after: int, limit: int, checkpoint: int) -> PageRows:
        execute = self._db.execute
        # Not compared with the last offset of all rooms, which would reveal publishes to others.
        foreign = after > max(checkpoint, self.head(room, checkpoint)) or self._in_offset_gap(after)
        row = execute("SELECT id, forgotten FROM room WHERE name = ?", (room,)).fetchone()
        if row is None:
            return PageRows((), recovered=not foreign and not 0 < after < self._dropped(room))
        id, forgotten = row
        start = 0 if foreign else after
        gone = max(forgotten, self._expired(id))
        rows = execute(
            "SELECT offset, text FROM entry WHERE room = ? AND offset > ? ORDER BY offset LIMIT ?",
            (id, max(start, gone), limit),
        ).fetchall()
        return PageRows(rows, recovered=not foreign and not 0 < start < gone)

    def _dropped(self, room: Room) -> int:
        """Return the highest offset of the deleted logs of this kind of room."""
        row = self._db.execute(
            "SELECT value FROM meta WHERE name = ?", (_dropped(room),)
        ).fetchone()
        return int(row[0])

    def _in_offset_gap(self, offset: int) -> bool:
        row = self._db.execute(
            "SELECT until FROM jump WHERE after < ? ORDER BY after DESC LIMIT 1", (offset,)
        ).fetchone()
        return row is not None and offset < row[0]

    def _expired(self, room: int) -> int:
        """Return the highest expired offset that is not deleted yet; 0 if there is none."""
        now, execute = self._file.now(), self._db.execute
        oldest = execute(
            "SELECT expires FROM entry WHERE room = ? ORDER BY offset LIMIT 1", (room,)
        ).fetchone()
        if oldest is None or oldest[0] > now:
            return 0
        (expired,) = execute(
            "SELECT max(offset) FROM entry WHERE room = ? AND expires <= ?", (room, now)
        ).fetchone()
        return int(expired or 0)


def _prevent_checkpoint(db: sqlite3.Connection) -> None:
    """Close a connection without moving a damaged log into the database file."""
    if sys.version_info >= (3, 12):
        db.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        db.close()
    else:  # leak it, so that it stays open until the process ends
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))


def _problem(error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # the primary result code
    match error:
        case IsADirectoryError():
            return "is a directory; choose another path: a file in it, such as rooms.db"
        case PermissionError():
            return "is not writable for this user; choose another path, or change its mode"
        case OSError() if error.errno not in _NO_SPACE:
            return f"cannot be used ({error.strerror}); choose another path"
    if code == sqlite3.SQLITE_NOTADB:
        return "is not a SQLite database; choose another path"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR) or isinstance(error, TypeError):
        what = "a row is missing" if isinstance(error, TypeError) else error
        return f"is damaged ({what}); restore a copy of it, or choose another path"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"cannot be written ({error}), nor a file beside it; choose another path"
    if code == sqlite3.SQLITE_FULL or getattr(error, "errno", None) in _NO_SPACE:
        return "cannot be created: its disk, or the quota of this user, is full; free space"
    if code == sqlite3.SQLITE_IOERR:
        return f"cannot be used: its disk reports an error ({error}); check the system's log"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "is locked by another program; end that program, or choose another path"
    return f"cannot be used ({error}); choose another path"


def _dropped(room: str) -> str:
    """Return the key in ``meta`` of the highest offset of deleted logs.

    There is one for each retention: logs that are kept for an hour do not limit those that are kept
    for a day.
    """
    return "dropped_request" if is_request_room(Room(room)) else "dropped_other"


def _last_offset(db: sqlite3.Connection) -> int:
    (offset,) = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entry'").fetchone()
    return int(offset)
