"""What a store promises: the log of each room, the ids it has seen, the received marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import SynapRealtimeError
from ...protocol.cursor import Cursor
from ...protocol.rooms import Room


class StoreUnavailableError(SynapRealtimeError):
    """The store cannot keep or read a notification now; the client hears 503 and tries again."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a room's log reaches back: so many notifications and so many seconds."""

    count: int = 1000
    user_age_s: float = 24 * 3600.0
    request_age_s: float = 3600.0
    dedupe_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One notification in a room's log.

    Attributes:
        offset: its position; grows within a room, never reused in a store's life.
        text: the JSON as every subscriber gets it, ``room`` and ``cursor`` included.
        size: its bytes in UTF-8.
    """

    offset: int
    text: str
    size: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a publish did. For a duplicate, what the first one did."""

    id: str
    cursor: Cursor
    broadcast_count: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Page:
    """A stretch of a room's log, oldest first.

    Attributes:
        entries: empty when nothing comes after the asked position.
        recovered: False if the asked position is not in the log any more, or is of another log:
            then the page begins with the oldest that is retained.
    """

    entries: Sequence[Entry]
    recovered: bool


Deliver = Callable[[Entry], int]
"""Hands an entry to a room's listeners, without waiting; returns to how many."""


class Store(Protocol):
    """Rooms' logs. One instance serves one room server.

    *Atomic*: a publish is kept, numbered and remembered by its id as one. *Ordered*: offsets of a
    room grow in the order of publishing, and ``deliver`` is called in that order. *Empty*: a room
    that nobody has published to is a room with an empty log; no call creates or fails on it.
    """

    def head(self) -> Cursor:
        """The position after everything that is published now, in any room."""
        ...

    def earliest(self) -> Cursor:
        """The position before everything: offset 0."""
        ...

    async def publish(
        self, room: Room, id: str, notification: dict[str, Any], deliver: Deliver
    ) -> Receipt:
        """Keep a notification, then hand it to ``deliver`` once.

        The same ``id`` in the same room within the dedupe window is kept and delivered once; later
        calls answer with the first result and ``duplicate``.

        Raises:
            StoreUnavailableError: nothing was kept and nothing delivered.
        """
        ...

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        """Up to ``limit`` entries after a position. ``limit`` is at least 1."""
        ...

    async def received_mark(self, room: Room) -> Cursor | None:
        """How far the room's listeners have come; None if nobody ever received anything."""
        ...

    async def set_received_mark(self, room: Room, position: Cursor) -> None:
        """Move the mark forward; a position behind it changes nothing."""
        ...

    async def close(self) -> None:
        """Let go of what the store holds. No call follows."""
        ...
