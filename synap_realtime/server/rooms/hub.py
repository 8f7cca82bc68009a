"""Rooms and the listeners that they have on this node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Protocol

from ...protocol.rooms import Room
from ..stores.base import Entry

_SMALL_ROOM_MAX = 4


class Subscriber(Protocol):
    """One connection's ear. Nothing here waits, and nothing raises."""

    def deliver(self, entry: Entry, published_at: float | None) -> bool:
        """Take a live entry; False if the listener is on its way out.

        Args:
            began_at: when its publish arrived at this node, by ``time.perf_counter``.
        """
        ...

    def join_group(self) -> None:
        """Join those of its room who are told together, if it can be told so: there are many."""
        ...


class FanoutGroup(Protocol):
    """Those of a room's listeners who are told together, in one go.

    Each came by :meth:`Hub.join_group`, and goes by :meth:`Hub.leave_group` as soon as something is
    to be told to it alone before the next notification.

    Attributes:
        handed: the offset of what they were told last.
    """

    last_offset: int

    def __len__(self) -> int: ...

    def flush_pending(self) -> None:
        """Write what is still to be written to any of them: who takes that badly goes."""
        ...

    def broadcast(self, entry: Entry) -> bool:
        """Tell all of them; False: nobody was told, for each has to be offered it alone.

        Who takes it badly may go while they are told. Nobody comes.
        """
        ...

    def disband(self) -> None:
        """All go, by :meth:`Hub.leave_group`."""
        ...


class _LargeRoom:
    """The listeners of one room."""

    __slots__ = ("group", "ungrouped")

    def __init__(self, listeners: Iterable[Subscriber]) -> None:
        self.ungrouped = set(listeners)
        self.group: FanoutGroup | None = None  # of all others

    def __len__(self) -> int:
        return len(self.ungrouped) + (0 if self.group is None else len(self.group))


class Hub:
    """Who listens to which room. A room exists here only while somebody listens."""

    def __init__(self, observe: Callable[[float, int], None] = lambda _, __: None) -> None:
        """
        Args:
            observe: told for each notification of a room how long after its publish's arrival it
                was offered to all, in seconds, and to how many.
        """
        self._rooms: dict[Room, tuple[Subscriber, ...] | _LargeRoom] = {}
        self._observe = observe

    def subscribe(self, room: Room, listener: Subscriber) -> None:
        listeners = self._rooms.get(room, ())
        if isinstance(listeners, _LargeRoom):
            listeners.ungrouped.add(listener)
        elif listener not in listeners:
            # Most rooms have one: a set takes four times the memory of a tuple.
            more = (*listeners, listener)
            if len(more) <= _SMALL_ROOM_MAX:
                self._rooms[room] = more
            else:
                self._rooms[room] = _LargeRoom(more)
                for each in more:
                    each.join_group()

    def unsubscribe(self, room: Room, listener: Subscriber) -> None:
        """Forget a listener, which is in no company; one that is not there is no error."""
        listeners = self._rooms.get(room, ())
        if isinstance(listeners, _LargeRoom):
            listeners.ungrouped.discard(listener)
            if len(listeners):
                return
        elif len(listeners) > 1:
            self._rooms[room] = tuple(each for each in listeners if each is not listener)
            return
        elif listener not in listeners:
            return
        del self._rooms[room]

    def join_group(
        self, room: Room, listener: Subscriber, begin: Callable[[], FanoutGroup]
    ) -> FanoutGroup | None:
        """Count a listener of a room to those who are told together. It joins them itself.

        Args:
            begin: makes the company, if there is none yet.

        Returns:
            The company; None if the room is too small for one.
        """
        listeners = self._rooms.get(room)
        if not isinstance(listeners, _LargeRoom):
            return None
        if listeners.group is None:
            listeners.group = begin()
        listeners.ungrouped.discard(listener)
        return listeners.group

    def leave_group(self, room: Room, listener: Subscriber) -> None:
        """A listener has left its company: it is offered by itself from now on."""
        listeners = self._rooms[room]
        assert isinstance(listeners, _LargeRoom)  # noqa: S101 - it has a company
        listeners.ungrouped.add(listener)

    def broadcast(self, room: Room, entry: Entry, published_at: float | None = None) -> int:
        """Offer an entry to everyone in a room; returns how many took it."""
        listeners = self._rooms.get(room)
        if listeners is None:
            return 0
        if isinstance(listeners, _LargeRoom):
            count = self._broadcast_to_many(listeners, entry, published_at)
        else:
            count = 0
            for listener in listeners:
                if listener.deliver(entry, published_at):
                    count += 1
        if published_at is not None:
            self._observe(perf_counter() - published_at, count)
        return count

    def _broadcast_to_many(self, many: _LargeRoom, entry: Entry, published_at: float | None) -> int:
        count, has_parted = 0, False
        if many.group is not None:
            many.group.flush_pending()
        apart = tuple(many.ungrouped)  # not who takes it badly now
        if many.group is not None and (size := len(many.group)):
            if many.group.broadcast(entry):
                count = size
            else:
                many.group.disband()
                has_parted = True
                apart = tuple(many.ungrouped)
        for listener in apart:
            if listener.deliver(entry, published_at):
                count += 1
        if has_parted:
            for listener in apart:
                listener.join_group()
        return count

    def subscriber_count(self, room: Room) -> int:
        return len(self._rooms.get(room, ()))

    def rooms(self) -> Iterator[tuple[Room, int]]:
        """The rooms that have listeners, and how many."""
        return ((room, len(listeners)) for room, listeners in self._rooms.items())

    def __len__(self) -> int:
        """How many rooms have listeners."""
        return len(self._rooms)
