"""The keys of all rooms in the SQLite file. See ``stores/folds.py``.

A text is stored in pieces, so that a write does not rewrite it. Small pieces are joined in groups,
so that a text of many pieces is read and deleted quickly.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ....protocol.folding import MAX_ATTEMPT, Fold, Mode
from ....protocol.rooms import Room
from ..base import Publication
from ..folds import (
    IDLE_KEY_S,
    MAX_OPEN_KEYS,
    RUN_HAS_ENDED,
    TOO_MANY_KEYS,
    Conflict,
    Effect,
    Placement,
    Repeated,
    expand,
    place_write,
)

_MAX_LOOSE = 256
"""So many pieces are joined into one row."""


@dataclass(frozen=True, slots=True)
class _Key:
    """A row of ``fold``: see :class:`folds.KeyFields`, and the schema."""

    id: int
    mode: Mode
    attempt: int = 0
    length: int = 0
    size: int = 0
    is_closed: bool = False
    offset: int = 0
    joined_length: int = 0
    loose_count: int = 0


class KeyTable:
    """Writes keys and texts, within the transaction of the caller."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._execute = db.execute

    def write(
        self,
        room: int,
        publication: Publication,
        offset: int,
        now: float,
        expires_at: float,
        run_has_ended: Callable[[str], bool],
    ) -> Placement | int | Conflict:
        """Store a publication with ``fold``, instead of the entry of its key.

        Args:
            room: the id of its room.
            publication: what to store.
            offset: the offset of its entry.
            now: the time of the store's clock in seconds.
            expires_at: when the entry expires.
            run_has_ended: returns whether a key belongs to a run that has ended.

        Returns:
            Where it was stored. The offset of the key's entry, if its piece is there already.

        Raises:
            sqlite3.Error: nothing was stored.
        """
        fold = publication.fold
        assert fold is not None  # noqa: S101 - see above
        key = self._find(room, fold.key, now)
        # The end of a run closes its keys, so that the run of an open key has not ended.
        if (key is None or key.is_closed) and run_has_ended(fold.key):
            return RUN_HAS_ENDED

        def read(start: int, end: int) -> str:
            return "" if key is None else self._read(key, start, end)

        placement = place_write(key, fold, publication.text, read)
        if isinstance(placement, Conflict):
            return placement
        if isinstance(placement, Repeated):
            assert key is not None  # noqa: S101 - its text has the piece
            return key.offset
        if placement.effect is Effect.BEGIN:
            if not fold.final and not self._has_space(room, now):
                return TOO_MANY_KEYS
            key = self._create(room, fold)
        else:
            assert key is not None  # noqa: S101 - only BEGIN has none
            self._execute("DELETE FROM entry WHERE offset = ?", (key.offset,))
        if placement.effect is Effect.RESTART:
            self._execute("DELETE FROM piece WHERE fold_id = ?", (key.id,))
        joined_length, loose_count = self._append(key, fold.piece, placement)
        self._execute(
            "UPDATE fold SET attempt = ?, length = ?, size = ?, is_closed = ?, offset = ?,"
            " written_at = ?, joined_length = ?, loose_count = ? WHERE id = ?",
            (
                *(fold.attempt, placement.length, placement.size, fold.final, offset),
                *(now, joined_length, loose_count, key.id),
            ),
        )
        self._execute(
            "INSERT INTO entry (offset, room_id, expires_at, text, fold_id) VALUES (?, ?, ?, ?, ?)",
            (offset, room, expires_at, publication.text, key.id),
        )
        return placement

    def end(self, room: int, name: str) -> None:
        """Close a key for good, if there is one: its run has ended.

        Raises:
            sqlite3.Error: it could not be closed.
        """
        self._execute(
            "UPDATE fold SET is_closed = 1, attempt = ? WHERE room_id = ? AND key = ?",
            (MAX_ATTEMPT, room, name),
        )

    def delete(self, ids: Iterable[int]) -> None:
        """Delete the keys of entries that are deleted, with their texts.

        Raises:
            sqlite3.Error: they could not be deleted.
        """
        for id in ids:
            self._execute("DELETE FROM piece WHERE fold_id = ?", (id,))
            self._execute("DELETE FROM fold WHERE id = ?", (id,))

    def _find(self, room: int, name: str, now: float) -> _Key | None:
        """Return a key whose entry is in the log; of several of this name, the last."""
        row = self._execute(
            "SELECT fold.id, mode, attempt, length, size, is_closed, fold.offset, joined_length,"
            " loose_count FROM fold JOIN entry ON entry.offset = fold.offset"
            " WHERE fold.room_id = ? AND key = ? AND expires_at > ?",
            (room, name, now),
        ).fetchone()
        return None if row is None else _Key(*row)

    def _has_space(self, room: int, now: float) -> bool:
        """Return whether a room can open another key. Close one that is idle if that helps."""
        rows = self._execute(
            "SELECT fold.id, written_at FROM fold JOIN entry ON entry.offset = fold.offset"
            " WHERE fold.room_id = ? AND NOT is_closed AND expires_at > ? ORDER BY written_at",
            (room, now),
        ).fetchall()
        if len(rows) < MAX_OPEN_KEYS:
            return True
        id, written_at = rows[0]
        if written_at + IDLE_KEY_S > now:
            return False
        self._execute("UPDATE fold SET is_closed = 1 WHERE id = ?", (id,))
        return True

    def _create(self, room: int, fold: Fold) -> _Key:
        # The entry of a closed key of this name stays, and keeps its text.
        self._execute("UPDATE fold SET key = NULL WHERE room_id = ? AND key = ?", (room, fold.key))
        row = self._execute(
            "INSERT INTO fold (room_id, key, mode) VALUES (?, ?, ?) RETURNING id",
            (room, fold.key, fold.mode),
        ).fetchone()
        return _Key(row[0], fold.mode)

    def _append(self, key: _Key, piece: str, placement: Placement) -> tuple[int, int]:
        """Store a piece. Return the length of the text in joined rows, and the number of others."""
        joined_length, loose_count = key.joined_length, key.loose_count
        if placement.effect is Effect.RESTART:
            joined_length = loose_count = 0
        if not piece:
            return joined_length, loose_count
        if loose_count == _MAX_LOOSE:
            rows = self._execute(
                "SELECT text FROM piece WHERE fold_id = ? AND start >= ? ORDER BY start",
                (key.id, joined_length),
            ).fetchall()
            self._execute(
                "DELETE FROM piece WHERE fold_id = ? AND start >= ?", (key.id, joined_length)
            )
            self._insert(key, joined_length, "".join(text for (text,) in rows))
            joined_length, loose_count = placement.offset, 0
        self._insert(key, placement.offset, piece)
        return joined_length, loose_count + 1

    def _insert(self, key: _Key, start: int, text: str) -> None:
        self._execute("INSERT INTO piece VALUES (?, ?, ?)", (key.id, start, text))

    def _read(self, key: _Key, start: int, end: int) -> str:
        rows = self._execute(
            "SELECT start, text FROM piece WHERE fold_id = ? AND start < ? AND start >="
            " (SELECT ifnull(max(start), 0) FROM piece WHERE fold_id = ? AND start <= ?)"
            " ORDER BY start",
            (key.id, end, key.id, start),
        ).fetchall()
        text = "".join(text for _, text in rows)
        first = rows[0][0] if rows else 0
        return text[start - first : end - first]


