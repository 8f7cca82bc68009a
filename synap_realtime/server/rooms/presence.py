"""Presence: the users of each room and their devices. See PROTOCOL.md, "Presence".

Presence covers the connections of this node. A leave is sent only after a grace period, so that a
reconnect does not show as a leave and a join.

Changes are coalesced, so that a flapping user costs no more than a steady one. The watchers of a
room share the last state that was sent to them (``_Watched.last_sent``), and a flush sends each
user whose state differs from it once.
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
"""Time after a disconnect within which a reconnect is not reported as a leave."""

UPDATE_INTERVAL_S = 0.2
"""Shortest time between two flushes: a user's changes within it are sent as one."""

MAX_FRAMES_PER_S = 5000
"""Most frames per second that are written to the watchers of one room. In a room with many users
and many watchers, changes are sent later."""

MAX_DEVICES = 64
"""Most devices that are listed for a user, and most that are kept for the grace period."""

_SLICE = 500  # frames written before the event loop runs other callbacks


class Watcher(Protocol):
    """A connection that asked for presence frames.

    ``send_control`` never blocks and never raises.
    """

    def send_control(self, frame: ControlFrame) -> None: ...


@dataclass(slots=True)
class _User:
    """The connections of one user.

    Attributes:
        devices: the number of connections by device name; None counts those without a name. A
            device without connections stays until its grace period ends.
    """

    devices: dict[str | None, int] = field(default_factory=dict)

    def to_dict(self, user: str) -> dict[str, Any]:
        names = sorted(name for name in self.devices if name is not None)
        return {
            "user": user,
            "connections": sum(self.devices.values()),
            "devices": names[:MAX_DEVICES],
        }


class _Watched:
    """The watchers of a room, and the state that was last sent to them.

    Attributes:
        last_sent: the state that all watchers have, by user.
        state: ``last_sent`` as a frame; None if it has to be encoded again.
        changed: users whose state may differ from ``last_sent``, in the order of their changes.
        sending: the frame that is being written, and the watchers that do not have it yet.
        timer: set until the next flush is allowed.
    """

    __slots__ = ("changed", "last_sent", "sending", "state", "timer", "watchers")

    def __init__(self, last_sent: dict[str, dict[str, Any]]) -> None:
        self.watchers: set[Watcher] = set()
        self.last_sent = last_sent
        self.state: ControlFrame | None = None
        self.changed: dict[str, None] = {}
        self.sending: tuple[ControlFrame, Iterator[Watcher]] | None = None
        self.timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Room:
    users: dict[str, _User] = field(default_factory=dict)
    watched: _Watched | None = None  # most rooms have no watchers


