"""Who is in a room now, over users and their devices. See PROTOCOL.md, "Presence".

It knows this node's connections. A leave is told only after a grace: who reconnects has not left.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..protocol.control import PRESENCE, ControlFrame
from ..protocol.rooms import Room

GRACE_S = 5.0
"""Who comes back within so long was never away."""


class Watcher(Protocol):
    """A connection that asked to hear who comes and goes. ``say`` never waits and never raises."""

    def say(self, frame: ControlFrame) -> None: ...


@dataclass(slots=True)
class _User:
    """By device, how many connections it has; those without a name are under None. One that has
    none any more stays for the grace."""

    devices: dict[str | None, int] = field(default_factory=dict)

    def described(self, user: str) -> dict[str, Any]:
        names = sorted(name for name in self.devices if name is not None)
        return {"user": user, "connections": sum(self.devices.values()), "devices": names}


@dataclass(slots=True)
class _Room:
    users: dict[str, _User] = field(default_factory=dict)
    watchers: set[Watcher] | None = None  # most rooms have none


class Presence:
    """The rooms in which somebody is, or is watched for."""

    def __init__(self, *, grace_s: float | None = None) -> None:
        self._grace_s = GRACE_S if grace_s is None else grace_s
        self._rooms: dict[Room, _Room] = {}
        self._leaving: dict[tuple[Room, str, str | None], asyncio.TimerHandle] = {}
        self._is_closed = False

    def join(self, room: Room, user: str, device: str | None) -> None:
        """A connection of a user's begins; :meth:`leave` when it has ended."""
        if timer := self._leaving.pop((room, user, device), None):
            timer.cancel()
        there = self._rooms.get(room)
        if there is None:
            there = self._rooms[room] = _Room()
        users = there.users
        event = "update" if user in users else "join"
        devices = users.setdefault(user, _User()).devices
        is_new = device not in devices
        devices[device] = devices.get(device, 0) + 1
        if is_new:
            self._tell(room, event, user)

    def leave(self, room: Room, user: str, device: str | None) -> None:
        if self._is_closed:
            return
        devices = self._rooms[room].users[user].devices
        devices[device] -= 1
        if not devices[device]:
            key = (room, user, device)
            loop = asyncio.get_running_loop()
            self._leaving[key] = loop.call_later(self._grace_s, self._has_left, *key)

    def watch(self, room: Room, watcher: Watcher) -> None:
        """Tell a watcher who is there, then each change, until :meth:`unwatch`."""
        there = self._rooms.setdefault(room, _Room())
        if there.watchers is None:
            there.watchers = set()
        there.watchers.add(watcher)
        watcher.say(ControlFrame(PRESENCE, {"event": "state", "users": self.users(room)}))

    def unwatch(self, room: Room, watcher: Watcher) -> None:
        if (found := self._rooms.get(room)) is not None:  # else the server has stopped
            if found.watchers is not None:
                found.watchers.discard(watcher)
            self._forget_if_empty(room)

    def users(self, room: Room) -> list[dict[str, Any]]:
        """``[{"user":…,"connections":…,"devices":[…]}]``, sorted by the user's id."""
        found = self._rooms.get(room)
        if found is None:
            return []
        return [user.described(name) for name, user in sorted(found.users.items())]

    def close(self) -> None:
        """The server has stopped: nobody is told any more who leaves."""
        self._is_closed = True
        for timer in self._leaving.values():
            timer.cancel()
        self._leaving.clear()
        self._rooms.clear()

    def _has_left(self, room: Room, name: str, device: str | None) -> None:
        del self._leaving[room, name, device]
        users = self._rooms[room].users
        del users[name].devices[device]
        event = "update" if users[name].devices else "leave"
        self._tell(room, event, name)
        if event == "leave":
            del users[name]
            self._forget_if_empty(room)

    def _tell(self, room: Room, event: str, name: str) -> None:
        found = self._rooms[room]
        if found.watchers:
            frame = ControlFrame(PRESENCE, {"event": event, **found.users[name].described(name)})
            for watcher in tuple(found.watchers):  # one that is too slow goes while it is told
                watcher.say(frame)

    def _forget_if_empty(self, room: Room) -> None:
        found = self._rooms.get(room)
        if found is not None and not found.users and not found.watchers:
            del self._rooms[room]
