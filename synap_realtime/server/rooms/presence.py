"""Presence: the users of each room and their devices. See PROTOCOL.md, "Presence".

A leave is sent only after a grace period, so that a reconnect does not show as a leave and a join.

Presence tracks the connections of this node. With a :class:`~..stores.base.PresenceStore`, it
reports them to the other nodes, and merges theirs.

Changes are coalesced, so that a flapping user costs no more than a steady one. The watchers of a
room share the last state that was sent to them (``_Watched.last_sent``), and a flush sends each
user whose state differs from it once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from types import MappingProxyType
from typing import Any, Protocol

from ...protocol.control import PRESENCE, ControlFrame
from ...protocol.rooms import Room
from ..stores.base import PresenceStore, RoomPresence, UserPresence

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


CountRead = Callable[[int], object]
"""Counts bytes that a watcher reads."""


class Watcher(Protocol):
    """A connection that asked for presence frames.

    ``send_control`` never blocks and never raises.
    """

    def send_control(self, frame: ControlFrame) -> None: ...


_Devices = Mapping[str | None, int]
"""The connections of one user at this node: their number by device name. None counts those without
a name. A device without connections stays until its grace period ends."""

_ALONE: _Devices = MappingProxyType({None: 1})
"""Most users have one connection, without a name. They share one object."""


def _summary(devices: _Devices) -> UserPresence:
    names = sorted(name for name in devices if name is not None)
    return UserPresence(sum(devices.values()), tuple(names[:MAX_DEVICES]))


class _Watched:
    """The watchers of a room, and the state that was last sent to them.

    Attributes:
        others: the users at other nodes; None until they are known.
        waiting: watchers that get the state as soon as it is known, and what counts its bytes.
        last_sent: the state that all watchers have, by user.
        state: ``last_sent`` as a frame; None if it has to be encoded again.
        changed: users whose state may differ from ``last_sent``, in the order of their changes.
        sending: the frame that is being written, and the watchers that do not have it yet.
        timer: set until the next flush is allowed.
    """

    __slots__ = (
        "changed", "last_sent", "others", "sending", "state", "timer", "waiting", "watchers"
    )  # fmt: skip

    def __init__(self) -> None:
        self.watchers: set[Watcher] = set()
        self.others: dict[str, UserPresence] | None = None
        self.waiting: dict[Watcher, CountRead] = {}
        self.last_sent: dict[str, UserPresence] = {}
        self.state: ControlFrame | None = None
        self.changed: dict[str, None] = {}
        self.sending: tuple[ControlFrame, Iterator[Watcher]] | None = None
        self.timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Room:
    users: dict[str, _Devices] = field(default_factory=dict)  # by id
    watched: _Watched | None = None  # most rooms have no watchers


class Presence:
    """Tracks the users of each room and sends changes to the room's watchers."""

    def __init__(self, store: PresenceStore | None = None, *, grace_s: float | None = None) -> None:
        """
        Args:
            store: where nodes share their presence; None: this node is alone.
        """
        self._store = store
        self._grace_s = GRACE_S if grace_s is None else grace_s
        self._rooms: dict[Room, _Room] = {}
        # Rooms with one user, who has one connection without a name, and with no watcher. Most
        # rooms are like that, and a text takes 250 bytes less than a _Room.
        self._lone: dict[Room, str] = {}
        self._leaving: dict[tuple[Room, str, str | None], asyncio.TimerHandle] = {}
        self._is_closed = False

    def join(self, room: Room, user: str, device: str | None) -> None:
        """Count a new connection of a user. Call :meth:`leave` when it has ended."""
        if timer := self._leaving.pop((room, user, device), None):
            timer.cancel()
        tracked = self._find(room)
        if tracked is None:
            if device is None:
                self._lone[room] = user
                self._report(room, user, _ALONE)
                return
            tracked = self._rooms[room] = _Room()
        devices = tracked.users.get(user, {})
        devices = {**devices, device: devices.get(device, 0) + 1}
        tracked.users[user] = _ALONE if devices == _ALONE else devices
        self._has_changed(room, tracked, user)
        if tracked.watched is None and tracked.users == {user: _ALONE}:
            del self._rooms[room]
            self._lone[room] = user

    def leave(self, room: Room, user: str, device: str | None) -> None:
        """Count a connection as ended. The device is removed after the grace period."""
        if self._is_closed:
            return
        tracked = self._find(room)
        assert tracked is not None  # noqa: S101 - the user has joined
        devices = tracked.users[user]
        tracked.users[user] = {**devices, device: devices[device] - 1}
        if devices[device] == 1:
            self._begin_grace(room, user, device)
        self._has_changed(room, tracked, user)

    def _find(self, room: Room) -> _Room | None:
        """Return the users and watchers of a room; None if it has none."""
        if (user := self._lone.pop(room, None)) is not None:
            self._rooms[room] = _Room({user: _ALONE})
        return self._rooms.get(room)

    def _begin_grace(self, room: Room, user: str, device: str | None) -> None:
        users = self._rooms[room].users
        devices = users[user]
        if len(devices) > MAX_DEVICES:
            # Bound the devices of one user: remove the oldest one that has no connection.
            oldest = next(name for name, count in devices.items() if not count)
            users[user] = {name: count for name, count in devices.items() if name != oldest}
            if oldest == device:
                return
            self._leaving.pop((room, user, oldest)).cancel()
        key = (room, user, device)
        loop = asyncio.get_running_loop()
        self._leaving[key] = loop.call_later(self._grace_s, self._expire, *key)

    def watch(self, room: Room, watcher: Watcher, count_read: CountRead = lambda _: None) -> None:
        """Send a watcher the room's state, then each change until :meth:`unwatch`.

        The state is sent immediately unless the users at other nodes have to be read.

        Args:
            count_read: called with the size of the state in bytes.
        """
        tracked = self._find(room)
        if tracked is None:
            tracked = self._rooms[room] = _Room()
        watched = tracked.watched
        is_first = watched is None
        if watched is None:
            watched = tracked.watched = _Watched()
        watched.watchers.add(watcher)
        watched.waiting[watcher] = count_read
        if not is_first:
            if watched.others is not None:
                self._send_state(watched)
        elif self._store is None:
            self._merge_others(room, {})
        else:
            self._store.watch_presence(room, partial(self._merge_others, room))

    def _send_state(self, watched: _Watched) -> None:
        """Send the state to the watchers that wait for it."""
        if watched.state is None:
            sent = [_to_dict(name, user) for name, user in sorted(watched.last_sent.items())]
            watched.state = ControlFrame(PRESENCE, {"event": "state", "users": sent})
        waiting, watched.waiting = watched.waiting, {}
        for watcher, count_read in waiting.items():
            watcher.send_control(watched.state)
            count_read(len(watched.state.encoded()))

    def _merge_others(self, room: Room, changes: Mapping[str, UserPresence | None]) -> None:
        """Handle changes of the users at other nodes. The first call has all of them."""
        tracked = self._rooms.get(room)
        if tracked is None or (watched := tracked.watched) is None:
            return
        is_first = watched.others is None
        others = watched.others = watched.others or {}
        for name, user in changes.items():
            if user is None:
                others.pop(name, None)
            else:
                others[name] = user
        if is_first:
            watched.last_sent = self._merged(tracked, others)
            self._send_state(watched)
        else:
            for name in changes:
                self._notify(tracked, name)

    def unwatch(self, room: Room, watcher: Watcher) -> None:
        """Send a watcher nothing more."""
        if (tracked := self._rooms.get(room)) is not None:  # else the server has stopped
            if (watched := tracked.watched) is not None:
                watched.watchers.discard(watcher)
                watched.waiting.pop(watcher, None)
                if not watched.watchers:
                    self._stop_notifying(tracked)
                    if self._store is not None:
                        self._store.unwatch_presence(room)
            self._forget_if_empty(room)

    async def others(self, room: Room) -> RoomPresence:
        """Return the presence at all other nodes.

        Raises:
            StoreUnavailableError: it cannot be read now.
        """
        if self._store is None:
            return RoomPresence(0, {})
        return await self._store.read_presence(room)

    def users(
        self, room: Room, others: Mapping[str, UserPresence] = MappingProxyType({})
    ) -> list[dict[str, Any]]:
        """Return ``[{"user":…,"connections":…,"devices":[…]}]``, sorted by the user's id.

        Args:
            others: the users at other nodes, to merge with those of this one.
        """
        merged = self._merged(self._find(room), others)
        return [_to_dict(name, user) for name, user in sorted(merged.items())]

    def _merged(
        self, tracked: _Room | None, others: Mapping[str, UserPresence]
    ) -> dict[str, UserPresence]:
        names = {*others, *(() if tracked is None else tracked.users)}
        found = ((name, _merge(tracked, others, name)) for name in names)
        return {name: user for name, user in found if user is not None}

    def close(self) -> None:
        """Stop all timers. No watcher receives anything more.

        Other nodes keep the users of this one for the grace period, in which they may reconnect.
        """
        self._is_closed = True
        if self._store is not None:
            self._store.end_presence(self._grace_s)
        for timer in self._leaving.values():
            timer.cancel()
        for tracked in self._rooms.values():
            self._stop_notifying(tracked)
        self._leaving.clear()
        self._rooms.clear()
        self._lone.clear()

    def _expire(self, room: Room, name: str, device: str | None) -> None:
        del self._leaving[room, name, device]
        tracked = self._rooms[room]
        devices = {each: n for each, n in tracked.users[name].items() if each != device}
        if devices:
            tracked.users[name] = devices
        else:
            del tracked.users[name]
        self._has_changed(room, tracked, name)
        self._forget_if_empty(room)

    def _has_changed(self, room: Room, tracked: _Room, name: str) -> None:
        self._report(room, name, tracked.users.get(name))
        self._notify(tracked, name)

    def _report(self, room: Room, name: str, devices: _Devices | None) -> None:
        """Report the presence of a user to the other nodes."""
        if self._store is not None:
            user = None if devices is None else _summary(devices)
            self._store.report_presence(room, name, user)

    def _notify(self, tracked: _Room, name: str) -> None:
        watched = tracked.watched
        if watched is not None and watched.others is not None:  # else the state is sent later
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
            before = watched.last_sent.get(name)
            now = _merge(tracked, watched.others or {}, name)
            if now is None:
                if watched.last_sent.pop(name, None) is not None:
                    return _frame("leave", name, UserPresence(0, ()))
                continue
            watched.last_sent[name] = now
            if before is None:
                return _frame("join", name, now)
            if before.devices != now.devices:
                return _frame("update", name, now)
        return None

    def _stop_notifying(self, tracked: _Room) -> None:
        watched, tracked.watched = tracked.watched, None
        if watched is not None and watched.timer is not None:
            watched.timer.cancel()

    def _forget_if_empty(self, room: Room) -> None:
        found = self._rooms.get(room)
        if found is not None and not found.users and found.watched is None:
            del self._rooms[room]


def _merge(
    tracked: _Room | None, others: Mapping[str, UserPresence], name: str
) -> UserPresence | None:
    """Return the presence of a user at this node and others, with a bounded number of devices."""
    here = None if tracked is None else tracked.users.get(name)
    elsewhere = others.get(name)
    if here is None:
        merged = elsewhere
    elif elsewhere is None:
        return _summary(here)
    else:
        merged = _summary(here).merged_with(elsewhere)
    return None if merged is None else merged._replace(devices=merged.devices[:MAX_DEVICES])


def _to_dict(name: str, user: UserPresence) -> dict[str, Any]:
    return {"user": name, "connections": user.connections, "devices": list(user.devices)}


def _frame(event: str, name: str, user: UserPresence) -> ControlFrame:
    return ControlFrame(PRESENCE, {"event": event, **_to_dict(name, user)})
