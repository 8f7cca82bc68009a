"""Rooms and the listeners that they have on this node."""

from __future__ import annotations

from typing import Protocol

from ..protocol.rooms import Room
from .stores.base import Entry


class Listener(Protocol):
    """One connection's ear. ``offer`` never waits and never raises."""

    def offer(self, entry: Entry) -> bool:
        """Take a live entry; False if the listener is on its way out."""
        ...


class Hub:
    """Who listens to which room. A room exists here only while somebody listens."""

    def __init__(self) -> None:
        self._rooms: dict[Room, set[Listener]] = {}

    def join(self, room: Room, listener: Listener) -> None:
        self._rooms.setdefault(room, set()).add(listener)

    def leave(self, room: Room, listener: Listener) -> None:
        """Forget a listener; one that is not there is no error."""
        listeners = self._rooms.get(room)
        if listeners is not None:
            listeners.discard(listener)
            if not listeners:
                del self._rooms[room]

    def deliver(self, room: Room, entry: Entry) -> int:
        """Offer an entry to everyone in a room; returns how many took it."""
        return sum(listener.offer(entry) for listener in self._rooms.get(room, ()))

    def connections(self, room: Room) -> int:
        return len(self._rooms.get(room, ()))
