"""The tables of the database, and their version."""

from __future__ import annotations

import secrets
import sqlite3
import time
from pathlib import Path

from ....errors import ConfigurationError
from ....protocol.rooms import Room, is_request_room
from ..base import OPTION

_APPLICATION_ID = 0x53594E50  # "SYNP"
_VERSION = 2

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
    text TEXT NOT NULL
);
CREATE INDEX entry_room_id ON entry (room_id);
CREATE INDEX entry_expires_at ON entry (expires_at);
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
