"""Each order in which replies and announcements of presence and connections can arrive."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import UserPresence
from synap_realtime.server.stores.redis import presence
from synap_realtime.server.stores.redis.keys import ALL_PARTITIONS, KeySpace
from synap_realtime.server.stores.redis.presence import SharedPresence
from synap_realtime.server.stores.redis.script import Script
from synap_realtime.server.stores.redis.scripts import (
    COUNT_CONNECTIONS,
    MEMBERS,
    READ_PRESENCE,
    SET_PRESENCE,
)
from synap_realtime.server.stores.redis.tasks import Tasks
from synap_realtime.server.stores.redis.user_connections import UserConnections
from tests.support.waits import SetWaits

ROOM = Room("workspace_7")
KEYS = KeySpace("synap")
CHANNEL = KEYS.of_room(ROOM).presence
A, B = "a" * 16, "b" * 16  # other nodes
ONE = UserPresence(1, ())


class Redis:
    """Replies to calls when the test says so, and confirms subscriptions immediately."""

    def __init__(self) -> None:
        self.calls: list[tuple[Script, tuple[Any, ...], asyncio.Future[Any]]] = []
        self.subscribed: list[bytes] = []

    def call(self, script: Script, keys: Sequence[bytes], *arguments: Any) -> asyncio.Future[Any]:
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if script is MEMBERS:
            reply.set_result([[]])
        else:
            self.calls.append((script, arguments, reply))
        return reply

    def start(self) -> None: ...

    async def subscribe(self, channel: bytes) -> None:
        self.subscribed.append(channel)

    def unsubscribe(self, channel: bytes) -> None:
        self.subscribed.remove(channel)

    async def next(self, script: Script) -> tuple[tuple[Any, ...], asyncio.Future[Any]]:
        """Return the arguments and the reply of the next call."""
        await settle()
        found, arguments, reply = self.calls.pop(0)
        assert found is script
        return arguments, reply


async def settle() -> None:
    """Run what can run now."""
    for _ in range(10):
        await asyncio.sleep(0)


class Seen:
    def __init__(self) -> None:
        self.calls: list[Mapping[str, UserPresence | None]] = []

    def __call__(self, changes: Mapping[str, UserPresence | None]) -> None:
        self.calls.append(dict(changes))


@pytest.fixture
def redis() -> Redis:
    return Redis()


@pytest.fixture
def shared(redis: Redis) -> SharedPresence:
    shared = SharedPresence(KEYS, "c" * 16, redis.call, Tasks())
    shared.channels = redis
    return shared


def read(version: int, *users: tuple[str, str], epoch: bytes = b"e1") -> list[Any]:
    """A reply of READ_PRESENCE: node and user, each with one connection."""
    fields = [(f"{node}:{user}".encode(), b"[1,[]]") for node, user in users]
    return [epoch, b"%d" % version, 0, *itertools.chain.from_iterable(fields)]


def announcement(previous: int, version: int, node: str, *changes: tuple[str, str] | None) -> bytes:
    text = json.dumps([part for change in changes if change for part in change]) if changes else ""
    return f"{previous} {version} {node} {text}".encode()


async def watch(shared: SharedPresence, redis: Redis, reply: list[Any]) -> Seen:
    seen = Seen()
    shared.watch(ROOM, seen)
    _, future = await redis.next(READ_PRESENCE)
    assert redis.subscribed == [CHANNEL], "it is subscribed to before it is read"
    future.set_result(reply)
    await settle()
    return seen


JOIN, LEAVE = "[1,[]]", ""


async def test_what_arrives_while_the_hash_is_read_is_applied_after_it(
    shared: SharedPresence, redis: Redis
) -> None:
    seen = Seen()
    shared.watch(ROOM, seen)
    _, reply = await redis.next(READ_PRESENCE)
    shared.on_message(CHANNEL, announcement(3, 5, A, ("ann", JOIN)))  # the reply contains it
    shared.on_message(CHANNEL, announcement(5, 6, B, ("ann", JOIN)))
    shared.on_message(CHANNEL, announcement(6, 7, A, ("ann", LEAVE)))
    assert seen.calls == []
    reply.set_result(read(5, (A, "ann")))
    await settle()
    assert seen.calls == [{"ann": ONE}, {"ann": UserPresence(2, ())}, {"ann": ONE}]
    assert redis.calls == []


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"x y z []",
        b"5 6 \xff []",
        b'5 6 a ["bob"]',
        b'5 6 a {"bob":1}',
        b'5 6 a ["bob","x"]',
        b'5 6 a ["bob","[[],1]"]',
        b"5 6 a " + b"[" * 5000,
    ],
)
async def test_malformed_announcement_leads_to_a_read(
    shared: SharedPresence, redis: Redis, message: bytes
) -> None:
    seen = await watch(shared, redis, read(5, (A, "ann")))
    shared.on_message(CHANNEL, message)
    _, reply = await redis.next(READ_PRESENCE)
    reply.set_result(read(6, (A, "ann"), (B, "bob")))
    await settle()
    assert seen.calls == [{"ann": ONE}, {"bob": ONE}]


@pytest.mark.parametrize(
    "state", [b"", b"x", b"[1", b"{}", b'["1",[]]', b"[1,[7]]", b"[1,[]],[1,[]]"]
)
async def test_malformed_state_of_a_user_hides_no_other(
    shared: SharedPresence, redis: Redis, state: bytes
) -> None:
    reply = read(5, (A, "ann"), (B, "bob"), (B, "eve"))
    reply[reply.index(b"%b:bob" % B.encode()) + 1] = state
    seen = await watch(shared, redis, reply)
    assert seen.calls == [{"ann": ONE, "eve": ONE}]


async def test_what_a_newer_node_appends_to_a_state_is_ignored(
    shared: SharedPresence, redis: Redis
) -> None:
    seen = await watch(shared, redis, read(5))
    shared.on_message(CHANNEL, announcement(5, 6, A, ("bob", '[1,["x"],{"y":1}]')))
    assert seen.calls[-1] == {"bob": UserPresence(1, ("x",))}


async def test_what_arrives_late_is_ignored(shared: SharedPresence, redis: Redis) -> None:
    seen = await watch(shared, redis, read(9))
    shared.on_message(CHANNEL, announcement(3, 5, A, ("ann", JOIN)))
    shared.on_message(CHANNEL, announcement(5, 9, A, ("ann", LEAVE)))
    await settle()
    assert seen.calls == [{}]
    assert redis.calls == []


async def test_a_gap_is_read_again(shared: SharedPresence, redis: Redis) -> None:
    seen = await watch(shared, redis, read(5, (A, "ann")))
    shared.on_message(CHANNEL, announcement(7, 9, A, ("bob", JOIN)))
    _, reply = await redis.next(READ_PRESENCE)
    shared.on_message(CHANNEL, announcement(9, 11, A, ("eve", JOIN)))
    reply.set_result(read(9, (A, "ann"), (A, "bob")))
    await settle()
    assert seen.calls == [{"ann": ONE}, {"bob": ONE}, {"eve": ONE}]


async def test_users_who_are_missing_after_a_reconnect_are_kept_for_a_while(
    shared: SharedPresence, redis: Redis, set_waits: SetWaits
) -> None:
    """As when Redis has lost its data, and their nodes have not reported them again yet."""
    set_waits(redis_presence_settle_s=0.1)
    seen = await watch(shared, redis, read(5, (A, "ann"), (B, "ann"), (A, "bob"), (A, "eve")))
    await shared.report_again(ALL_PARTITIONS)
    _, reply = await redis.next(READ_PRESENCE)
    shared.on_message(CHANNEL, announcement(0, 9, A, ("ann", JOIN)))
    reply.set_result(read(8))
    _, reply = await redis.next(READ_PRESENCE)  # another hash than the known one
    reply.set_result(read(9, (A, "ann")))
    await settle()
    shared.on_message(CHANNEL, announcement(9, 10, A, ("bob", JOIN)))
    shared.on_message(CHANNEL, announcement(10, 11, A, ("bob", LEAVE)))
    assert seen.calls[1:] == [{"bob": ONE}, {"bob": None}]
    await asyncio.sleep(0.12)
    _, reply = await redis.next(READ_PRESENCE)
    reply.set_result(read(11, (A, "ann")))
    await settle()
    assert seen.calls[3:] == [{"ann": ONE, "eve": None}]
    await asyncio.sleep(0.12)
    assert redis.calls == []


async def test_users_whom_only_a_new_primary_knows_are_hidden_for_a_while(
    shared: SharedPresence, redis: Redis, set_waits: SetWaits
) -> None:
    """As when they left just before the failover, and their node has not reported it again yet."""
    set_waits(redis_presence_settle_s=0.1)
    seen = await watch(shared, redis, read(5, (A, "ann")))
    for _ in range(2):
        await shared.report_again(ALL_PARTITIONS)
        _, reply = await redis.next(READ_PRESENCE)
        users = ((A, "ann"), (A, "bob"), (B, "ann"), (B, "eve"))
        reply.set_result(read(4, *users, epoch=b"e2"))
        await settle()
        assert seen.calls[1:] == []
    shared.on_message(CHANNEL, announcement(4, 6, A, ("bob", LEAVE), ("jon", JOIN)))
    assert seen.calls[1:] == [{"bob": None, "jon": ONE}]
    await asyncio.sleep(0.12)
    _, reply = await redis.next(READ_PRESENCE)
    reply.set_result(read(6, (A, "ann"), (A, "jon"), (B, "eve"), epoch=b"e2"))
    await settle()
    assert seen.calls[2:] == [{"eve": ONE}]
    await asyncio.sleep(0.12)
    await shared.report_again(ALL_PARTITIONS)
    _, reply = await redis.next(READ_PRESENCE)
    reply.set_result(read(7, (A, "ann"), (A, "jon"), (A, "new"), (B, "eve"), epoch=b"e2"))
    await settle()
    assert seen.calls[3:] == [{"new": ONE}], "the same primary knows who has come"


async def test_another_reconnect_keeps_missing_users_for_longer(
    shared: SharedPresence, redis: Redis, set_waits: SetWaits
) -> None:
    set_waits(redis_presence_settle_s=0.2)
    seen = await watch(shared, redis, read(5, (A, "ann")))
    for _ in range(3):
        await shared.report_again(ALL_PARTITIONS)
        _, reply = await redis.next(READ_PRESENCE)
        reply.set_result(read(9))
        await asyncio.sleep(0.12)
    assert (seen.calls[1:], redis.calls) == ([], [])
    shared.unwatch(ROOM)
    await asyncio.sleep(0.25)
    assert redis.calls == []


async def test_a_reconnect_during_an_exact_read_keeps_missing_users(
    shared: SharedPresence, redis: Redis, set_waits: SetWaits
) -> None:
    set_waits(redis_presence_settle_s=0.05)
    seen = await watch(shared, redis, read(5, (A, "ann")))
    await shared.report_again(ALL_PARTITIONS)
    _, reply = await redis.next(READ_PRESENCE)
    reply.set_result(read(9))
    await asyncio.sleep(0.06)
    _, reply = await redis.next(READ_PRESENCE)
    await shared.report_again(ALL_PARTITIONS)
    reply.set_result(read(9))
    _, reply = await redis.next(READ_PRESENCE)
    reply.set_result(read(10))
    await settle()
    assert seen.calls[1:] == []
    shared.unwatch(ROOM)


async def test_a_room_that_was_empty_elsewhere_begins_anew_without_a_read(
    shared: SharedPresence, redis: Redis
) -> None:
    seen = await watch(shared, redis, read(5, (A, "ann")))
    shared.on_message(CHANNEL, announcement(5, 6, A, ("ann", LEAVE)))
    shared.on_message(CHANNEL, announcement(0, 9, A, ("bob", JOIN)))
    await settle()
    assert seen.calls[1:] == [{"ann": None}, {"bob": ONE}]
    assert redis.calls == []


async def test_a_hash_that_began_before_what_is_known_is_read(
    shared: SharedPresence, redis: Redis
) -> None:
    """As after a failover to a server whose clock is behind."""
    seen = await watch(shared, redis, read(9))
    shared.on_message(CHANNEL, announcement(0, 5, A, ("bob", JOIN)))
    _, reply = await redis.next(READ_PRESENCE)
    reply.set_result(read(5, (A, "bob")))
    await settle()
    assert seen.calls[1:] == [{"bob": ONE}]
    shared.on_message(CHANNEL, announcement(5, 6, A, ("eve", JOIN)))
    assert seen.calls[2:] == [{"eve": ONE}]


async def test_an_announcement_without_content_is_read(
    shared: SharedPresence, redis: Redis
) -> None:
    seen = await watch(shared, redis, read(5, (A, "bob")))
    shared.on_message(CHANNEL, announcement(5, 6, A))
    _, reply = await redis.next(READ_PRESENCE)
    reply.set_result(read(6, (A, "ann")))
    await settle()
    assert seen.calls == [{"bob": ONE}, {"ann": ONE, "bob": None}]


async def test_a_reconnect_while_the_hash_is_read_reads_it_again(
    shared: SharedPresence, redis: Redis
) -> None:
    seen = Seen()
    shared.watch(ROOM, seen)
    _, before = await redis.next(READ_PRESENCE)
    await shared.report_again(ALL_PARTITIONS)  # what was announced meanwhile is lost
    before.set_result(read(5))
    _, after = await redis.next(READ_PRESENCE)
    assert seen.calls == []
    after.set_result(read(6, (A, "ann")))
    await settle()
    assert seen.calls == [{"ann": ONE}]


async def test_a_flood_while_the_hash_is_read_is_bounded_and_read_again(
    shared: SharedPresence, redis: Redis
) -> None:
    seen = Seen()
    shared.watch(ROOM, seen)
    _, before = await redis.next(READ_PRESENCE)
    count = presence._MAX_EARLY + 1
    for n in range(count):
        shared.on_message(CHANNEL, announcement(n + 1, n + 2, A, (f"u{n}", JOIN)))
    before.set_result(read(1))
    _, after = await redis.next(READ_PRESENCE)
    after.set_result(read(count + 1, (A, "ann")))
    await settle()
    assert seen.calls == [{"ann": ONE}]
    assert redis.calls == []


async def test_an_own_change_only_advances_the_version(
    shared: SharedPresence, redis: Redis
) -> None:
    seen = await watch(shared, redis, read(5, (shared._node, "me"), (A, "ann")))
    shared.on_message(CHANNEL, announcement(5, 6, shared._node, ("me", LEAVE)))
    shared.on_message(CHANNEL, announcement(6, 7, A, ("bob", JOIN)))
    assert seen.calls == [{"ann": ONE}, {"bob": ONE}]


async def test_a_handler_that_raises_stops_nothing(
    shared: SharedPresence, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_changes: Mapping[str, UserPresence | None]) -> None:
        raise ValueError("broken")

    shared.watch(ROOM, broken)
    _, reply = await redis.next(READ_PRESENCE)
    reply.set_result(read(5))
    await settle()
    shared.on_message(CHANNEL, announcement(5, 6, A, ("ann", JOIN)))
    assert caplog.text.count(f"a change of presence was not handled; room={ROOM}") == 2


async def test_a_room_that_is_watched_again_has_its_own_state(
    shared: SharedPresence, redis: Redis
) -> None:
    first, second = Seen(), Seen()
    shared.watch(ROOM, first)
    _, old = await redis.next(READ_PRESENCE)
    shared.unwatch(ROOM)
    shared.watch(ROOM, second)
    _, new = await redis.next(READ_PRESENCE)
    old.cancel()
    new.set_result(read(5, (A, "ann")))
    await settle()
    assert (first.calls, second.calls) == ([], [{"ann": ONE}])


async def test_a_room_that_was_not_stored_is_stored_as_a_whole_at_the_next_connection(
    shared: SharedPresence, redis: Redis
) -> None:
    shared.report(ROOM, "ann", ONE)
    _, reply = await redis.next(SET_PRESENCE)
    reply.set_exception(StoreUnavailableError("away"))
    await settle()
    shared.report(ROOM, "bob", ONE)
    shared.report(ROOM, "ann", None)
    await settle()
    assert redis.calls == [], "it is not tried while Redis is away"
    again = asyncio.create_task(shared.report_again(ALL_PARTITIONS))
    arguments, reply = await redis.next(SET_PRESENCE)
    assert arguments[-3:] == (1, 1, json.dumps(["bob", "[1,[]]"]))
    reply.set_result(1)
    await again
    shared.report(ROOM, "eve", ONE)
    arguments, reply = await redis.next(SET_PRESENCE)
    assert arguments[-3:] == (0, 1, json.dumps(["eve", "[1,[]]"]))
    reply.set_result(1)
    shared.end(0.0)


# Connections of users: one call for a user at a time


@pytest.fixture
def connections(redis: Redis) -> UserConnections:
    return UserConnections(KEYS, "c" * 16, redis.call)


async def test_what_changes_during_a_call_is_stored_by_the_next(
    connections: UserConnections, redis: Redis
) -> None:
    first = asyncio.create_task(connections.acquire("ann", 9))
    arguments, reply = await redis.next(COUNT_CONNECTIONS)
    assert arguments[1:] == ("ann", 0, 1, 9)
    reply.set_result([1])
    assert await first
    second = asyncio.create_task(connections.acquire("ann", 9))
    arguments, reply = await redis.next(COUNT_CONNECTIONS)
    assert arguments[1:] == ("ann", 1, 1, 9)
    connections.release("ann")
    third = asyncio.create_task(connections.acquire("ann", 9))
    await settle()
    assert redis.calls == []
    reply.set_result([1])
    assert await second
    arguments, reply = await redis.next(COUNT_CONNECTIONS)
    assert arguments[1:] == ("ann", 1, 1, 9)
    connections.release("ann")
    reply.set_result([0])
    assert not await third
    arguments, reply = await redis.next(COUNT_CONNECTIONS)
    assert arguments[1:] == ("ann", 0, 0, 9)
    reply.set_result([0])
    await settle()
    assert (redis.calls, connections._users) == ([], {})


async def test_a_client_that_leaves_during_its_call_is_uncounted(
    connections: UserConnections, redis: Redis
) -> None:
    leaves, stays = (asyncio.create_task(connections.acquire("ann", 9)) for _ in range(2))
    _, reply = await redis.next(COUNT_CONNECTIONS)
    leaves.cancel()
    await settle()
    reply.set_result([1])  # one of both
    assert await stays
    await settle()
    assert (redis.calls, connections._users["ann"].count) == ([], 1)


async def test_a_client_that_leaves_when_it_was_counted_is_uncounted(
    connections: UserConnections, redis: Redis
) -> None:
    leaves = asyncio.create_task(connections.acquire("ann", 9))
    _, reply = await redis.next(COUNT_CONNECTIONS)
    reply.set_result([1])
    await asyncio.sleep(0)  # counted; the task has not run yet
    assert connections._users["ann"].count == 1
    leaves.cancel()
    arguments, reply = await redis.next(COUNT_CONNECTIONS)
    assert leaves.cancelled()
    assert arguments[1:] == ("ann", 0, 0, 9)
    reply.set_result([0])


async def test_a_call_that_may_have_been_lost_is_repeated(
    connections: UserConnections, redis: Redis
) -> None:
    first = asyncio.create_task(connections.acquire("ann", 9))
    _, reply = await redis.next(COUNT_CONNECTIONS)
    await connections.report_again(ALL_PARTITIONS)
    reply.set_result([1])  # by a server that was replaced meanwhile
    assert await first
    arguments, reply = await redis.next(COUNT_CONNECTIONS)
    assert arguments[1:] == ("ann", 1, 0, 9)
    reply.set_result([0])
