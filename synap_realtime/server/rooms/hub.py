"""Rooms and the listeners that they have on this node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter
from typing import Protocol

from ...protocol.rooms import Room
from ..stores.base import Entry

_FEW = 4


class Subscriber(Protocol):
    """One connection's ear. Nothing here waits, and nothing raises."""

    def offer(self, entry: Entry, began_at: float | None) -> bool:
        """Take a live entry; False if the listener is on its way out.

        Args:
            began_at: when its publish arrived at this node, by ``time.perf_counter``.
        """
        ...

    def gather(self) -> None:
        """Join those of its room who are told together, if it can be told so: there are many."""
        ...


class FanoutGroup(Protocol):
    """Those of a room's listeners who are told together, in one go.

    Each came by :meth:`Hub.gather`, and goes by :meth:`Hub.scatter` as soon as something is to be
    told to it alone before the next notification.

    Attributes:
        handed: the offset of what they were told last.
    """

    handed: int

    def __len__(self) -> int: ...

    def prepare(self) -> None:
        """Write what is still to be written to any of them: who takes that badly goes."""
        ...

    def tell(self, entry: Entry) -> bool:
        """Tell all of them; False: nobody was told, for each has to be offered it alone.

        Who takes it badly may go while they are told. Nobody comes.
        """
        ...

    def part(self) -> None:
        """All go, by :meth:`Hub.scatter`."""
        ...


class _LargeRoom:
    """The listeners of one room."""

    __slots__ = ("apart", "company")

    def __init__(self, listeners: Iterable[Subscriber]) -> None:
        self.apart = set(listeners)
        self.company: FanoutGroup | None = None  # of all others

    def __len__(self) -> int:
        return len(self.apart) + (0 if self.company is None else len(self.company))


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

    def join(self, room: Room, listener: Subscriber) -> None:
        listeners = self._rooms.get(room, ())
        if isinstance(listeners, _LargeRoom):
            listeners.apart.add(listener)
        elif listener not in listeners:
            # Most rooms have one: a set takes four times the memory of a tuple.
            more = (*listeners, listener)
            if len(more) <= _FEW:
                self._rooms[room] = more
            else:
                self._rooms[room] = _LargeRoom(more)
                for each in more:
                    each.gather()

    def leave(self, room: Room, listener: Subscriber) -> None:
        """Forget a listener, which is in no company; one that is not there is no error."""
        listeners = self._rooms.get(room, ())
        if isinstance(listeners, _LargeRoom):
            listeners.apart.discard(listener)
            if len(listeners):
                return
        elif len(listeners) > 1:
            self._rooms[room] = tuple(each for each in listeners if each is not listener)
            return
        elif listener not in listeners:
            return
        del self._rooms[room]

    def gather(
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
        if listeners.company is None:
            listeners.company = begin()
        listeners.apart.discard(listener)
        return listeners.company

    def scatter(self, room: Room, listener: Subscriber) -> None:
        """A listener has left its company: it is offered by itself from now on."""
        listeners = self._rooms[room]
        assert isinstance(listeners, _LargeRoom)  # noqa: S101 - it has a company
        listeners.apart.add(listener)

    def deliver(self, room: Room, entry: Entry, began_at: float | None = None) -> int:
        """Offer an entry to everyone in a room; returns how many took it."""
        listeners = self._rooms.get(room)
        if listeners is None:
            return 0
        if isinstance(listeners, _LargeRoom):
            count = self._deliver_to_many(listeners, entry, began_at)
        else:
            count = 0
            for listener in listeners:
                if listener.offer(entry, began_at):
                    count += 1
        if began_at is not None:
            self._observe(perf_counter() - began_at, count)
        return count

    def _deliver_to_many(self, many: _LargeRoom, entry: Entry, began_at: float | None) -> int:
        count, has_parted = 0, False
        if many.company is not None:
            many.company.prepare()
        apart = tuple(many.apart)  # not who takes it badly now
        if many.company is not None and (size := len(many.company)):
            if many.company.tell(entry):
                count = size
            else:
                many.company.part()
                has_parted = True
                apart = tuple(many.apart)
        for listener in apart:
            if listener.offer(entry, began_at):
                count += 1
        if has_parted:
            for listener in apart:
                listener.gather()
        return count

    def connections(self, room: Room) -> int:
        return len(self._rooms.get(room, ()))

    def rooms(self) -> Iterator[tuple[Room, int]]:
        """The rooms that have listeners, and how many."""
        return ((room, len(listeners)) for room, listeners in self._rooms.items())

    def __len__(self) -> int:
        """How many rooms have listeners."""
        return len(self._rooms)
