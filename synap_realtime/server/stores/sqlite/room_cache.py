"""The rooms that were published to recently, as the writer of the SQLite file knows them."""

from __future__ import annotations

import sqlite3

from ....protocol.rooms import Room
from .database import trimmed_key


class CachedRoom:
    """A room in the writer's cache.

    Attributes:
        entry_count: the number of entries in its log.
        pending_growth: entries that were inserted since the number was last written.
    """

    __slots__ = ("entry_count", "id", "name", "pending_growth")

    def __init__(self, id: int, name: Room, entry_count: int) -> None:
        self.id = id
        self.name = name
        self.entry_count = entry_count
        self.pending_growth = 0


class RoomCache:
    """A cache of the rooms that were published to recently."""

    def __init__(self) -> None:
        self._by_name: dict[Room, CachedRoom] = {}
        self._by_id: dict[int, CachedRoom] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, db: sqlite3.Connection, name: Room) -> CachedRoom:
        """Return a room of the file. Create it if it is new."""
        room = self._by_name.get(name)
        if room is None:
            row = db.execute("SELECT id, entry_count FROM room WHERE name = ?", (name,)).fetchone()
            if row is None:
                row = db.execute(
                    "INSERT INTO room (name, trimmed_offset)"
                    " SELECT ?, value FROM meta WHERE name = ? RETURNING id, entry_count",
                    (name, trimmed_key(name)),
                ).fetchone()
            room = CachedRoom(row[0], name, row[1])
            self._by_name[name] = self._by_id[room.id] = room
        return room

    def decrement(self, id: int) -> None:
        if (room := self._by_id.get(id)) is not None:
            room.entry_count -= 1

    def remove(self, id: int) -> None:
        if (room := self._by_id.pop(id, None)) is not None:
            del self._by_name[room.name]

    def clear(self) -> None:
        self._by_name.clear()
        self._by_id.clear()
