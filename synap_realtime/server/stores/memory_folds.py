"""The keys of one room of the memory store. See ``folds.py``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from sys import getsizeof

from ...protocol.folding import MAX_ATTEMPT, Fold, Mode
from .base import Entry
from .folds import (
    IDLE_KEY_S,
    MAX_OPEN_KEYS,
    MAX_PAGE_BYTES,
    TOO_MANY_KEYS,
    Conflict,
    Effect,
    PieceText,
    Placement,
    Repeated,
    expand,
    place_write,
    utf8_size,
)

_KEY_BYTES = 600  # measured memory of a key beside its text, with its entries in the tables


@dataclass(slots=True)
class Key:
    """See :class:`folds.KeyFields`.

    Attributes:
        name: the key.
        offset: the offset of its entry in the log.
        written_at: when that was written.
        bytes: memory that it takes.
    """

    name: str
    mode: Mode
    attempt: int = 0
    text: PieceText = field(default_factory=PieceText)
    size: int = 0
    is_closed: bool = False
    offset: int = 0
    written_at: float = 0.0
    bytes: int = 0

    @property
    def length(self) -> int:
        return self.text.length


class FoldedKeys:
    """The keys of a room, each with the entry that its writes were folded into.

    Attributes:
        bytes: memory that they take.
        left_offsets: offsets that entries had before a later write, and whose ids are kept.
    """

    __slots__ = ("_by_name", "_by_offset", "_open", "bytes", "left_offsets")

    def __init__(self) -> None:
        self.bytes = 0
        self.left_offsets: set[int] = set()
        self._by_name: dict[str, Key] = {}
        self._by_offset: dict[int, Key] = {}
        self._open: OrderedDict[str, Key] = OrderedDict()  # the least recently written first

    def offset_of(self, name: str) -> int:
        """Return the offset of the entry of a key that is known."""
        return self._by_name[name].offset

    def forget_left(self, offset: int) -> bool:
        """Forget an offset whose id is no longer kept. Return whether its entry has left it."""
        if offset not in self.left_offsets:
            return False
        self.left_offsets.remove(offset)
        return True

    def place(self, fold: Fold, text: str, now: float) -> Placement | Repeated | Conflict:
        """Return what a write does.

        Args:
            fold: the write.
            text: the notification as JSON.
            now: the time in seconds.
        """
        key = self._by_name.get(fold.key)
        placement = place_write(key, fold, text, (key.text if key else PieceText()).read)
        begins = isinstance(placement, Placement) and placement.effect is Effect.BEGIN
        if begins and not fold.final and len(self._open) >= MAX_OPEN_KEYS:
            idle_longest = next(iter(self._open.values()))
            if idle_longest.written_at + IDLE_KEY_S > now:
                return TOO_MANY_KEYS
            self._close(idle_longest)
        return placement

    def write(self, fold: Fold, placement: Placement, offset: int, now: float) -> int | None:
        """Store a write. Return the offset of the entry that it replaces, if it replaces one.

        Args:
            fold: the write.
            placement: what it does: see :meth:`place`.
            offset: the offset of its entry.
            now: the time in seconds.
        """
        key, replaced = self._by_name.get(fold.key), None
        if key is None or placement.effect is Effect.BEGIN:
            key = self._by_name[fold.key] = Key(fold.key, fold.mode)
        else:
            replaced = key.offset
            del self._by_offset[replaced]
            if placement.effect is Effect.RESTART:
                key.text = PieceText()
        key.text.append(fold.piece)
        key.attempt, key.size = fold.attempt, placement.size
        key.offset, key.written_at = offset, now
        self._by_offset[offset] = self._open[key.name] = key
        self._open.move_to_end(key.name)
        if fold.final:
            self._close(key)
        self._count(key, _KEY_BYTES + sum([getsizeof(chunk) for chunk in key.text.chunks()]))
        return replaced

    def text_of(self, name: str) -> str | None:
        """Return the whole text of a key; None if there is no such key of the mode ``append``."""
        key = self._by_name.get(name)
        return key.text.whole() if key is not None and key.mode == "append" else None

    def end(self, name: str) -> None:
        """Close a key for good, if there is one: its run has ended."""
        if (key := self._by_name.get(name)) is not None:
            self._close(key)
            key.attempt = MAX_ATTEMPT

    def remove(self, offset: int) -> None:
        """Forget the key whose entry was deleted from the log, if the entry belongs to one."""
        key = self._by_offset.pop(offset, None)
        if key is not None:
            self._close(key)
            self._count(key, 0)
            if self._by_name.get(key.name) is key:
                del self._by_name[key.name]

    def expand(self, entry: Entry) -> Entry:
        """Return an entry of the log with the whole text of its key."""
        fold = entry.fold
        if fold is None or fold.mode == "replace":
            return entry
        key = self._by_offset[entry.cursor.offset]
        text, fold = expand(entry.text, key.text.whole(), key.size)
        return Entry(entry.cursor, text, utf8_size(text), fold)

    def expand_page(self, entries: Sequence[Entry]) -> list[Entry]:
        """Return entries of the log with their whole texts, up to :data:`MAX_PAGE_BYTES`."""
        expanded, size = [], 0
        for entry in entries:
            expanded.append(self.expand(entry))
            if entry.fold is not None:
                size += expanded[-1].size
                if size >= MAX_PAGE_BYTES:
                    break
        return expanded

    def _close(self, key: Key) -> None:
        key.is_closed = True
        if self._open.get(key.name) is key:
            del self._open[key.name]

    def _count(self, key: Key, size: int) -> None:
        self.bytes += size - key.bytes
        key.bytes = size
