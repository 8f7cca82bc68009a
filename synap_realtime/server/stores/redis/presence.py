"""Presence over all nodes: a node stores the users of its connections, and mirrors other nodes'.

The users of a room are one hash, with a field for each node and user. Each change of it is
announced with the version of the hash before and after it, so that a node that has missed one
notices it, and reads the hash again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

from pydantic_core import from_json

from ....protocol.rooms import Room
from ...errors import StoreUnavailableError
from ..base import PresenceHandler, RoomPresence, UserPresence
from .feed import Channels
from .keys import ALL_PARTITIONS, KeySpace
from .scripts import MEMBERS, READ_PRESENCE, SET_PRESENCE
from .tasks import Tasks

logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""The pause before something that failed is tried again."""

SETTLE_S = 5.0
"""How long users who are missing after a reconnect are kept. A Redis that lost its data, or a new
primary, gets them again when their nodes have noticed it: meanwhile they have not left. Users whom
only a new primary knows are hidden for as long: they may have left before."""

_RETRIED = 1000  # rooms that are tried again at a time
_MAX_EARLY = 1000  # announcements that are kept while the hash is being read


class _Announcement(NamedTuple):
    """A change of the users of a room.

    Attributes:
        previous: the version of the hash before it; 0: there was none.
        changes: user and state of each, one after another, as JSON; empty if they are too long.
    """

    previous: int
    version: int
    node: str
    changes: bytes


class _Mirror:
    """The users of a room at other nodes, while this node has watchers of it.

    Attributes:
        users: the states of each user, by node.
        epoch: of the partition of the hash. Another one means that another server may have it.
        version: of the hash; None until it was read.
        loading: reads the hash.
        is_outdated: whether the hash has to be read again after that.
        is_exact: whether users who are missing in it have left.
        settling: set while users are kept who are missing in the hash.
        is_replaced: whether users who are new in the hash may have left; until it has settled.
        early: announcements that arrived meanwhile.
    """

    def __init__(self, room: Room, handler: PresenceHandler) -> None:
        self.room = room
        self.handler = handler
        self.users: dict[str, dict[str, UserPresence]] = {}
        self.epoch = b""
        self.version: int | None = None
        self.loading: asyncio.Task[None] | None = None
        self.is_outdated = False
        self.is_exact = False
        self.settling: asyncio.TimerHandle | None = None
        self.is_replaced = False
        self.early: list[_Announcement] = []

    def merged(self, user: str) -> UserPresence | None:
        nodes = self.users.get(user)
        return None if nodes is None else reduce(UserPresence.merged_with, nodes.values())

    def set(self, node: str, user: str, presence: UserPresence | None) -> None:
        if presence is not None:
            self.users.setdefault(user, {})[node] = presence
        elif (nodes := self.users.get(user)) is not None:
            nodes.pop(node, None)
            if not nodes:
                del self.users[user]

    def keep(self, before: Mapping[str, Mapping[str, UserPresence]]) -> bool:
        """Add the states that are missing. Return whether there are any."""
        has_missing = False
        for user, nodes in before.items():
            for node, presence in nodes.items():
                if node not in self.users.get(user, ()):
                    self.set(node, user, presence)
                    has_missing = True
        return has_missing

    def hide(self, before: Mapping[str, Mapping[str, UserPresence]]) -> bool:
        """Remove the states that are new. Return whether there are any."""
        new = [
            (node, user)
            for user, nodes in self.users.items()
            for node in nodes
            if node not in before.get(user, ())
        ]
        for node, user in new:
            self.set(node, user, None)
        return bool(new)

    def close(self) -> None:
        if self.loading is not None:
            self.loading.cancel()
        if self.settling is not None:
            self.settling.cancel()

    def notify(self, changed: Iterable[str]) -> None:
        try:
            self.handler({user: self.merged(user) for user in changed})
        except Exception:  # a broken handler must not stop the messages of rooms
            logger.exception("a change of presence was not handled; room=%s", self.room)


