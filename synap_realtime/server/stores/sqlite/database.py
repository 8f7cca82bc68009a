"""The SQLite file of ``SqliteStore``: its schema, lock, connections, write-ahead log and errors.

The code blocks. One :class:`DatabaseWriter` and one :class:`DatabaseReader` may work at the same
time, each in its own thread: SQLite's write-ahead log isolates them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ....errors import ConfigurationError
from ....protocol.rooms import Room, is_request_room
from ..base import OPTION
from .file_guard import (
    OPEN_FILES,
    Change,
    GuardedFile,
    describe_irregular,
    find_lock_holder,
    find_network_file_system,
)

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)

DATABASE_ERRORS = (sqlite3.Error, TypeError)
"""Raised for a file that SQLite cannot read. TypeError: a required row is missing."""


def describe_problem(error: Exception) -> str:
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


_APPLICATION_ID = 0x53594E50  # "SYNP"
_VERSION = 4

# entry.offset: see OffsetClock. AUTOINCREMENT keeps the highest offset that was issued, even if it
# was only the head of an idle room, so that no offset is reused. At each start it continues from
# the clock's microseconds, so that a restored copy of the file does not reuse offsets that were
# issued after the copy was made. offset_gap: the ranges that were skipped so. A cursor in such a
# range belongs to a log that is lost.
_TABLES = """
CREATE TABLE room (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    entry_count INTEGER NOT NULL DEFAULT 0,
    trimmed_offset INTEGER NOT NULL,          -- the highest that was deleted from its log
    acked_offset INTEGER NOT NULL DEFAULT 0   -- 0: nothing was received
);
CREATE TABLE entry (
    offset INTEGER PRIMARY KEY AUTOINCREMENT,
    room_id INTEGER NOT NULL,
    expires_at REAL NOT NULL,                 -- by the store's clock: see Database.now
    text TEXT NOT NULL,
    fold_id INTEGER                           -- the key that it belongs to
);
CREATE INDEX entry_room_id ON entry (room_id);
CREATE INDEX entry_expires_at ON entry (expires_at);
CREATE TABLE fold (                           -- a key of an entry
    id INTEGER PRIMARY KEY,
    room_id INTEGER NOT NULL,
    key TEXT,                                 -- NULL: a later one has this key
    mode TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    length INTEGER NOT NULL DEFAULT 0,        -- of the text, in code points
    size INTEGER NOT NULL DEFAULT 0,          -- of the text in JSON, in bytes
    is_closed INTEGER NOT NULL DEFAULT 0,
    offset INTEGER NOT NULL DEFAULT 0,        -- of its entry
    written_at REAL NOT NULL DEFAULT 0,       -- by the store's clock
    joined_length INTEGER NOT NULL DEFAULT 0, -- of the text in rows of joined pieces
    loose_count INTEGER NOT NULL DEFAULT 0,   -- the number of the rows after these
    UNIQUE (room_id, key)
);
CREATE TABLE piece (                          -- of the text of a key
    fold_id INTEGER NOT NULL,
    start INTEGER NOT NULL,                   -- its offset in the text, in code points
    text TEXT NOT NULL,
    PRIMARY KEY (fold_id, start)
) WITHOUT ROWID;
CREATE TABLE job (                            -- the record of a job
    id INTEGER PRIMARY KEY,
    room TEXT NOT NULL,                       -- its name: a record outlives the room's log
    job_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    type TEXT NOT NULL,
    status TEXT NOT NULL,
    has_ended INTEGER NOT NULL,
    started_at TEXT NOT NULL,                 -- empty: not known
    expires_at REAL NOT NULL,
    size INTEGER NOT NULL,                    -- of the next two, in bytes
    record TEXT NOT NULL,                     -- JSON
    text TEXT,                                -- of its run, once that has ended
    UNIQUE (room, job_id)
);
CREATE INDEX job_started_at ON job (room, started_at, job_id);
CREATE INDEX job_deletion ON job (room, has_ended, expires_at, size);
CREATE INDEX job_ended_run ON job (room, run_id) WHERE has_ended;
CREATE INDEX job_expires_at ON job (expires_at);
CREATE TABLE dedupe (
    offset INTEGER PRIMARY KEY,
    room_id INTEGER NOT NULL,
    id TEXT NOT NULL,
    expires_at REAL NOT NULL,
    broadcast_count INTEGER NOT NULL DEFAULT 0,
    UNIQUE (room_id, id)
);
CREATE INDEX dedupe_expires_at ON dedupe (expires_at);
CREATE TABLE device (
    room TEXT NOT NULL,                       -- its name: a device outlives the room's log
    name TEXT NOT NULL,
    acked_offset INTEGER NOT NULL,            -- 0: nothing was received
    connected_at REAL NOT NULL,               -- last time, by the store's clock
    PRIMARY KEY (room, name)
) WITHOUT ROWID;
CREATE INDEX device_connected_at ON device (connected_at);
CREATE TABLE offset_gap (after INTEGER PRIMARY KEY, until INTEGER NOT NULL);
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO sqlite_sequence (name, seq) VALUES ('entry', 0);
INSERT INTO meta VALUES
    ('epoch', :epoch), ('trimmed_request', 0), ('trimmed_other', 0),
    ('clock', :now);                          -- the store's clock at the last write
