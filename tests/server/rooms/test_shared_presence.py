"""Presence that nodes share: what a node reports, and what its watchers get of others."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest

from synap_realtime.protocol.control import ControlFrame
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.rooms import presence
from synap_realtime.server.rooms.presence import Presence
from synap_realtime.server.stores.base import (
    PresenceHandler,
    PresenceStore,
    RoomPresence,
    UserPresence,
)
from tests.support.polling import until
from tests.support.waits import SetWaits

ROOM = Room("workspace_7")


class FakeStore:
    """A store with other nodes, of which the test is one.

    Attributes:
        reported: the last report of each user.
        handlers: of the rooms that are watched.
        others: what is read.
    """

    def __init__(self) -> None:
        self.reported: dict[tuple[Room, str], UserPresence | None] = {}
        self.handlers: dict[Room, PresenceHandler] = {}
        self.others: defaultdict[Room, dict[str, UserPresence]] = defaultdict(dict)
        self.is_away = False
        self.ended_after_s: float | None = None

    def report_presence(self, room: Room, user: str, presence: UserPresence | None) -> None:
        self.reported[room, user] = presence

    def end_presence(self, after_s: float) -> None:
        self.ended_after_s = after_s

    async def read_presence(self, room: Room) -> RoomPresence:
        if self.is_away:
            raise StoreUnavailableError("Redis is away")
        users = self.others[room]
        return RoomPresence(sum(user.connections for user in users.values()), users)

    def watch_presence(self, room: Room, handler: PresenceHandler) -> None:
        assert room not in self.handlers
        self.handlers[room] = handler

    def unwatch_presence(self, room: Room) -> None:
        del self.handlers[room]

    def change(self, user: str, presence: UserPresence | None) -> None:
        """Report a user at another node."""
        self.handlers[ROOM]({user: presence})


class Watcher:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.read = 0

    def send_control(self, frame: ControlFrame) -> None:
        self.events.append(dict(frame.data))

    def count_read(self, size: int) -> None:
        self.read += size

    @property
    def names(self) -> list[tuple[str, str]]:
        return [(each["event"], each["user"]) for each in self.events if each["event"] != "state"]


@pytest.fixture(autouse=True)
def _fast(set_waits: SetWaits) -> None:
    set_waits(presence_update_interval_s=0.01)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
async def here(store: FakeStore) -> AsyncIterator[Presence]:
    assert isinstance(store, PresenceStore)
    tracked = Presence(store, grace_s=0.05)
    yield tracked
    tracked.close()


def state(*users: dict[str, Any]) -> dict[str, Any]:
    return {"event": "state", "users": list(users)}


def listed(user: str, connections: int, *devices: str) -> dict[str, Any]:
    return {"user": user, "connections": connections, "devices": list(devices)}


async def test_every_change_of_a_user_is_reported(here: Presence, store: FakeStore) -> None:
    key = (ROOM, "ann")
    here.join(ROOM, "ann", "phone")
    assert store.reported == {key: UserPresence(1, ("phone",))}
    here.join(ROOM, "ann", None)
    here.join(ROOM, "ann", "laptop")
    assert store.reported == {key: UserPresence(3, ("laptop", "phone"))}
    here.leave(ROOM, "ann", None)
    here.leave(ROOM, "ann", "phone")
    here.leave(ROOM, "ann", "laptop")
    assert store.reported == {key: UserPresence(0, ("laptop", "phone"))}, "within the grace period"
    await until(lambda: store.reported == {key: None})


async def test_what_a_user_reports_is_bounded(here: Presence, store: FakeStore) -> None:
    for n in range(500):
        here.join(ROOM, "ann", f"d{n:03}")
    reported = store.reported[ROOM, "ann"]
    assert reported is not None
    assert reported.connections == 500
    assert reported.devices == tuple(f"d{n:03}" for n in range(presence.MAX_DEVICES))


async def test_users_of_all_nodes_are_listed_together(here: Presence, store: FakeStore) -> None:
    here.join(ROOM, "ann", "phone")
    store.others[ROOM] = {"ann": UserPresence(2, ("laptop",)), "bob": UserPresence(0, ("tab",))}
    others = await here.others(ROOM)
    assert others.connections == 2
    assert here.users(ROOM, others.users) == [
        listed("ann", 3, "laptop", "phone"),
        listed("bob", 0, "tab"),
    ]
    assert here.users(ROOM) == [listed("ann", 1, "phone")]
    store.is_away = True
    with pytest.raises(StoreUnavailableError):
        await here.others(ROOM)


async def test_merged_devices_are_bounded(here: Presence, store: FakeStore) -> None:
    here.join(ROOM, "ann", "zzz")
    many = tuple(f"d{n:03}" for n in range(3 * presence.MAX_DEVICES))
    store.others[ROOM] = {"ann": UserPresence(200, many), "bob": UserPresence(200, many)}
    for user in here.users(ROOM, (await here.others(ROOM)).users):
        assert user["devices"] == list(many[: presence.MAX_DEVICES])


async def test_state_is_sent_when_the_users_at_other_nodes_are_known(
    here: Presence, store: FakeStore
) -> None:
    first, second, gone = Watcher(), Watcher(), Watcher()
    here.join(ROOM, "ann", "phone")
    here.watch(ROOM, first, first.count_read)
    here.watch(ROOM, gone, gone.count_read)
    here.unwatch(ROOM, gone)
    here.join(ROOM, "bob", None)
    assert first.events == []
    store.handlers[ROOM]({"ann": UserPresence(1, ("tab",)), "eve": UserPresence(0, ())})
    expected = state(listed("ann", 2, "phone", "tab"), listed("bob", 1), listed("eve", 0))
    assert first.events == [expected]
    assert first.read > 100
    here.watch(ROOM, second, second.count_read)
    assert (second.events, second.read) == ([expected], first.read)
    assert (gone.events, gone.read) == ([], 0)
    await asyncio.sleep(0.03)
    assert first.events == [expected], "nothing has changed since"


async def test_a_room_without_users_elsewhere_has_a_state_too(
    here: Presence, store: FakeStore
) -> None:
    watcher = Watcher()
    here.watch(ROOM, watcher)
    store.handlers[ROOM]({})
    assert watcher.events == [state()]


async def test_changes_at_other_nodes_are_events(here: Presence, store: FakeStore) -> None:
    watcher = Watcher()
    here.join(ROOM, "ann", "phone")
    here.watch(ROOM, watcher)
    store.handlers[ROOM]({})
    store.change("bob", UserPresence(1, ("tab",)))
    await until(lambda: watcher.names == [("join", "bob")])
    store.change("ann", UserPresence(1, ("tab",)))
    await until(lambda: watcher.names[1:] == [("update", "ann")])
    assert watcher.events[-1] == {"event": "update", **listed("ann", 2, "phone", "tab")}
    store.change("bob", None)
    await until(lambda: watcher.names[2:] == [("leave", "bob")])
    store.change("ann", None)
    await until(lambda: watcher.names[3:] == [("update", "ann")])


async def test_changes_elsewhere_within_the_interval_are_one_event(
    here: Presence, store: FakeStore, set_waits: SetWaits
) -> None:
    set_waits(presence_update_interval_s=0.1)
    watcher = Watcher()
    here.watch(ROOM, watcher)
    store.handlers[ROOM]({})
    store.change("bob", UserPresence(1, ()))
    for n in range(100):
        store.change("bob", None)
        store.change("bob", UserPresence(1, (f"d{n}",)))
        store.change("eve", UserPresence(1, ()))
        store.change("eve", None)
    await asyncio.sleep(0.3)
    assert watcher.names == [("join", "bob"), ("update", "bob")]


async def test_a_user_who_moves_to_another_node_has_not_left(
    here: Presence, store: FakeStore
) -> None:
    watcher = Watcher()
    here.join(ROOM, "ann", "phone")
    here.watch(ROOM, watcher)
    store.handlers[ROOM]({})
    here.leave(ROOM, "ann", "phone")
    store.change("ann", UserPresence(1, ("phone",)))
    await until(lambda: store.reported == {(ROOM, "ann"): None})
    await asyncio.sleep(0.05)
    here.join(ROOM, "ann", "phone")
    store.change("ann", UserPresence(0, ("phone",)))
    store.change("ann", None)
    await asyncio.sleep(0.05)
    assert watcher.events == [state(listed("ann", 1, "phone"))]


async def test_others_are_watched_only_while_there_are_watchers(
    here: Presence, store: FakeStore
) -> None:
    first, second = Watcher(), Watcher()
    here.join(ROOM, "ann", None)
    assert not store.handlers
    here.watch(ROOM, first)
    here.watch(ROOM, second)
    handler = store.handlers[ROOM]
    here.unwatch(ROOM, first)
    assert store.handlers
    here.unwatch(ROOM, second)
    assert not store.handlers
    handler({"bob": UserPresence(1, ())})  # it was on the way
    assert first.events == second.events == []
    here.watch(ROOM, first)
    store.handlers[ROOM]({"eve": UserPresence(1, ())})
    assert first.events == [state(listed("ann", 1), listed("eve", 1))]


async def test_users_of_a_node_that_stops_stay_for_the_grace_period(store: FakeStore) -> None:
    stopping = Presence(store, grace_s=7)
    stopping.join(ROOM, "ann", None)
    stopping.watch(ROOM, Watcher())
    stopping.leave(ROOM, "ann", None)
    stopping.close()
    assert store.ended_after_s == 7
    assert store.reported == {(ROOM, "ann"): UserPresence(0, ())}