class SharedPresence:
    """Stores the users of this node, and watches those of all others.

    Attributes:
        channels: subscribes to announcements. Set before the first room is watched.
    """

    def __init__(
        self,
        keys: KeySpace,
        node: str,
        call: Callable[..., asyncio.Future[Any]],
        tasks: Tasks,
    ) -> None:
        """
        Args:
            call: calls a script with keys and arguments.
        """
        self.channels: Channels
        self._keys = keys
        self._node = node
        self._call = call
        self._tasks = tasks
        self._own: dict[Room, dict[str, str]] = {}  # what has to be stored
        self._changed: dict[Room, set[str]] = {}  # not sent yet
        self._stale: set[Room] = set()  # rooms that were not stored
        self._mirrors: dict[bytes, _Mirror] = {}  # by channel
        self._retry_timer: asyncio.TimerHandle | None = None
        self._has_stored = False
        self._has_ended = False
        self.stays_s = 0.0
        """How long the users stay when the node has left."""

    def report(self, room: Room, user: str, presence: UserPresence | None) -> None:
        if self._has_ended:
            return
        users = self._own.setdefault(room, {})
        if presence is None:
            users.pop(user, None)
        else:
            users[user] = _encode(presence)
        if not users:
            del self._own[room]
        if room in self._stale:
            return  # all of the room is stored later
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._flush)
        self._changed.setdefault(room, set()).add(user)

    def end(self, after_s: float) -> None:
        if self._has_ended:
            return
        self._flush()
        for room in self._stale:
            self._store_all(room)
        self._has_ended = True
        self.stays_s = after_s if self._own or self._stale else 0.0
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        for mirror in list(self._mirrors.values()):
            self.unwatch(mirror.room)

    async def read(self, room: Room) -> RoomPresence:
        mirror = _Mirror(room, lambda _: None)
        connections = await self._read_into(mirror)
        users = {user: merged for user in mirror.users if (merged := mirror.merged(user))}
        return RoomPresence(connections, users)

    def watch(self, room: Room, handler: PresenceHandler) -> None:
        if self._has_ended:
            return
        mirror = self._mirrors[self._keys.of_room(room).presence] = _Mirror(room, handler)
        self._load(mirror)

    def unwatch(self, room: Room) -> None:
        channel = self._keys.of_room(room).presence
        if (mirror := self._mirrors.pop(channel, None)) is not None:
            self.channels.unsubscribe(channel)
            mirror.close()

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Handle an announcement of SET_PRESENCE."""
        mirror = self._mirrors.get(channel)
        if mirror is None:
            return
        try:
            previous, version, node, changes = payload.split(b" ", 3)
            announcement = _Announcement(int(previous), int(version), node.decode(), changes)
        except ValueError:  # another node has announced what cannot be parsed
            self._load(mirror)
            return
        if mirror.loading is None:
            self._apply(mirror, announcement)
        elif len(mirror.early) < _MAX_EARLY:
            mirror.early.append(announcement)
        else:
            mirror.early.clear()
            mirror.is_outdated = True

    async def report_again(self, partitions: Collection[int]) -> None:
        """Store the users of this node again, and read those of the others.

        It never fails: what is not stored now is stored later.
        """
        for mirror in list(self._mirrors.values()):
            if self._is_in(partitions, mirror.room):
                if mirror.settling is not None:
                    mirror.settling.cancel()
                    mirror.settling = None
                self._load(mirror)
        rooms = {room for room in (*self._own, *self._stale) if self._is_in(partitions, room)}
        if self._has_stored:  # a replica that took over may know users who have left since
            with contextlib.suppress(StoreUnavailableError):  # the next connection comes here again
                rooms.update(await self._rooms_of(self._node, partitions))
        self._stale -= rooms
        await asyncio.gather(*map(self._store_all, rooms), return_exceptions=True)

    async def remove(self, node: str) -> None:
        """Remove the users of a failed node.

        Raises:
            StoreUnavailableError: some were not removed.
        """
        rooms = await self._rooms_of(node, ALL_PARTITIONS)
        await asyncio.gather(*(self._set(room, node, {}, is_complete=True) for room in rooms))

    async def _rooms_of(self, node: str, partitions: Collection[int]) -> list[Room]:
        """Return the rooms that a node has stored users of."""
        found = await asyncio.gather(
            *(
                self._call(MEMBERS, (self._keys.present_rooms(partition, node),))
                for partition in partitions
            )
        )
        return [Room(name.decode()) for [names] in found for name in names]

    def _is_in(self, partitions: Collection[int], room: Room) -> bool:
        return self._keys.of_room(room).partition in partitions

    # The users of this node

    def _flush(self) -> None:
        changed, self._changed = self._changed, {}
        for room, names in changed.items():
            if room not in self._stale:
                users = self._own.get(room, {})
                states = {name: users.get(name, "") for name in names}
                self._track(room, self._set(room, self._node, states))

    def _store_all(self, room: Room) -> asyncio.Future[Any]:
        states = self._own.get(room, {})
        return self._track(room, self._set(room, self._node, states, is_complete=True))

    def _set(
        self, room: Room, node: str, states: Mapping[str, str], *, is_complete: bool = False
    ) -> asyncio.Future[Any]:
        """Store the states of users of a node.

        Args:
            states: an empty state removes the user.
            is_complete: remove all other users of the node from the room.
        """
        keys = self._keys.of_room(room)
        has_users = bool(states if node != self._node else self._own.get(room))
        return self._call(
            SET_PRESENCE,
            (keys.presence, self._keys.present_rooms(keys.partition, node)),
            node,
            room,
            int(is_complete),
            int(has_users),
            json.dumps([part for pair in states.items() for part in pair]),
        )

    def _track(self, room: Room, stored: asyncio.Future[Any]) -> asyncio.Future[Any]:
        self._has_stored = True
        stored.add_done_callback(partial(self._was_stored, room))
        return stored

    def _was_stored(self, room: Room, stored: asyncio.Future[Any]) -> None:
        if stored.cancelled() or stored.exception() is None or self._has_ended:
            return
        self._stale.add(room)
        if self._retry_timer is None:
            loop = asyncio.get_running_loop()
            self._retry_timer = loop.call_later(RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retry_timer = None
        for room in list(self._stale)[:_RETRIED]:
            self._stale.discard(room)
            self._store_all(room)

    # The users of other nodes

    def _load(self, mirror: _Mirror, *, is_exact: bool = False) -> None:
        """Read the users of a room.

        Args:
            is_exact: users who are missing have left. Otherwise Redis may have lost them.
        """
        if mirror.loading is None:
            mirror.is_exact = is_exact
            mirror.loading = self._tasks.spawn(self._fill(mirror))
        else:
            mirror.is_exact = mirror.is_exact and is_exact
            mirror.is_outdated = True

    async def _fill(self, mirror: _Mirror) -> None:
        """Read the users of a room until nothing was missed meanwhile."""
        self.channels.start()
        fresh = mirror
        is_current = False
        while not is_current:
            mirror.is_outdated = False
            try:
                await self.channels.subscribe(self._keys.of_room(mirror.room).presence)
                fresh = _Mirror(mirror.room, mirror.handler)
                await self._read_into(fresh)
            except StoreUnavailableError:
                await asyncio.sleep(RETRY_S)
                continue
            is_current = not mirror.is_outdated
        before, is_first = mirror.users, mirror.version is None
        if not mirror.is_exact:
            mirror.is_replaced |= not is_first and fresh.epoch != mirror.epoch
            has_missing = fresh.keep(before)
            has_new = mirror.is_replaced and fresh.hide(before)
            if (has_missing or has_new) and mirror.settling is None:
                loop = asyncio.get_running_loop()
                mirror.settling = loop.call_later(SETTLE_S, self._settle, mirror)
        known = {user: mirror.merged(user) for user in before}
        mirror.users, mirror.version, mirror.loading = fresh.users, fresh.version, None
        mirror.epoch = fresh.epoch
        early, mirror.early = mirror.early, []
        changed = [
            user for user in {**before, **fresh.users} if known.get(user) != mirror.merged(user)
        ]
        if changed or is_first:
            mirror.notify(changed)
        for announcement in early:
            if mirror.loading is None:
                self._apply(mirror, announcement)

    def _settle(self, mirror: _Mirror) -> None:
        mirror.settling, mirror.is_replaced = None, False
        self._load(mirror, is_exact=True)

    async def _read_into(self, mirror: _Mirror) -> int:
        """Read the users at other nodes. Return how many connections these have in the room."""
        room, keys = mirror.room, self._keys.of_room(mirror.room)
        mirror.epoch, version, connections, *fields = await self._call(
            READ_PRESENCE,
            (keys.presence, keys.meta, self._keys.node_rooms(room, self._node), keys.state),
            room,
        )
        mirror.version = int(version)
        for field, presence in zip(fields[::2], _decode_all(fields[1::2]), strict=True):
            node, _, user = field.decode(errors="replace").partition(":")
            if node != self._node:
                mirror.set(node, user, presence)
        return max(0, int(connections))

    def _apply(self, mirror: _Mirror, announcement: _Announcement) -> None:
        previous, version, node, changes = announcement
        assert mirror.version is not None  # noqa: S101 - it was read
        if previous and version <= mirror.version:
            return  # it was read already
        changed: dict[str, None] = {}
        if previous != mirror.version and (previous or mirror.users or version < mirror.version):
            self._load(mirror)
            return
        if not changes:
            self._load(mirror, is_exact=mirror.settling is None)
            return
        try:
            users = _decode_changes(changes)
        except ValueError:
            self._load(mirror)
            return
        mirror.version = version
        if node != self._node:
            for user, presence in users.items():
                mirror.set(node, user, presence)
                changed[user] = None
        if changed:
            mirror.notify(changed)


def _encode(presence: UserPresence) -> str:
    return json.dumps([presence.connections, presence.devices], separators=(",", ":"))


def _decode_all(states: Sequence[bytes]) -> list[UserPresence | None]:
    """Decode states. One that a broken node has stored is None."""
    try:
        # Parsed together: in a large room that takes a third of the time.
        values = from_json(b"[%b]" % b",".join(states))
        if len(values) == len(states):
            return [_parse(value) for value in values]
    except ValueError:
        pass
    logger.warning("the presence of a user at another node is malformed; ignoring it")
    return [_decode_or_none(state) for state in states]


def _decode_or_none(state: bytes) -> UserPresence | None:
    try:
        return _parse(from_json(state))
    except ValueError:
        return None


def _decode_changes(changes: bytes) -> dict[str, UserPresence | None]:
    """Decode what SET_PRESENCE announces: user and state of each. An empty state is None.

    Raises:
        ValueError: it is malformed.
    """
    match from_json(changes):
        case [*parts] if len(parts) % 2 == 0 and all(isinstance(part, str) for part in parts):
            states = (_parse(from_json(state)) if state else None for state in parts[1::2])
            return dict(zip(parts[::2], states, strict=True))
    raise ValueError("expected users and states")


def _parse(state: object) -> UserPresence:
    """
    Raises:
        ValueError: it is none. Newer nodes may append to it.
    """
    match state:
        case [int(connections), [*devices], *_]:
            names = tuple(each for each in devices if isinstance(each, str))
            if len(names) == len(devices):
                return UserPresence(connections, names)
    raise ValueError("expected connections and devices")