"""


def has_tables(db: sqlite3.Connection, path: Path) -> bool:
    """Return whether the tables exist.

    Raises:
        ConfigurationError: the file has other tables. The message names the fix.
    """
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application == _APPLICATION_ID and version == _VERSION:
        return True
    (tables,) = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not tables:
        return False
    if application != _APPLICATION_ID:
        raise ConfigurationError(
            f"{OPTION}: {path} is another program's database; choose another path"
        )
    age, advice = (
        ("a newer", "upgrade this program")
        if version > _VERSION
        else ("an older", "it cannot be converted: move the file away")
    )
    raise ConfigurationError(
        f"{OPTION}: {path} was written by {age} version of this program (its tables have version "
        f"{version}, and this one reads {_VERSION}); {advice}, or choose another path"
    )


def create_tables(db: sqlite3.Connection) -> None:
    """Create the tables of a new database.

    Raises:
        sqlite3.Error: the file cannot be written.
    """
    epoch = secrets.token_hex(6)
    tables = _TABLES.replace(":epoch", repr(epoch)).replace(":now", repr(time.time()))
    db.executescript(
        f"BEGIN; {tables}; PRAGMA application_id={_APPLICATION_ID};"
        f"PRAGMA user_version={_VERSION}; COMMIT;"
    )


def skip_offsets(db: sqlite3.Connection) -> None:
    """Continue the offsets from the time of the wall clock.

    Raises:
        sqlite3.Error: the file cannot be written.
    """
    last, now = last_offset(db), time.time_ns() // 1000
    if last < now:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT OR REPLACE INTO offset_gap VALUES (?, ?)", (last, now))
        db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'entry'", (now,))
        db.execute("COMMIT")


def last_offset(db: sqlite3.Connection) -> int:
    """Return the highest offset that was issued.

    Raises:
        sqlite3.Error: the file cannot be read now.
    """
    (offset,) = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entry'").fetchone()
    return int(offset)


def trimmed_key(room: str) -> str:
    """Return the key in ``meta`` of the highest offset of deleted logs.

    There is one for each retention: logs that are kept for an hour do not limit those that are kept
    for a day.
    """
    return "trimmed_request" if is_request_room(Room(room)) else "trimmed_other"


logger = logging.getLogger(__name__)

_BUSY_TIMEOUT_S = 1.0


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
        self._wal: GuardedFile | None = None  # None while there is no connection
        self._broken: str | None = None
        self._is_missing = False
        # Resolve symbolic links: SQLite puts the log beside the file itself.
        try:
            self.path = path.resolve()
        except (OSError, RuntimeError) as error:  # a loop of links: RuntimeError until 3.12
            raise ConfigurationError(
                f"{OPTION}: {path} cannot be used: its symbolic links lead nowhere; "
                "choose another path"
            ) from error
        try:
            has_directory = self.path.parent.is_dir()
        except OSError as error:  # the user may not look into a directory above
            raise self.to_config_error(error) from error
        if not has_directory:
            raise ConfigurationError(
                f"{OPTION}: there is no directory {self.path.parent}; create it first. "
                "(An absolute path has four slashes: sqlite:////var/lib/rooms.db)"
            )
        self._wal_path = Path(f"{self.path}-wal")
        try:
            self._database = self._open_database()
        except OSError as error:
            raise self.to_config_error(error) from error
        try:
            self._connect_first()
        except (*DATABASE_ERRORS, OSError) as error:
            self.close()
            raise self.to_config_error(error) from error
        except BaseException:
            self.close()
            raise

    def now(self) -> float:
        """Return the time of the store's clock in seconds. It runs while a server uses this file.

        The clock starts with the Unix time at which the file was created, and continues from the
        last write of the previous server. The wall clock is not read again, since a wrong reading
        would delete the notifications.
        """
        return self._began + self._clock() - self._clock_origin

    @property
    def wal_bytes(self) -> int:
        """The size of the write-ahead log, which is not in the database file yet."""
        return self._wal.size if self._wal is not None else 0

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
            _close_without_checkpoint(db)
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
            if not self._is_missing:
                # Complete the database file, wherever it is now. The old log must not stay, as it
                # would corrupt a new file at the path.
                self._empty_wal()
                self._is_missing = True
            there = ", and another one is in its place" if change is Change.REPLACED else ""
            raise sqlite3.OperationalError(
                f"the file was moved or deleted{there}; put it back, or restart the server"
            )
        self._is_missing = False
        wal = self._wal or self._connect_first()  # creating a new log may have failed before
        if change is not None:
            self._break(
                f"the file was {change.value} by another program; stop the server, restore a copy "
                f"of the file, delete {self._wal_path.name}, and start the server"
            )
        change = wal.find_change(own_append=own_append)
        if change in (Change.DELETED, Change.REPLACED):
            self._start_new_wal(change)
        elif change is not None:
            self._break(
                f"{self._wal_path.name} was {change.value} by another program, so that "
                "notifications of the last seconds may be lost; restart the server"
            )
        elif own_append:
            wal.accept()

    def checkpoint(self) -> bool:
        """Move the content of the log into the database file. Call it outside of a transaction.

        Returns:
            Whether the log is empty now. False: a reader is using it.

        Raises:
            sqlite3.Error: a part of it is still in the log only.
        """
        if self._wal is None:
            raise sqlite3.OperationalError("the file is not open")
        try:
            (is_busy, _, _) = (
                self._connections[0].execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            )
        finally:  # even a failed checkpoint may have moved a part
            self._database.accept()
            self._wal.accept()
        return not is_busy

    def close(self) -> None:
        """Close all connections and release the lock."""
        self._close_connections()
        OPEN_FILES.discard(self._database.identity)
        self._database.close()

    def _open_database(self) -> GuardedFile:
        if (kind := describe_irregular(self.path)) is not None:
            raise ConfigurationError(
                f"{OPTION}: {self.path} is {kind}; choose another path: a file, such as rooms.db"
            )
        if (pid := find_lock_holder(self.path)) is not None:
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
            wal = GuardedFile(self._wal_path)
        except BaseException as error:
            db.close()
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
            if code == sqlite3.SQLITE_BUSY:
                raise self._in_use(find_lock_holder(self.path)) from error
            raise
        if not self.generation and (kind := find_network_file_system(self.path)) is not None:
            logger.warning(
                "%s is on a network file system (%s): SQLite's locks and flushes are not reliable "
                "there, so notifications may be lost; move it to a local disk with --store",
                self.path,
                kind,
            )
        self._connections.append(db)
        self._wal = wal
        self._database.accept()
        OPEN_FILES.add(self._database.identity)
        return wal

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Create missing tables, and read the time of the store's clock."""
        if not has_tables(db, self.path):
            # An empty file that existed before has its creator's mode: make it private.
            with contextlib.suppress(PermissionError):
                self.path.chmod(0o600)
            create_tables(db)
        if self._database.links > 1:
            raise ConfigurationError(
                f"{OPTION}: {self.path} has another name (a hard link), but its log has only one: "
                "after a crash, a program that opens the other name would miss the content of the "
                "log. Remove one of the names, or choose another path"
            )
        skip_offsets(db)
        (_,) = db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        (self._began,) = db.execute(
            "SELECT max(value, 0.0) FROM meta WHERE name = 'clock'"
        ).fetchone()

    def _empty_wal(self) -> None:
        if not self.checkpoint():
            raise sqlite3.OperationalError("the write-ahead log is in use by a reader; try again")

    def _start_new_wal(self, change: Change) -> None:
        self._empty_wal()
        with self.reading:
            self._close_connections()  # SQLite deletes the file that has replaced the old log
            self.generation += 1
            self._connect_first()
        logger.warning(
            "write-ahead log %s was %s by another program: saved its content into %s; "
            "continuing with a new one",
            self._wal_path,
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
        if self._wal is not None:
            self._wal.close()
            self._wal = None

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
        return ConfigurationError(f"{OPTION}: {self.path} {describe_problem(error)}")


def _close_without_checkpoint(db: sqlite3.Connection) -> None:
    """Close a connection without moving a damaged log into the database file."""
    if sys.version_info >= (3, 12):
        db.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, True)
        db.close()
    else:  # leak it, so that it stays open until the process ends
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))
