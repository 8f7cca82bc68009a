"""Rooms and the listeners that they have on this node."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Protocol

from ..protocol.rooms import Room
from .stores.base import Entry

_FEW = 4


class Listener(Protocol):
    """One connection's ear. ``offer`` never waits and never raises."""

    def offer(self, entry: Entry, began_at: float | None) -> bool:
        """Take a live entry; False if the listener is on its way out.

        Args:
            began_at: when its publish arrived at this node, by ``time.perf_counter``.
        """
        ...


class Hub:
    """Who listens to which room. A room exists here only while somebody listens."""

    def __init__(self, observe: Callable[[float, int], None] = lambda _, __: None) -> None:
        """
        Args:
            observe: told for each notification of a room how long after its publish's arrival it
                was offered to all, in seconds, and to how many.
        """
        self._rooms: dict[Room, tuple[Listener, ...] | set[Listener]] = {}
        self._observe = observe

    def join(self, room: Room, listener: Listener) -> None:
        listeners = self._rooms.get(room, ())
        if isinstance(listeners, set):
            listeners.add(listener)
        elif listener not in listeners:
            # Most rooms have one: a set takes four times the memory of a tuple.
            more = (*listeners, listener)
            self._rooms[room] = more if len(more) <= _FEW else set(more)

    def leave(self, room: Room, listener: Listener) -> None:
        """Forget a listener; one that is not there is no error."""
        listeners = self._rooms.get(room, ())
        if isinstance(listeners, set):
            listeners.discard(listener)
            if listeners:
                return
        elif len(listeners) > 1:
            self._rooms[room] = tuple(each for each in listeners if each is not listener)
            return
        elif listener not in listeners:
            return
        del self._rooms[room]

    def deliver(self, room: Room, entry: Entry, began_at: float | None = None) -> int:
        """Offer an entry to everyone in a room; returns how many took it."""
        listeners = self._rooms.get(room)
        if listeners is None:
            return 0
        count = 0
        for listener in listeners:
            if listener.offer(entry, began_at):
                count += 1
        if began_at is not None:
            self._observe(perf_counter() - began_at, count)
        return count

    def connections(self, room: Room) -> int:
        return len(self._rooms.get(room, ()))

    def rooms(self) -> Iterator[tuple[Room, int]]:
        """The rooms that have listeners, and how many."""
        return ((room, len(listeners)) for room, listeners in self._rooms.items())

    def __len__(self) -> int:
        """How many rooms have listeners."""
        return len(self._rooms)
