"""All writes to the database: publications, acknowledged cursors, and the deletion of old rows."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from ....errors import ConfigurationError
from ....protocol.folding import Fold
from ....protocol.job_state import JobEvent, run_of_key
from ....protocol.rooms import Room, is_control_room
from ..base import MAX_DEVICES, Publication, Retention
from ..clock import OffsetClock
from ..folds import Conflict, Effect
from .database import Database, last_offset
from .deletion import Deletion
from .jobs import JobTable
from .keys import KeyTable
from .pending import AckKey, Pending
from .room_cache import CachedRoom, RoomCache
from .statements import MAX_ROWS, execute_values

_CLOCK_INTERVAL_S = 60.0  # a crash loses at most this much of the store's running time

_EXTRA_DELETES = 15  # surplus entries deleted beside as many as were inserted
_MAX_ROOMS = 16_384  # rooms in the writer's cache
_AMPLE_FACTOR = 8  # without this many times the size free on the disk, a trial write is made
_IDLE_HEAD_INTERVAL_US = 10_000_000

_CHECKPOINT_BYTES = 32 * 1024 * 1024
"""A larger write-ahead log is moved into the database file even while notifications are
published."""


@dataclass(frozen=True, slots=True)
class InsertResult:
    """The offset of a publication. For a duplicate, that of the first publish.

    Attributes:
        fold: its ``fold``, with the offset of its piece.
        conflict: why nothing was stored.
    """

    offset: int
    duplicate: bool
    count: int
    fold: Fold | None = None
    conflict: Conflict | None = None

    @property
    def is_new(self) -> bool:
        """Whether something was stored."""
        return not self.duplicate and self.conflict is None


class DatabaseWriter:
    """Performs all writes to the file. Use it from one thread."""

    def __init__(self, file: Database, retention: Retention) -> None:
        self._file = file
        self._retention = retention
        self._saved_clock = file.now()
        self._connected = False
        self._generation = 0
        self._connect()
        self._rooms = RoomCache()
        (self.epoch,) = self._db.execute("SELECT value FROM meta WHERE name = 'epoch'").fetchone()
        self._offsets = OffsetClock(last_offset(self._db))
        self.idle_head = last_offset(self._db)
        """A recent offset, higher than all that were committed before it: the head of a room
        without a log. It changes at most every ten seconds, so that subscribers of a quiet room
        cannot see when others publish."""

    def write(
        self,
        calls: Sequence[Sequence[Publication]],
        acks: Mapping[AckKey, Pending],
        counts: Mapping[int, Pending],
        sweep: int,
    ) -> list[list[InsertResult]]:
        """Write publications, acks and counts, and delete expired rows, in one transaction.

        Args:
            calls: groups of publications; the result has the same shape.
            acks: acknowledged offsets.
            counts: number of subscribers that received the entry, by its offset.
            sweep: most expired entries, and most expired ids, that are deleted.

        Raises:
            sqlite3.Error: nothing was written.
        """
        with self._transaction():
            idle_head = self._next_idle_head()
            publications = [publication for call in calls for publication in call]
            inserted = iter(
                [
                    result
                    for start in range(0, len(publications), MAX_ROWS)
                    for result in self._insert(publications[start : start + MAX_ROWS])
                ]
            )
            results = [list(islice(inserted, len(call))) for call in calls]
            self._db.executemany(
                "UPDATE room SET acked_offset = max(acked_offset, ?) WHERE name = ?",
                [(offset, room) for (room, device), (offset,) in acks.items() if device is None],
            )
            self._store_devices(
                [(room, device, offset) for (room, device), (offset,) in acks.items() if device]
            )
            self._db.executemany(
                "UPDATE dedupe SET broadcast_count = ? WHERE offset = ?",
                [(count, offset) for offset, (count,) in counts.items()],
            )
            Deletion(self._db, self._rooms).sweep(self._retention, self._file.now(), sweep)
            clock = self._file.now()
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'clock'", (clock,))
        self._saved_clock = clock
        self.idle_head = idle_head  # only once it is in the file
        return results

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
                if shutil.disk_usage(self._file.path.parent).free > _AMPLE_FACTOR * size:
                    return
        with self._transaction():
            self._db.execute("REPLACE INTO meta VALUES ('trial', zeroblob(?))", (size,))
        with self._transaction():
            self._db.execute("DELETE FROM meta WHERE name = 'trial'")

    def _next_idle_head(self) -> int:
        """Return the head of rooms without a log. Store a new one if it is old."""
        last, now = last_offset(self._db), self._offsets.now()
        if now < self.idle_head + _IDLE_HEAD_INTERVAL_US:
            return self.idle_head
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
        if now - self._saved_clock >= _CLOCK_INTERVAL_S and self._holds_anything():
            return True
        for query in (
            "SELECT expires_at FROM entry ORDER BY expires_at LIMIT 1",
            "SELECT expires_at FROM dedupe ORDER BY expires_at LIMIT 1",
            "SELECT expires_at FROM job ORDER BY expires_at LIMIT 1",
        ):
            oldest = self._db.execute(query).fetchone()
            if oldest is not None and oldest[0] <= now:
                return True
        return False

    def _holds_anything(self) -> bool:
        (answer,) = self._db.execute(
            "SELECT EXISTS (SELECT 1 FROM entry) OR EXISTS (SELECT 1 FROM dedupe)"
            " OR EXISTS (SELECT 1 FROM device) OR EXISTS (SELECT 1 FROM job)"
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

    def _checkpoint_over(self, wal_bytes: int) -> None:
        if self._file.wal_bytes > wal_bytes:
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
        known = self._find_duplicates(keys, now)
        jobs = JobTable(self._db, self._retention, now)
        results, entries, ids = [], [], []
        offset = last_offset(self._db)
        for room, key, publication in zip(rooms, keys, publications, strict=True):
            duplicate = known.get(key)
            if duplicate is not None:
                results.append(duplicate)
                continue
            offset = self._offsets.next(offset)
            expires_at = now + self._retention.age_s(room.name)
            if publication.fold is None:
                entries.append((offset, room.id, expires_at, publication.text))
                room.pending_growth += 1
                result = InsertResult(offset, duplicate=False, count=0)
            else:
                at = (offset, now, expires_at)
                result = self._fold(room, publication, publication.fold, at, jobs)
            results.append(result)
            if publication.job is not None and result.is_new and not is_control_room(room.name):
                self._apply_job(room, publication.job, jobs)
            if publication.fold is None or (publication.fold.keeps_id and result.is_new):
                ids.append((offset, *key, now + self._retention.dedupe_window_s))
                known[key] = InsertResult(offset, duplicate=True, count=0)
        execute_values(
            self._db, "INSERT INTO entry (offset, room_id, expires_at, text) VALUES {}", entries
        )
        execute_values(
            self._db,
            "INSERT OR REPLACE INTO dedupe (offset, room_id, id, expires_at) VALUES {}",
            ids,
        )
        self._update_counts(rooms)
        return results

    def _fold(
        self,
        room: CachedRoom,
        publication: Publication,
        fold: Fold,
        at: tuple[int, float, float],
        jobs: JobTable,
    ) -> InsertResult:
        """Fold a publication into the entry of its key.

        Args:
            at: the offset, the time, and when the entry expires.
        """

        def run_has_ended(key: str) -> bool:
            run_id = run_of_key(key)
            return run_id is not None and jobs.has_ended(room.name, run_id)

        placed = KeyTable(self._db).write(room.id, publication, *at, run_has_ended)
        if isinstance(placed, Conflict):
            return InsertResult(0, duplicate=False, count=0, conflict=placed)
        if isinstance(placed, int):
            return InsertResult(placed, duplicate=True, count=0)
        if placed.effect is Effect.BEGIN:
            room.pending_growth += 1
        return InsertResult(at[0], duplicate=False, count=0, fold=fold.placed_at(placed.offset))

    def _apply_job(self, room: CachedRoom, job: JobEvent, jobs: JobTable) -> None:
        """Change the record of a job, and end the keys of a run that has ended."""
        jobs.apply(room.name, job)
        if job.is_ending:
            for key in job.run_keys:
                KeyTable(self._db).end(room.id, key)

    def _find_duplicates(
        self, keys: Sequence[tuple[int, str]], now: float
    ) -> dict[tuple[int, str], InsertResult]:
        """Return the keys that are in the file already, with the result of their first publish."""
        rows = execute_values(
            self._db,
            "SELECT room_id, id, offset, broadcast_count, expires_at FROM (VALUES {}) AS requested"
            # CROSS JOIN fixes the order: the reverse order would scan the whole table.
            " CROSS JOIN dedupe ON room_id = requested.column1 AND id = requested.column2",
            keys,
        )
        return {
            (room, id): InsertResult(offset, duplicate=True, count=count)
            for room, id, offset, count, expires_at in rows
            if expires_at > now
        }

    def _update_counts(self, rooms: Iterable[CachedRoom]) -> None:
        grown = [room for room in dict.fromkeys(rooms) if room.pending_growth]
        execute_values(
            self._db,
            "UPDATE room SET entry_count = entry_count + growth.column2"
            " FROM (VALUES {}) AS growth WHERE id = growth.column1",
            [(room.id, room.pending_growth) for room in grown],
        )
        for room in grown:
            room.entry_count += room.pending_growth
            # A few at a time, so that a retention that was lowered does not cause a stall.
            surplus = min(
                room.entry_count - self._retention.count_of(room.name),
                room.pending_growth + _EXTRA_DELETES,
            )
            room.pending_growth = 0
            if surplus > 0:
                Deletion(self._db, self._rooms).delete_oldest(room, surplus)

    def _store_devices(self, acks: Sequence[tuple[Room, str, int]]) -> None:
        """Store the acks of devices. Times differ by a microsecond, to preserve their order."""
        now = self._file.now()
        self._db.executemany(
            "INSERT INTO device (room, name, acked_offset, connected_at) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET acked_offset = max(acked_offset, excluded.acked_offset),"
            " connected_at = excluded.connected_at",
            [(*ack, now + number * 1e-6) for number, ack in enumerate(acks)],
        )
        self._db.executemany(
            "DELETE FROM device WHERE room = ? AND name NOT IN"
            " (SELECT name FROM device WHERE room = ? ORDER BY connected_at DESC LIMIT ?)",
            [(room, room, MAX_DEVICES) for room in {room for room, _, _ in acks}],
        )
