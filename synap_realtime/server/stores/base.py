"""What a store promises: the log of each room, the ids it has seen, the received marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from ...errors import SynapRealtimeError
from ...protocol.cursor import Cursor
from ...protocol.rooms import Room, is_control_room, is_request_room

OPTION = "--store (SYNAP_REALTIME_STORE)"
"""What names the store, for errors."""


class StoreUnavailableError(SynapRealtimeError):
    """The store cannot keep or read now; the client hears 503 and tries again."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a room's log reaches back: so many notifications and so many seconds.

    ``max_memory_bytes`` is what all rooms of the memory store take together, about: over it, the
    oldest notifications of all go first.

    Control rooms (``synap_…``), such as the revocations', are exempt from all of these. They have
    an age and a bound of their own, ``control_age_s`` and ``control_count``, so that no number of
    notifications, and no setting for them, makes the server forget a revocation.
    """

    count: int = 1000
    max_age_s: float = 24 * 3600.0
    request_max_age_s: float = 3600.0
    dedupe_window_s: float = 300.0
    max_memory_bytes: int = 512 * 1024 * 1024
    control_age_s: float = 24 * 3600.0
    control_count: int = 100_000

    def count_of(self, room: Room) -> int:
        """How many notifications the room keeps."""
        return self.control_count if is_control_room(room) else self.count

    def age_s(self, room: Room) -> float:
        """For how many seconds the room keeps a notification."""
        if is_control_room(room):
            return self.control_age_s
        return self.request_max_age_s if is_request_room(room) else self.max_age_s


class Publication(NamedTuple):
    """One notification for one room, on its way into the log.

    Attributes:
        id: the notification's.
        text: its JSON object, with at least one member, without ``room`` and ``cursor``.
    """

    room: Room
    id: str
    text: str


class Entry(NamedTuple):
    """One notification in a room's log.

    Attributes:
        cursor: its position; ``offset`` grows within a room, never reused in a store's life. It
            tells a reader of the room nothing about other rooms: it is no count of theirs.
        text: the JSON as every subscriber gets it, ``room`` and ``cursor`` included.
        size: its bytes in UTF-8.
    """

    cursor: Cursor
    text: str
    size: int


def make_entry(room: Room, cursor: Cursor, text: str) -> Entry:
    """A publication's text with its place in the log. (Neither part can hold a quote.)"""
    full = f'{text[:-1]},"room":"{room}","cursor":"{cursor.epoch}-{cursor.offset}"}}'
    return Entry(cursor, full, len(full) if full.isascii() else len(full.encode()))


class PublishResult(NamedTuple):
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
        recovered: False if something after the asked position may be gone, or the position is of
            another log: then the page begins with the oldest that is retained. True is a promise.
    """

    entries: Sequence[Entry]
    recovered: bool


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What a store takes: bytes of memory or disk, rooms that it knows, and how many notifications
    it has let go before their time, for want of room."""

    bytes: int
    rooms: int
    evicted: int = 0


MAX_DEVICES = 64
"""A room knows the marks of so many; the one that has not come for longest is forgotten first."""

DEVICE_AGE_S = 30 * 86_400.0
"""A device that has not come for so long is a new one."""

DeliveryHandler = Callable[[Room, Entry], int]
"""Hands an entry to a room's listeners, without waiting; returns to how many. Never raises."""


class Store(Protocol):
    """Rooms' logs. One instance serves one room server, on one event loop.

    *Atomic*: when a call fails, none of its publications was kept; each is numbered and remembered
    by its id as it is kept. *Ordered*: offsets of a room grow in the order of the calls,
    and ``deliver`` is called in that order, after the entry is kept: what a listener saw is in the
    log. *Zero*: offset 0 comes before every entry and is the position of none; a room that nobody
    has published to has an empty log, and no call creates it or fails on it.

    A store logs when it goes away and when it is back, once each; its callers need not.
    """

    @property
    def description(self) -> str:
        """One line for the operator: which store, and what it means for a crash."""
        ...

    def earliest(self) -> Cursor:
        """The position before everything: offset 0."""
        ...

    async def head(self, room: Room) -> Cursor:
        """A position that everything delivered so far is not after; never offset 0.

        It says nothing of other rooms: neither how much is published there, nor when.

        Raises:
            StoreUnavailableError: it cannot be told now.
        """
        ...

    async def publish(
        self, publications: Sequence[Publication], deliver: DeliveryHandler
    ) -> Sequence[PublishResult]:
        """Keep publications, then hand each to ``deliver`` once; one receipt for each, in order.

        The same ``id`` in the same room within the dedupe window is kept and delivered once; later
        calls answer with the first result and ``duplicate``. Cancelling the call undoes nothing.

        Raises:
            StoreUnavailableError: nothing was kept and nothing delivered.
        """
        ...

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        """Up to ``limit`` entries after a position. ``limit`` is at least 1.

        Raises:
            StoreUnavailableError: the log cannot be read now.
        """
        ...

    async def get_ack(self, room: Room, device: str | None = None) -> Cursor | None:
        """How far a device has come; of one that is not known, and without one, how far the room's
        listeners have; None if nobody ever received anything.

        Raises:
            StoreUnavailableError: it cannot be read now.
        """
        ...

    def register_device(self, room: Room, device: str, position: Cursor) -> None:
        """Know a device from now on: it has what comes before a position.

        Otherwise one that heard nothing would later start at the room's mark, and miss what another
        device took. A room knows :data:`MAX_DEVICES`, and each for :data:`DEVICE_AGE_S`.
        """
        ...

    def ack(self, room: Room, position: Cursor, device: str | None = None) -> None:
        """Move the room's mark forward, and the device's, without waiting; a position behind it
        changes nothing.

        It counts at once and is kept a moment later: a crash may forget the last second's.
        """
        ...

    async def check(self) -> None:
        """See whether a publish would be kept now.

        Raises:
            StoreUnavailableError: it would not.
        """
        ...

    async def usage(self) -> StoreStats:
        """
        Raises:
            StoreUnavailableError: it cannot be told now.
        """
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of what the store holds. No call follows."""
        ...


@runtime_checkable
class ClusterStore(Store, Protocol):
    """A store that several servers share: what is published at one reaches the listeners of all.

    Its epoch is the same everywhere. *Ordered* counts over all servers: each entry of a room
    reaches each server once, in the order of offsets and without a gap: through the ``deliver`` of
    the publish that brought it, or else through :meth:`subscribe`'s. A server that was cut off from
    the store catches up. A receipt's ``broadcast_count`` is of the server that took the publish.
    """

    def subscribe(self, deliver: DeliveryHandler) -> None:
        """Hand on what other servers publish, from the first call of another method on.

        Called once, before any other, maybe outside of the event loop.
        """
        ...