def read_folded(db: sqlite3.Connection, id: int, text: str) -> tuple[str, Fold | None]:
    """Return an entry that belongs to a key, with the whole text.

    Args:
        db: a connection with a snapshot.
        id: the id of the key.
        text: the last write as JSON.

    Raises:
        sqlite3.Error: the file cannot be read now.
    """
    mode, size = db.execute("SELECT mode, size FROM fold WHERE id = ?", (id,)).fetchone()
    if mode == "replace":
        return text, None
    return expand(text, _read_whole(db, id), size)


def read_text(db: sqlite3.Connection, room: Room, name: str, now: float) -> str | None:
    """Return the whole text of a key; None if there is no such key of the mode ``append``.

    Raises:
        sqlite3.Error: the file cannot be read now.
    """
    row = db.execute(
        "SELECT fold.id FROM room JOIN fold ON fold.room_id = room.id AND key = ?"
        " JOIN entry ON entry.offset = fold.offset"
        " WHERE name = ? AND mode = 'append' AND expires_at > ?",
        (name, room, now),
    ).fetchone()
    return None if row is None else _read_whole(db, row[0])


def _read_whole(db: sqlite3.Connection, id: int) -> str:
    rows = db.execute("SELECT text FROM piece WHERE fold_id = ? ORDER BY start", (id,)).fetchall()
    return "".join(piece for (piece,) in rows)
