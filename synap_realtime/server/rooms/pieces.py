"""The pieces of growing texts on their way to subscribers: joined, cut, numbered and paced.

See PROTOCOL.md, "Folding". A piece is an entry whose ``fold`` has the mode ``append``.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

import pydantic_core

from ...protocol.folding import Fold
from ...protocol.rooms import Room
from ..stores.base import DeliveryHandler, Entry
from ..stores.folds import utf8_size

MAX_PENDING_BYTES = 64 * 1024
"""Pending pieces of a room are delivered early when they have this size."""

MAX_STREAMS = 10_000
"""The texts of a node whose pace is known. Above it, the one without a piece for longest is
forgotten: its next piece is delivered without a delay."""


def can_join(first: Entry, second: Entry) -> bool:
    """Return whether the second entry is the piece that follows the first one."""
    before, after = first.fold, second.fold
    return (
        before is not None
        and after is not None
        and before.mode == after.mode == "append"
        and before.key == after.key
        and before.attempt == after.attempt
        and not before.final
        and after.offset == (before.offset or 0) + len(before.piece)
    )


def join(entries: Sequence[Entry]) -> Entry:
    """Join pieces of which each follows the one before it: see :func:`can_join`.

    The result has the offset and the index of the first piece. Everything else is of the last one.
    """
    if len(entries) == 1:
        return entries[0]
    first, last = _fold_of(entries[0]), _fold_of(entries[-1])
    piece = "".join([_fold_of(entry).piece for entry in entries])
    size = sum([_fold_of(entry).size for entry in entries])
    fold = last._replace(offset=first.offset, piece=piece, size=size)
    parts = tuple(part for entry in entries for part in _parts_of(entry))
    return _rebuild(entries[-1], fold, _data_of(entries[0]).get("index"), parts)


Queued = tuple[Entry, float]
"""An entry in a backlog, and the time of its publish."""


def fold_queue(queue: Collection[Queued], *, keeps_parts: bool) -> list[Queued]:
    """Join the pieces of texts in a queue, and drop what a later entry of it replaces.

    A final entry is not replaced, because it stays in the log, too.

    Args:
        queue: entries in the order of the log.
        keeps_parts: joined entries can be cut. Otherwise they only show that they were joined.
    """
    latest = {
        entry.fold.key: entry
        for entry, _ in queue
        if entry.fold is not None and entry.fold.mode == "replace"
    }
    runs: list[tuple[list[Entry], float]] = []
    for entry, published_at in queue:
        if _is_replaced(entry, latest):
            continue
        if runs and can_join(runs[-1][0][-1], entry):
            runs[-1][0].append(entry)
        else:
            runs.append(([entry], published_at))
    folded = [(join(entries), published_at) for entries, published_at in runs]
    if keeps_parts:
        return folded
    return [
        (entry._replace(parts=entry.parts[:1]) if entry.parts else entry, published_at)
        for entry, published_at in folded
    ]


def _is_replaced(entry: Entry, latest: Mapping[str, Entry]) -> bool:
    fold = entry.fold
    if fold is None or fold.mode != "replace" or fold.final:
        return False
    return latest[fold.key] is not entry


def cut(entry: Entry, after: int) -> Entry:
    """Return the part of an entry that a subscriber does not have.

    Args:
        entry: an entry after this offset.
        after: the offset in the log up to which the subscriber has received everything.
    """
    first = bisect_right(entry.parts, after, key=itemgetter(0))
    if not first:
        return entry
    fold, parts = _fold_of(entry), entry.parts[first:]
    begin = parts[0][1]
    piece = fold.piece[begin - (fold.offset or 0) :]
    size = len(pydantic_core.to_json(piece)) - 2
    fold = fold._replace(offset=begin, piece=piece, size=size)
    return _rebuild(entry, fold, None, parts)


class PieceNumbers:
    """Numbers the pieces of one connection from the text that was replayed to it.

    A client of version 1 counts pieces by ``data.index``: it receives a replayed text as the piece
    with the index 0. The publisher, which counts differently, has numbered those that follow.
    """

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def __len__(self) -> int:
        """Return how many texts are numbered."""
        return len(self._next)

    def count_from(self, entry: Entry) -> None:
        """Number the pieces that follow an entry, which is about to be written."""
        fold = entry.fold
        if fold is not None and fold.mode == "append":
            index = _data_of(entry).get("index")
            if isinstance(index, int) and not fold.final:
                self._next[fold.key] = index + 1
            else:
                self._next.pop(fold.key, None)

    def number(self, entry: Entry) -> Entry:
        """Return a live entry with its number."""
        fold = entry.fold
        if fold is None or fold.mode != "append" or fold.key not in self._next:
            return entry
        if _begins_text(entry):  # again, as it does for everyone
            del self._next[fold.key]
            return entry
        index = self._next[fold.key]
        if fold.final:
            del self._next[fold.key]
        else:
            self._next[fold.key] = index + 1
        return with_index(entry, index)


def with_index(entry: Entry, index: int) -> Entry:
    """Return a piece with another ``data.index``, if it has one."""
    return _rebuild(entry, _fold_of(entry), index, entry.parts)


def _rebuild(entry: Entry, fold: Fold, index: object, parts: tuple[tuple[int, int], ...]) -> Entry:
    wire = pydantic_core.from_json(entry.text)
    data = wire["data"]
    data["delta"] = fold.piece
    if index is not None and "index" in data:
        data["index"] = index
    wire["fold"]["offset"] = fold.offset
    text = pydantic_core.to_json(wire).decode()
    return Entry(entry.cursor, text, utf8_size(text), fold, parts)


def _data_of(entry: Entry) -> dict[str, Any]:
    data: dict[str, Any] = pydantic_core.from_json(entry.text)["data"]
    return data


def _fold_of(entry: Entry) -> Fold:
    assert entry.fold is not None  # noqa: S101 - a piece has one
    return entry.fold


def _begins_text(entry: Entry) -> bool:
    """Return whether a piece is the first one. Those after an empty one have the offset 0, too."""
    return not _fold_of(entry).offset and not _data_of(entry).get("index")


def _parts_of(entry: Entry) -> tuple[tuple[int, int], ...]:
    return entry.parts or ((entry.cursor.offset, _fold_of(entry).offset or 0),)


class _Stream:
    """A text that grows.

    Attributes:
        attempt: the attempt that writes it.
        sent_at: when a piece was delivered last, in seconds of the loop's clock.
        next_index: the index of the next entry; None while all were delivered as published.
    """

    __slots__ = ("attempt", "next_index", "sent_at")

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.sent_at = float("-inf")
        self.next_index: int | None = None

    def emit(self, entries: Sequence[Entry]) -> Entry:
        """Return the entry to deliver for pieces."""
        entry = join(entries)
        if len(entries) == 1 and self.next_index is None and not entry.parts:
            return entry
        if self.next_index is not None:
            entry = with_index(entry, self.next_index)
        index = _data_of(entry).get("index")
        self.next_index = index + 1 if isinstance(index, int) else None
        return entry


class _Pending:
    """Pieces of one text that wait for the end of the interval."""

    __slots__ = ("entries", "published_at", "size", "stream", "timer")

    def __init__(
        self, stream: _Stream, published_at: float | None, timer: asyncio.TimerHandle
    ) -> None:
        self.stream = stream
        self.entries: list[Entry] = []
        self.published_at = published_at
        self.size = 0
        self.timer = timer


class PiecePacer:
    """Delivers at most one piece of a text in each interval, on the way from the log to the hub.

    The first piece is delivered immediately. Those that follow within the interval are joined and
    delivered at its end, or before any other entry of the room, so that the order is that of the
    log. What waits is in the log already.

    Attributes:
        pending: the pieces that wait, by room.
    """

    def __init__(
        self,
        broadcast: DeliveryHandler,
        subscriber_count: Callable[[Room], int],
        interval_s: float,
    ) -> None:
        """
        Args:
            broadcast: delivers an entry to the subscribers of a room.
            subscriber_count: returns how many a room has.
            interval_s: the interval in seconds; 0 delivers every piece immediately.
        """
        self._broadcast = broadcast
        self._subscriber_count = subscriber_count
        self._interval_s = interval_s
        self._streams: OrderedDict[tuple[Room, str], _Stream] = OrderedDict()
        self.pending: dict[Room, _Pending] = {}

    def deliver(self, room: Room, entry: Entry, published_at: float | None) -> int:
        """Deliver an entry, now or at the end of the interval. See :data:`base.DeliveryHandler`."""
        fold = entry.fold
        if fold is None or fold.mode == "replace" or not self._interval_s:
            self.flush(room)
            return self._broadcast(room, entry, published_at)
        count = self._subscriber_count(room)
        if not count:
            self.flush(room)
            self._streams.pop((room, fold.key), None)
            return self._broadcast(room, entry, published_at)
        return self._pace(room, entry, fold, published_at, count)

    def _pace(
        self, room: Room, entry: Entry, fold: Fold, published_at: float | None, count: int
    ) -> int:
        pending = self.pending.get(room)
        if pending is not None and not can_join(pending.entries[-1], entry):
            self.flush(room)
            pending = None
        stream = self._stream(room, entry, fold)
        if pending is None:
            loop = asyncio.get_running_loop()
            due_at = stream.sent_at + self._interval_s
            if fold.final or loop.time() >= due_at:
                if not fold.final:
                    stream.sent_at = loop.time()
                return self._broadcast(room, stream.emit([entry]), published_at)
            timer = loop.call_at(due_at, self.flush, room)
            pending = self.pending[room] = _Pending(stream, published_at, timer)
        pending.entries.append(entry)
        pending.size += entry.size
        if fold.final or pending.size >= MAX_PENDING_BYTES:
            self.flush(room)
        return count

    def flush(self, room: Room) -> None:
        """Deliver the pending pieces of a room."""
        pending = self.pending.pop(room, None)
        if pending is not None:
            pending.timer.cancel()
            pending.stream.sent_at = asyncio.get_running_loop().time()
            self._broadcast(room, pending.stream.emit(pending.entries), pending.published_at)

    def flush_all(self) -> None:
        """Deliver the pending pieces of all rooms."""
        for room in tuple(self.pending):
            self.flush(room)

    def _stream(self, room: Room, entry: Entry, fold: Fold) -> _Stream:
        stream = self._streams.get((room, fold.key))
        if stream is None or stream.attempt != fold.attempt or _begins_text(entry):
            stream = self._streams[room, fold.key] = _Stream(fold.attempt)
        self._streams.move_to_end((room, fold.key))
        if fold.final:
            del self._streams[room, fold.key]
        if len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)
        return stream
