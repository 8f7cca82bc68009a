"""All queries of the database."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from ....protocol.folding import Fold
from ....protocol.job_state import JobRecord
from ....protocol.rooms import Room
from ..base import DEVICE_AGE_S, JobQuery, StoreStats
from ..folds import MAX_PAGE_BYTES, utf8_size
from .database import Database, last_offset, trimmed_key
from .jobs import read_job, read_jobs
from .keys import read_folded

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PageRows:
    """The rows of a page: offsets, texts and folds."""

    entries: Sequence[tuple[int, str, Fold | None]]
    recovered: bool
    ends_early: bool = False


class DatabaseReader:
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

    def page(self, room: Room, after: int, limit: int, idle_head: int) -> PageRows:
        """Return up to ``limit`` entries after an offset, from one snapshot.

        Args:
            room: the room.
            after: the offset.
            limit: most entries to return.
            idle_head: no higher cursor was issued for a room without a log.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        with self._snapshot():
            return self._page(room, after, limit, idle_head)

    def job(self, room: Room, job_id: str, idle_head: int) -> tuple[JobRecord | None, int]:
        """Return the record of a job, and the head of the room, from one snapshot.

        Args:
            room: the room.
            job_id: the id of the record.
            idle_head: see :meth:`page`.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        with self._snapshot():
            head = self.head(room, idle_head)
            return read_job(self._db, room, job_id, self._file.now()), head

    def jobs(
        self, room: Room, query: JobQuery, idle_head: int
    ) -> tuple[list[JobRecord], bool, int]:
        """Return records, whether others follow, and the head of the room, from one snapshot.

        Args:
            room: the room.
            query: the records.
            idle_head: see :meth:`page`.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        with self._snapshot():
            head = self.head(room, idle_head)
            return *read_jobs(self._db, room, query, self._file.now()), head

    @contextlib.contextmanager
    def _snapshot(self) -> Iterator[None]:
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("ROLLBACK")

    def last_offset(self) -> int:
        """Return the highest offset that was issued.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        return last_offset(self._db)

    def head(self, room: Room, idle_head: int) -> int:
        """Return the highest offset that was ever in a room's log, or ``idle_head`` without a log.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        row = self._db.execute(
            "SELECT max(trimmed_offset,"
            " ifnull((SELECT max(offset) FROM entry WHERE room_id = room.id), 0))"
            " FROM room WHERE name = ?",
            (room,),
        ).fetchone()
        if row is not None and row[0]:
            return int(row[0])
        # An entry with a retention of seconds may have been deleted after ``idle_head`` was issued.
        return max(idle_head, self._last_trimmed(room))

    def device_ack(self, room: Room, device: str) -> int | None:
        """Return the acknowledged offset of a device; None if it is not registered.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        row = self._db.execute(
            "SELECT acked_offset FROM device WHERE room = ? AND name = ? AND connected_at > ?",
            (room, device, self._file.now() - DEVICE_AGE_S),
        ).fetchone()
        return int(row[0]) if row is not None else None

    def ack(self, room: Room) -> int:
        """Return the acknowledged offset of a room; 0 if nothing was received.

        Raises:
            sqlite3.Error: the file cannot be read now.
        """
        row = self._db.execute("SELECT acked_offset FROM room WHERE name = ?", (room,)).fetchone()
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

    def _page(self, room: Room, after: int, limit: int, idle_head: int) -> PageRows:
        execute = self._db.execute
        # Not compared with the last offset of all rooms, which would reveal publishes to others.
        foreign = after > max(idle_head, self.head(room, idle_head)) or self._in_offset_gap(after)
        row = execute("SELECT id, trimmed_offset FROM room WHERE name = ?", (room,)).fetchone()
        if row is None:
            return PageRows((), recovered=not foreign and not 0 < after < self._last_trimmed(room))
        id, trimmed = row
        start = 0 if foreign else after
        deleted = max(trimmed, self._last_expired(id))
        rows = execute(
            "SELECT offset, text, fold_id FROM entry WHERE room_id = ? AND offset > ?"
            " ORDER BY offset LIMIT ?",
            (id, max(start, deleted), limit),
        ).fetchall()
        recovered = not foreign and not 0 < start < deleted
        entries: list[tuple[int, str, Fold | None]] = []
        size = 0
        for offset, text, key in rows:
            fold = None
            if key is not None:
                text, fold = read_folded(self._db, key, text)
                size += utf8_size(text)
            entries.append((offset, text, fold))
            if size >= MAX_PAGE_BYTES:
                break
        return PageRows(entries, recovered, ends_early=len(entries) < len(rows))

    def _last_trimmed(self, room: Room) -> int:
        """Return the highest offset of the deleted logs of this kind of room."""
        row = self._db.execute(
            "SELECT value FROM meta WHERE name = ?", (trimmed_key(room),)
        ).fetchone()
        return int(row[0])

    def _in_offset_gap(self, offset: int) -> bool:
        row = self._db.execute(
            "SELECT until FROM offset_gap WHERE after < ? ORDER BY after DESC LIMIT 1", (offset,)
        ).fetchone()
        return row is not None and offset < row[0]

    def _last_expired(self, room: int) -> int:
        """Return the highest expired offset that is not deleted yet; 0 if there is none."""
        now, execute = self._file.now(), self._db.execute
        oldest = execute(
            "SELECT expires_at FROM entry WHERE room_id = ? ORDER BY offset LIMIT 1", (room,)
        ).fetchone()
        if oldest is None or oldest[0] > now:
            return 0
        (expired,) = execute(
            "SELECT max(offset) FROM entry WHERE room_id = ? AND expires_at <= ?", (room, now)
        ).fetchone()
        return int(expired or 0)
