"""Fan-out: the rooms of this node and their live subscribers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Protocol

from ...protocol.cursor import Cursor
from ...protocol.rooms import Room
from ..stores.base import Entry

_SMALL_ROOM_MAX = 4


class Subscriber(Protocol):
    """One connection's interest in a room. Its methods never block and never raise."""

    def deliver(self, entry: Entry, published_at: float) -> bool:
        """Accept a live entry. Return False if the subscriber is closing.

        Args:
            entry: the notification, already in the room's log.
            published_at: ``time.perf_counter`` when the publish arrived at this node.
        """
        ...

    def join_group(self) -> None:
        """Join the room's fan-out group if this subscriber can share a write.

        Called once the room is large enough for a group.
        """
        ...

    def on_gap(self, position: Cursor) -> None:
        """Let the client know that entries of the room may have been lost.

        Args:
            position: from where the deliveries continue.
        """
        ...


class FanoutGroup(Protocol):
    """Subscribers of a room that share one batched write.

    A subscriber joins by :meth:`Hub.join_group`. It leaves by :meth:`Hub.leave_group` whenever it
    must receive something that the others do not: a replay, a control frame, or nothing because
    its socket is blocked.

    Attributes:
        last_offset: the offset of the last notification that was written to all members.
    """

    last_offset: int

    def __len__(self) -> int: ...

    def flush_pending(self) -> None:
        """Write the frames that are still pending for any member.

        A member whose socket blocks leaves the group.
        """
        ...

    def broadcast(self, entry: Entry) -> bool:
        """Write an entry to every member.

        Members whose socket blocks may leave during the call; none joins.

        Returns:
            False if nothing was written and the entry has to be delivered to each member alone.
        """
        ...

    def disband(self) -> None:
        """Remove every member, by :meth:`Hub.leave_group`."""
        ...


class _LargeRoom:
    """The subscribers of a room that is large enough for a fan-out group."""

    __slots__ = ("group", "ungrouped")

    def __init__(self, subscribers: Iterable[Subscriber]) -> None:
        self.ungrouped = set(subscribers)
        self.group: FanoutGroup | None = None  # the other subscribers

    def __len__(self) -> int:
        return len(self.ungrouped) + (0 if self.group is None else len(self.group))


class Hub:
    """Map each room to its live subscribers. Rooms without subscribers are not kept."""

    def __init__(self, observe: Callable[[float, int], None] = lambda _, __: None) -> None:
        """
        Args:
            observe: called for each notification that has subscribers, with the seconds from the
                arrival of the publish at this node to the end of its fan-out, and with the number
                of subscribers that accepted it.
        """
        self._rooms: dict[Room, tuple[Subscriber, ...] | _LargeRoom] = {}
        self._observe = observe

    def subscribe(self, room: Room, subscriber: Subscriber) -> None:
        """Add a subscriber to a room. Adding it twice has no effect."""
        subscribers = self._rooms.get(room, ())
        if isinstance(subscribers, _LargeRoom):
            subscribers.ungrouped.add(subscriber)
        elif subscriber not in subscribers:
            # A tuple takes a quarter of the memory of a set, and most rooms have one subscriber.
            more = (*subscribers, subscriber)
            if len(more) <= _SMALL_ROOM_MAX:
                self._rooms[room] = more
            else:
                self._rooms[room] = _LargeRoom(more)
                for each in more:
                    each.join_group()

    def unsubscribe(self, room: Room, subscriber: Subscriber) -> None:
        """Remove a subscriber that is in no fan-out group. An unknown one is ignored."""
        subscribers = self._rooms.get(room, ())
        if isinstance(subscribers, _LargeRoom):
            subscribers.ungrouped.discard(subscriber)
            if len(subscribers):
                return
        elif len(subscribers) > 1:
            self._rooms[room] = tuple(each for each in subscribers if each is not subscriber)
            return
        elif subscriber not in subscribers:
            return
        del self._rooms[room]

    def join_group(
        self,
        room: Room,
        subscriber: Subscriber,
        join: Callable[[FanoutGroup | None], FanoutGroup | None],
    ) -> FanoutGroup | None:
        """Move a subscriber to its room's fan-out group.

        Args:
            join: :meth:`Sink.join_group` of the subscriber's connection.

        Returns:
            The group; None if the room is too small for one, or the connection shares no writes.
        """
        subscribers = self._rooms.get(room)
        if not isinstance(subscribers, _LargeRoom):
            return None
        group = join(subscribers.group)
        if group is not None:
            subscribers.group = group
            subscribers.ungrouped.discard(subscriber)
        return group

    def leave_group(self, room: Room, subscriber: Subscriber) -> None:
        """Deliver to a subscriber alone from now on. It has left its fan-out group."""
        subscribers = self._rooms[room]
        assert isinstance(subscribers, _LargeRoom)  # noqa: S101 - only large rooms have a group
        subscribers.ungrouped.add(subscriber)

    def broadcast(self, room: Room, entry: Entry, published_at: float | None) -> int:
        """Deliver an entry to every subscriber of a room. Return how many accepted it.

        Args:
            published_at: ``time.perf_counter`` when the publish arrived at this node; None if
                another node accepted it, and it arrives here now.
        """
        subscribers = self._rooms.get(room)
        if subscribers is None:
            return 0
        if published_at is None:
            published_at = perf_counter()
        if isinstance(subscribers, _LargeRoom):
            count = self._broadcast_to_many(subscribers, entry, published_at)
        else:
            count = 0
            for subscriber in subscribers:
                if subscriber.deliver(entry, published_at):
                    count += 1
        self._observe(perf_counter() - published_at, count)
        return count

    def report_gap(self, room: Room, position: Cursor) -> None:
        """Let all clients of a room know that entries may have been lost.

        Args:
            position: from where the deliveries continue.
        """
        subscribers = self._rooms.get(room, ())
        if isinstance(subscribers, _LargeRoom):
            if subscribers.group is not None:
                subscribers.group.disband()
                subscribers.group = None  # it knows offsets of the previous epoch
            subscribers = tuple(subscribers.ungrouped)
        for subscriber in subscribers:
            subscriber.on_gap(position)

    def _broadcast_to_many(self, many: _LargeRoom, entry: Entry, published_at: float) -> int:
        count, was_disbanded = 0, False
        if many.group is not None:
            many.group.flush_pending()
        # Copied before the group's write: a member that leaves during it already has the entry.
        ungrouped = tuple(many.ungrouped)
        if many.group is not None and (size := len(many.group)):
            if many.group.broadcast(entry):
                count = size
            else:
                many.group.disband()
                was_disbanded = True
                ungrouped = tuple(many.ungrouped)
        for subscriber in ungrouped:
            if subscriber.deliver(entry, published_at):
                count += 1
        if was_disbanded:
            for subscriber in ungrouped:
                subscriber.join_group()
        return count

    def subscriber_count(self, room: Room) -> int:
        return len(self._rooms.get(room, ()))

    def rooms(self) -> Iterator[tuple[Room, int]]:
        """Yield each active room with its number of subscribers."""
        return ((room, len(subscribers)) for room, subscribers in self._rooms.items())

    def __len__(self) -> int:
        """Return the number of active rooms."""
        return len(self._rooms)