class Presence:
    """Tracks the users of each room and sends changes to the room's watchers."""

    def __init__(self, *, grace_s: float | None = None) -> None:
        self._grace_s = GRACE_S if grace_s is None else grace_s
        self._rooms: dict[Room, _Room] = {}
        self._leaving: dict[tuple[Room, str, str | None], asyncio.TimerHandle] = {}
        self._is_closed = False

    def join(self, room: Room, user: str, device: str | None) -> None:
        """Count a new connection of a user. Call :meth:`leave` when it has ended."""
        if timer := self._leaving.pop((room, user, device), None):
            timer.cancel()
        tracked = self._rooms.get(room)
        if tracked is None:
            tracked = self._rooms[room] = _Room()
        devices = tracked.users.setdefault(user, _User()).devices
        devices[device] = devices.get(device, 0) + 1
        self._has_changed(tracked, user)

    def leave(self, room: Room, user: str, device: str | None) -> None:
        """Count a connection as ended. The device is removed after the grace period."""
        if self._is_closed:
            return
        tracked = self._rooms[room]
        devices = tracked.users[user].devices
        devices[device] -= 1
        if not devices[device]:
            self._begin_grace(room, user, device)
        self._has_changed(tracked, user)

    def _begin_grace(self, room: Room, user: str, device: str | None) -> None:
        devices = self._rooms[room].users[user].devices
        if len(devices) > MAX_DEVICES:
            # Bound the devices of one user: remove the oldest one that has no connection.
            oldest = next(name for name, count in devices.items() if not count)
            del devices[oldest]
            if oldest == device:
                return
            self._leaving.pop((room, user, oldest)).cancel()
        key = (room, user, device)
        loop = asyncio.get_running_loop()
        self._leaving[key] = loop.call_later(self._grace_s, self._expire, *key)

    def watch(self, room: Room, watcher: Watcher) -> ControlFrame:
        """Send a watcher the room's state, then each change until :meth:`unwatch`.

        Returns:
            The frame with the state.
        """
        tracked = self._rooms.setdefault(room, _Room())
        watched = tracked.watched
        if watched is None:
            users = {name: user.to_dict(name) for name, user in tracked.users.items()}
            watched = tracked.watched = _Watched(users)
        watched.watchers.add(watcher)
        if watched.state is None:
            sent = [user for _, user in sorted(watched.last_sent.items())]
            watched.state = ControlFrame(PRESENCE, {"event": "state", "users": sent})
        watcher.send_control(watched.state)
        return watched.state

    def unwatch(self, room: Room, watcher: Watcher) -> None:
        """Send a watcher nothing more."""
        if (tracked := self._rooms.get(room)) is not None:  # else the server has stopped
            if (watched := tracked.watched) is not None:
                watched.watchers.discard(watcher)
                if not watched.watchers:
                    self._stop_notifying(tracked)
            self._forget_if_empty(room)

    def users(self, room: Room) -> list[dict[str, Any]]:
        """Return ``[{"user":…,"connections":…,"devices":[…]}]``, sorted by the user's id."""
        found = self._rooms.get(room)
        if found is None:
            return []
        return [user.to_dict(name) for name, user in sorted(found.users.items())]

    def close(self) -> None:
        """Stop all timers. No watcher receives anything more."""
        self._is_closed = True
        for timer in self._leaving.values():
            timer.cancel()
        for tracked in self._rooms.values():
            self._stop_notifying(tracked)
        self._leaving.clear()
        self._rooms.clear()

    def _expire(self, room: Room, name: str, device: str | None) -> None:
        del self._leaving[room, name, device]
        tracked = self._rooms[room]
        devices = tracked.users[name].devices
        del devices[device]
        if not devices:
            del tracked.users[name]
        self._has_changed(tracked, name)
        self._forget_if_empty(room)

    def _has_changed(self, tracked: _Room, name: str) -> None:
        if (watched := tracked.watched) is not None:
            watched.changed[name] = None
            if watched.timer is None:
                self._flush(tracked)

    def _flush(self, tracked: _Room) -> None:
        """Send the next slice of the changes to the watchers, and schedule the one after it."""
        watched = tracked.watched
        if watched is None:
            return
        watched.timer = None
        written = 0
        while written < _SLICE:
            if watched.sending is None:
                frame = self._next_frame(tracked, watched)
                if frame is None:
                    break
                watched.sending = frame, iter(tuple(watched.watchers))
            frame, rest = watched.sending
            recipients = tuple(islice(rest, _SLICE - written))
            for watcher in recipients:
                if watcher in watched.watchers:  # a slow consumer is removed by an earlier write
                    watcher.send_control(frame)
            if written + len(recipients) < _SLICE:
                watched.sending = None
            written += len(recipients)
        if written and watched is tracked.watched:
            pause_s = max(UPDATE_INTERVAL_S, written / MAX_FRAMES_PER_S)
            loop = asyncio.get_running_loop()
            watched.timer = loop.call_later(pause_s, self._flush, tracked)

    def _next_frame(self, tracked: _Room, watched: _Watched) -> ControlFrame | None:
        """Return the change of the next user whose state differs from what was last sent."""
        while watched.changed:
            name = next(iter(watched.changed))
            del watched.changed[name]
            watched.state = None
            before, user = watched.last_sent.get(name), tracked.users.get(name)
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

    def _stop_notifying(self, tracked: _Room) -> None:
        watched, tracked.watched = tracked.watched, None
        if watched is not None and watched.timer is not None:
            watched.timer.cancel()

    def _forget_if_empty(self, room: Room) -> None:
        found = self._rooms.get(room)
        if found is not None and not found.users and found.watched is None:
            del self._rooms[room]
