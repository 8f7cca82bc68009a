"""The tables of the database, and their version."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
import time
from pathlib import Path

from ....errors import ConfigurationError
from ....protocol.rooms import Room, is_request_room
from ..base import OPTION

_APPLICATION_ID = 0x53594E50  # "SYNP"
_VERSION = 1

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


def make_tables(db: sqlite3.Connection, path: Path) -> None:
    """Create missing tables.

    Raises:
        ConfigurationError: the file has other tables.
    """
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
            f"{OPTION}: {path} was written by {'a newer' if newer else 'another'} version "
            f"of this program (its tables have version {version}, and this one reads "
            f"{_VERSION}); {advice}, or choose another path"
        )
    if tables:
        raise ConfigurationError(
            f"{OPTION}: {path} is another program's database; choose another path"
        )
    # Restrict a file that existed empty, if this user owns it.
    with contextlib.suppress(PermissionError):
        path.chmod(0o600)
    epoch = secrets.token_hex(6)
    db.executescript(
        f"BEGIN; {_TABLES.replace(':epoch', repr(epoch)).replace(':now', repr(time.time()))}"
        f"{_DEVICES};"
        f"PRAGMA application_id={_APPLICATION_ID}; PRAGMA user_version={_VERSION}; COMMIT;"
    )


def skip_offsets(db: sqlite3.Connection) -> None:
    """Continue the offsets from the time of the wall clock."""
    last, now = last_offset(db), time.time_ns() // 1000
    if last < now:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT OR REPLACE INTO jump VALUES (?, ?)", (last, now))
        db.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'entry'", (now,))
        db.execute("COMMIT")


def trimmed_key(room: str) -> str:
    """Return the key in ``meta`` of the highest offset of deleted logs.

    There is one for each retention: logs that are kept for an hour do not limit those that are kept
    for a day.
    """
    return "dropped_request" if is_request_room(Room(room)) else "dropped_other"


def last_offset(db: sqlite3.Connection) -> int:
    (offset,) = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entry'").fetchone()
    return int(offset)
