"""Delete rows of the SQLite file: entries over a room's limit, and what has expired."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ..base import DEVICE_AGE_S, Retention
from .database import trimmed_key
from .jobs import JobTable
from .keys import KeyTable
from .room_cache import CachedRoom, RoomCache


class Deletion:
    """Deletes rows, within the transaction of the caller."""

    def __init__(self, db: sqlite3.Connection, rooms: RoomCache) -> None:
        """
        Args:
            db: the connection of the writer.
            rooms: its cache, whose counts are kept correct.
        """
        self._db = db
        self._rooms = rooms

    def delete_oldest(self, room: CachedRoom, count: int) -> None:
        """Delete the oldest entries of a room."""
        oldest = self._db.execute(
            "SELECT offset, room_id, fold_id FROM entry WHERE room_id = ? ORDER BY offset LIMIT ?",
            (room.id, count),
        ).fetchall()
        self._delete(oldest)

    def _delete(self, entries: Sequence[tuple[int, int, int | None]]) -> None:
        self._db.executemany("DELETE FROM entry WHERE offset = ?", [(e[0],) for e in entries])
        if keys := [key for _, _, key in entries if key is not None]:
            KeyTable(self._db).delete(keys)
        self._db.executemany(
            "UPDATE room SET entry_count = entry_count - 1,"
            " trimmed_offset = max(trimmed_offset, ?) WHERE id = ?",
            [(offset, id) for offset, id, _ in entries],
        )
        for _, id, _ in entries:
            self._rooms.decrement(id)

    def sweep(self, retention: Retention, now: float, limit: int) -> None:
        """Delete what has expired.

        Args:
            retention: how long records of jobs are kept.
            now: the time of the store's clock in seconds.
            limit: most entries, most ids, and most records that are deleted.
        """
        execute = self._db.execute
        entries = execute(
            "SELECT offset, room_id, fold_id FROM entry WHERE expires_at <= ?"
            " ORDER BY expires_at LIMIT ?",
            (now, limit),
        ).fetchall()
        self._delete(entries)
        ids = execute(
            "SELECT offset, room_id FROM dedupe WHERE expires_at <= ? ORDER BY expires_at LIMIT ?",
            (now, limit),
        ).fetchall()
        self._db.executemany("DELETE FROM dedupe WHERE offset = ?", [(i[0],) for i in ids])
        execute(
            "DELETE FROM device WHERE (room, name) IN"
            " (SELECT room, name FROM device WHERE connected_at <= ?"
            " ORDER BY connected_at LIMIT ?)",
            (now - DEVICE_AGE_S, limit),
        )
        JobTable(self._db, retention, now).delete_expired(limit)
        for room in {row[1] for row in (*entries, *ids)}:
            deleted = execute(
                "DELETE FROM room WHERE id = ? AND entry_count = 0"
                " AND NOT EXISTS (SELECT 1 FROM dedupe WHERE room_id = room.id)"
                " RETURNING trimmed_offset, name",
                (room,),
            ).fetchone()
            if deleted is not None:
                trimmed, name = deleted
                self._rooms.remove(room)
                execute(
                    "UPDATE meta SET value = max(value, ?) WHERE name = ?",
                    (trimmed, trimmed_key(name)),
                )
