"""Who is in a room now, over users and their devices. See PROTOCOL.md, "Presence".

It knows this node's connections. A leave is told only after a grace: who reconnects has not left.

Changes are coalesced, so that a user whose devices come and go costs the same as one who stays: the
watchers of a room share one picture of it (``_Watched.last_sent``), and a flush sends each user who
differs from it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

from ...protocol.control import PRESENCE, ControlFrame
from ...protocol.rooms import Room

GRACE_S = 5.0
"""Who comes back within so long was never away."""

UPDATE_INTERVAL_S = 0.2
"""A user's changes within so long are told as one."""

MAX_FRAMES_PER_S = 5000
"""So many frames a second are written to the watchers of one room; in a room with many of both,
changes are told later."""

MAX_DEVICES = 64
"""So many of a user's devices are listed; of those without a connection, as many are kept for the
grace."""

_SLICE = 500  # frames written before others get their turn


class Watcher(Protocol):
    """A connection that asked to hear who comes and goes. ``send_control`` never waits and never
    raises."""

    def send_control(self, frame: ControlFrame) -> None: ...


@dataclass(slots=True)
class _User:
    """By device, how many connections it has; those without a name are under None. One that has
    none any more stays for the grace."""

    devices: dict[str | None, int] = field(default_factory=dict)

    def to_dict(self, user: str) -> dict[str, Any]:
        names = sorted(name for name in self.devices if name is not None)
        return {
            "user": user,
            "connections": sum(self.devices.values()),
            "devices": names[:MAX_DEVICES],
        }


class _Watched:
    """The watchers of a room, and what they know.

    Attributes:
        told: what all of them know, by user.
        state: the frame that says it; None: not made yet.
        changed: users who may differ from it, those who have waited for longest first.
        sending: a frame that is being written, and to whom it still goes.
        timer: runs until the next flush may come.
    """

    __slots__ = ("changed", "last_sent", "sending", "state", "timer", "watchers")

    def __init__(self, told: dict[str, dict[str, Any]]) -> None:
        self.watchers: set[Watcher] = set()
        self.last_sent = told
        self.state: ControlFrame | None = None
        self.changed: dict[str, None] = {}
        self.sending: tuple[ControlFrame, Iterator[Watcher]] | None = None
        self.timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Room:
    users: dict[str, _User] = field(default_factory=dict)
    watched: _Watched | None = None  # most rooms have no watchers


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
        devices = there.users.setdefault(user, _User()).devices
        devices[device] = devices.get(device, 0) + 1
        self._has_changed(there, user)

    def leave(self, room: Room, user: str, device: str | None) -> None:
        if self._is_closed:
            return
        there = self._rooms[room]
        devices = there.users[user].devices
        devices[device] -= 1
        if not devices[device]:
            self._begin_grace(room, user, device)
        self._has_changed(there, user)

    def _begin_grace(self, room: Room, user: str, device: str | None) -> None:
        devices = self._rooms[room].users[user].devices
        if len(devices) > MAX_DEVICES:
            # Devices that come and go must not pile up: the first one without a connection goes.
            oldest = next(name for name, count in devices.items() if not count)
            del devices[oldest]
            if oldest == device:
                return
            self._leaving.pop((room, user, oldest)).cancel()
        key = (room, user, device)
        loop = asyncio.get_running_loop()
        self._leaving[key] = loop.call_later(self._grace_s, self._expire, *key)

    def watch(self, room: Room, watcher: Watcher) -> ControlFrame:
        """Tell a watcher who is there, then each change, until :meth:`unwatch`.

        Returns:
            what it was told.
        """
        there = self._rooms.setdefault(room, _Room())
        watched = there.watched
        if watched is None:
            told = {name: user.to_dict(name) for name, user in there.users.items()}
            watched = there.watched = _Watched(told)
        watched.watchers.add(watcher)
        if watched.state is None:
            known = [told for _, told in sorted(watched.last_sent.items())]
            watched.state = ControlFrame(PRESENCE, {"event": "state", "users": known})
        watcher.send_control(watched.state)
        return watched.state

    def unwatch(self, room: Room, watcher: Watcher) -> None:
        if (there := self._rooms.get(room)) is not None:  # else the server has stopped
            if (watched := there.watched) is not None:
                watched.watchers.discard(watcher)
                if not watched.watchers:
                    self._stop_notifying(there)
            self._forget_if_empty(room)

    def users(self, room: Room) -> list[dict[str, Any]]:
        """``[{"user":…,"connections":…,"devices":[…]}]``, sorted by the user's id."""
        found = self._rooms.get(room)
        if found is None:
            return []
        return [user.to_dict(name) for name, user in sorted(found.users.items())]

    def close(self) -> None:
        """The server has stopped: nobody is told any more who leaves."""
        self._is_closed = True
        for timer in self._leaving.values():
            timer.cancel()
        for there in self._rooms.values():
            self._stop_notifying(there)
        self._leaving.clear()
        self._rooms.clear()

    def _expire(self, room: Room, name: str, device: str | None) -> None:
        del self._leaving[room, name, device]
        there = self._rooms[room]
        devices = there.users[name].devices
        del devices[device]
        if not devices:
            del there.users[name]
        self._has_changed(there, name)
        self._forget_if_empty(room)

    def _has_changed(self, there: _Room, name: str) -> None:
        if (watched := there.watched) is not None:
            watched.changed[name] = None
            if watched.timer is None:
                self._flush(there)

    def _flush(self, there: _Room) -> None:
        """Tell watchers of what has changed: one slice of it, and the next after a pause."""
        watched = there.watched
        if watched is None:
            return
        watched.timer = None
        written = 0
        while written < _SLICE:
            if watched.sending is None:
                frame = self._next_frame(there, watched)
                if frame is None:
                    break
                watched.sending = frame, iter(tuple(watched.watchers))
            frame, rest = watched.sending
            recipients = tuple(islice(rest, _SLICE - written))
            for watcher in recipients:
                if watcher in watched.watchers:  # one that is too slow goes while it is told
                    watcher.send_control(frame)
            if written + len(recipients) < _SLICE:
                watched.sending = None
            written += len(recipients)
        if written and watched is there.watched:
            pause_s = max(UPDATE_INTERVAL_S, written / MAX_FRAMES_PER_S)
            loop = asyncio.get_running_loop()
            watched.timer = loop.call_later(pause_s, self._flush, there)

    def _next_frame(self, there: _Room, watched: _Watched) -> ControlFrame | None:
        """The next user who differs from what watchers know."""
        while watched.changed:
            name = next(iter(watched.changed))
            del watched.changed[name]
            watched.state = None
            before, user = watched.last_sent.get(name), there.users.get(name)
            if user is None:
                if watched.last_sent.pop(name, None) is not None:
                    gone = _User().to_dict(name)
                    return ControlFrame(PRESENCE, {"event": "leave", **gone})
                continue
            watched.last_sent[name] = now = user.to_dict(name)
            if before is None:
                return ControlFrame(PRESENCE, {"event": "join", **now})
            if before["devices"] != now["devices"]:
                return ControlFrame(PRESENCE, {"event": "update", **now})
        return None

    def _stop_notifying(self, there: _Room) -> None:
        watched, there.watched = there.watched, None
        if watched is not None and watched.timer is not None:
            watched.timer.cancel()

    def _forget_if_empty(self, room: Room) -> None:
        found = self._rooms.get(room)
        if found is not None and not found.users and found.watched is None:
            del self._rooms[room]
