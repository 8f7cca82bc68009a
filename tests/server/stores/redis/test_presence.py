"""Presence over two stores on one Valkey, without and with failures."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import PresenceStore, RoomPresence, UserPresence
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.polling import until
from tests.support.timeouts import scaled
from tests.support.valkey import Valkey, running_valkey
from tests.support.waits import SetWaits

ROOM = Room("workspace_7")
HERE = UserPresence(1, ("phone",))


class Watch:
    """The users at other nodes, as the handler of a room gets them.

    Attributes:
        calls: what it was called with.
    """

    def __init__(self, store: PresenceStore, room: Room = ROOM) -> None:
        self.users: dict[str, UserPresence] | None = None
        self.calls: list[Mapping[str, UserPresence | None]] = []
        store.watch_presence(room, self._handle)

    def _handle(self, changes: Mapping[str, UserPresence | None]) -> None:
        self.calls.append(changes)
        self.users = self.users or {}
        for name, user in changes.items():
            if user is None:
                del self.users[name]
            else:
                self.users[name] = user

    async def until(self, expected: dict[str, UserPresence]) -> None:
        await until(lambda: self.users == expected)


@pytest.fixture(autouse=True)
def _short_waits(set_waits: SetWaits) -> None:
    set_waits(redis_presence_settle_s=scaled(2.0))


async def until_read(store: PresenceStore, expected: dict[str, UserPresence]) -> None:
    async def is_read() -> bool:
        return (await store.read_presence(ROOM)).users == expected

    await until(is_read)


async def is_ready(store: RedisStore) -> bool:
    try:
        await store.check()
    except StoreUnavailableError:
        return False
    return True


def keys_of(valkey: Valkey, kind: str) -> list[bytes]:
    found: list[bytes] = valkey.command("KEYS", f"synap:*:{kind}:*")
    return found


async def test_a_node_reads_the_users_of_the_others(nodes: tuple[RedisStore, RedisStore]) -> None:
    a, b = nodes
    a.report_presence(ROOM, "ann", HERE)
    a.report_presence(ROOM, "bob", UserPresence(0, ()))
    b.report_presence(ROOM, "ann", UserPresence(2, ("laptop",)))
    await until_read(b, {"ann": HERE, "bob": UserPresence(0, ())})
    await until_read(a, {"ann": UserPresence(2, ("laptop",))})
    assert (await a.read_presence(Room("workspace_8"))).users == {}


async def test_connections_count_those_without_a_user(
    nodes: tuple[RedisStore, RedisStore],
) -> None:
    a, b = nodes
    for _ in range(3):
        await a.join(ROOM)
    await b.join(ROOM)
    assert await a.read_presence(ROOM) == RoomPresence(1, {})
    assert await b.read_presence(ROOM) == RoomPresence(3, {})


async def test_a_watcher_gets_the_state_then_changes(nodes: tuple[RedisStore, RedisStore]) -> None:
    a, b = nodes
    a.report_presence(ROOM, "ann", HERE)
    await until_read(b, {"ann": HERE})
    watch = Watch(b)
    await watch.until({"ann": HERE})
    assert len(watch.calls) == 1
    a.report_presence(ROOM, "bob", HERE)
    await watch.until({"ann": HERE, "bob": HERE})
    a.report_presence(ROOM, "ann", None)
    await watch.until({"bob": HERE})
    b.report_presence(ROOM, "eve", HERE)  # its own users are not repeated to it
    a.report_presence(ROOM, "bob", UserPresence(0, ()))
    await watch.until({"bob": UserPresence(0, ())})
    assert not any("eve" in call for call in watch.calls)
    b.unwatch_presence(ROOM)
    a.report_presence(ROOM, "bob", None)
    await until_read(b, {})
    assert watch.users == {"bob": UserPresence(0, ())}


async def test_an_empty_room_is_reported_to_a_watcher(
    nodes: tuple[RedisStore, RedisStore],
) -> None:
    watch = Watch(nodes[0])
    await watch.until({})
    assert watch.calls == [{}]


async def test_the_states_of_several_nodes_are_merged(empty_valkey: Valkey) -> None:
    stores = [RedisStore(parse_address(empty_valkey.url)) for _ in range(3)]
    watch = Watch(stores[0])
    stores[1].report_presence(ROOM, "ann", UserPresence(1, ("b", "c")))
    stores[2].report_presence(ROOM, "ann", UserPresence(2, ("a", "c")))
    await watch.until({"ann": UserPresence(3, ("a", "b", "c"))})
    stores[1].report_presence(ROOM, "ann", None)
    await watch.until({"ann": UserPresence(2, ("a", "c"))})
    for store in stores:
        await store.close()


async def test_changes_of_one_iteration_are_one_write_and_equal_ones_none(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    a, b = nodes
    watch = Watch(b)
    await watch.until({})
    for n in range(50):
        a.report_presence(ROOM, f"u{n}", UserPresence(0, ()))
        a.report_presence(ROOM, f"u{n}", HERE)
    await watch.until({f"u{n}": HERE for n in range(50)})
    assert len(watch.calls) == 2
    (key,) = keys_of(empty_valkey, "presence")
    with empty_valkey.client() as client:
        version = client.hget(key, "version")
        a.report_presence(ROOM, "u1", UserPresence(0, ()))
        a.report_presence(ROOM, "u1", HERE)
        await until_read(b, watch.users or {})
        assert client.hget(key, "version") == version


async def test_a_quiet_room_costs_nothing(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    a, b = nodes
    a.report_presence(ROOM, "ann", HERE)
    await Watch(b).until({"ann": HERE})
    await until(lambda: a._shards.is_current and b._shards.is_current)
    with empty_valkey.client() as client:
        before = client.info("commandstats")
        await asyncio.sleep(1.5)
        after = client.info("commandstats")
    for command in ("hget", "hset", "hgetall", "hkeys", "smembers"):
        name = f"cmdstat_{command}"
        assert after.get(name, {}).get("calls") == before.get(name, {}).get("calls"), command


async def test_nothing_stays_in_redis(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    a, b = nodes
    for store in nodes:
        store.report_presence(ROOM, "ann", HERE)
        store.report_presence(ROOM, "bob", HERE)
    await until_read(a, {"ann": HERE, "bob": HERE})
    assert len(keys_of(empty_valkey, "presence")) == 1
    assert len(keys_of(empty_valkey, "present")) == 2
    for store in nodes:
        store.report_presence(ROOM, "ann", None)
        store.report_presence(ROOM, "bob", None)
    await until_read(a, {})
    await until_read(b, {})
    assert keys_of(empty_valkey, "presence") == keys_of(empty_valkey, "present") == []


async def test_a_large_change_is_read_and_not_announced(
    nodes: tuple[RedisStore, RedisStore],
) -> None:
    a, b = nodes
    watch = Watch(b)
    await watch.until({})
    many = {f"user-{n}": UserPresence(1, (f"device-{n}",)) for n in range(1000)}
    for name, user in many.items():
        a.report_presence(ROOM, name, user)
    await watch.until(many)
    a.report_presence(ROOM, "user-1", None)
    del many["user-1"]
    await watch.until(many)


async def test_users_of_a_failed_node_are_removed(
    nodes: tuple[RedisStore, RedisStore], set_waits: SetWaits
) -> None:
    set_waits(redis_node_lifetime_s=scaled(2.0))
    failing, other = nodes
    watch = Watch(other)
    rooms = [ROOM, *(Room(f"user_{n}") for n in range(20))]
    for room in rooms:
        failing.report_presence(room, "ann", HERE)
    other.report_presence(ROOM, "ann", UserPresence(1, ("laptop",)))
    failing._shards.start()
    await until(lambda: failing._shards.is_current)
    await watch.until({"ann": HERE})
    await failing._shards.close_feeds()  # like a process that was killed
    await watch.until({})
    assert all([(await other.read_presence(room)).users == {} for room in rooms])


async def test_a_node_that_was_silent_reports_its_users_again(
    nodes: tuple[RedisStore, RedisStore],
) -> None:
    silent, other = nodes
    for store in nodes:
        await until(partial(is_ready, store))
    watch = Watch(other)
    silent.report_presence(ROOM, "ann", HERE)
    await watch.until({"ann": HERE})
    await other._membership.remove(silent._node)  # as after its lifetime
    await watch.until({})
    await watch.until({"ann": HERE})


async def test_users_of_a_stopped_node_stay_for_the_grace_period(empty_valkey: Valkey) -> None:
    stopping, other = (RedisStore(parse_address(empty_valkey.url)) for _ in range(2))
    watch = Watch(other)
    stopping.report_presence(ROOM, "ann", HERE)
    await watch.until({"ann": HERE})
    stopping.report_presence(ROOM, "ann", UserPresence(0, ("phone",)))
    stopping.end_presence(0.5)
    await stopping.close()
    assert empty_valkey.command("ZCARD", "synap:{0}:nodes") == 1
    stays = {"ann": UserPresence(0, ("phone",))}
    await watch.until(stays)
    assert (await other.read_presence(ROOM)).users == stays
    await watch.until({})
    await until(lambda: not empty_valkey.command("EXISTS", "synap:{0}:departed"))
    assert keys_of(empty_valkey, "present") == []
    await other.close()


async def test_a_node_that_has_no_users_leaves_without_a_trace(empty_valkey: Valkey) -> None:
    store = RedisStore(parse_address(empty_valkey.url))
    store.report_presence(ROOM, "ann", HERE)
    store.report_presence(ROOM, "ann", None)
    store.end_presence(5.0)
    await store.close()
    assert not empty_valkey.command("EXISTS", "synap:{0}:departed")


async def test_a_change_that_was_missed_is_noticed(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    a, b = nodes
    watch = Watch(b)
    a.report_presence(ROOM, "ann", HERE)
    await watch.until({"ann": HERE})
    channel = b._keys.of_room(ROOM).presence
    b._shards.unsubscribe(channel)
    await until(lambda: not empty_valkey.command("PUBSUB", "NUMSUB", channel.decode())[1])
    a.report_presence(ROOM, "bob", HERE)
    await until_read(b, {"ann": HERE, "bob": HERE})
    await b._shards.subscribe(channel)
    assert watch.users == {"ann": HERE}
    a.report_presence(ROOM, "eve", HERE)
    await watch.until({"ann": HERE, "bob": HERE, "eve": HERE})


async def test_a_reconnect_reads_what_was_missed(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    a, b = nodes
    watch = Watch(b)
    a.report_presence(ROOM, "ann", HERE)
    await watch.until({"ann": HERE})
    for n in range(5):
        empty_valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
        a.report_presence(ROOM, f"u{n}", HERE)
        a.report_presence(ROOM, f"u{n - 1}", None)
    await watch.until({"ann": HERE, "u4": HERE})


async def test_redis_that_comes_back_empty_gets_all_users_again(
    tmp_path: Path, set_waits: SetWaits
) -> None:
    with running_valkey(tmp_path, "--appendonly", "no") as valkey:
        a, b = (RedisStore(parse_address(valkey.url)) for _ in range(2))
        watch = Watch(b)
        a.report_presence(ROOM, "ann", HERE)
        a.report_presence(ROOM, "bob", HERE)
        await watch.until({"ann": HERE, "bob": HERE})
        valkey.kill()
        a.report_presence(ROOM, "eve", HERE)
        a.report_presence(ROOM, "bob", None)
        await asyncio.sleep(0.2)
        assert watch.users == {"ann": HERE, "bob": HERE}, "watchers keep the last state"
        valkey.start()
        await watch.until({"ann": HERE, "eve": HERE})
        await until_read(b, {"ann": HERE, "eve": HERE})
        assert not any(call.get("ann", HERE) is None for call in watch.calls), "she has not left"
        for store in (a, b):
            await store.close()


async def test_users_that_a_new_primary_lacks_or_should_not_have(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    a, b = nodes
    watch = Watch(b)
    a.report_presence(ROOM, "ann", HERE)
    await watch.until({"ann": HERE})
    await until(lambda: a._shards.is_current and b._shards.is_current)
    keys, node = a._keys.of_room(ROOM), a._node
    gone = Room("workspace_8")
    with empty_valkey.client() as client:  # as a replica that lacks the last writes
        client.hdel(keys.presence, f"{node}:ann")
        client.hset(keys.presence, f"{node}:bob", '[1,["tab"]]')
        client.hset(a._keys.of_room(gone).presence, f"{node}:bob", '[1,["tab"]]')
        client.sadd(a._keys.present_rooms(a._keys.of_room(gone).partition, node), gone)
    empty_valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
    await until_read(b, {"ann": HERE})
    await watch.until({"ann": HERE})
    key = b._keys.of_room(gone).presence.decode()
    await until(lambda: not empty_valkey.command("EXISTS", key))


async def test_without_redis_nothing_raises_and_reading_is_refused(
    tmp_path: Path, set_waits: SetWaits
) -> None:
    set_waits(redis_call_timeout_s=0.2, redis_presence_retry_s=0.1)
    with running_valkey(tmp_path) as valkey:
        valkey.kill()
        a, b = (RedisStore(parse_address(valkey.url)) for _ in range(2))
        watch = Watch(b)
        a.report_presence(ROOM, "ann", HERE)
        with pytest.raises(StoreUnavailableError):
            await a.read_presence(ROOM)
        a.report_presence(ROOM, "bob", HERE)
        await until(lambda: ROOM in a._presence._stale)
        assert watch.users is None
        valkey.start()
        await watch.until({"ann": HERE, "bob": HERE})
        for store in (a, b):
            await store.close()


async def test_a_write_that_was_refused_is_repeated(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore], set_waits: SetWaits
) -> None:
    set_waits(redis_presence_retry_s=0.1)
    a, b = nodes
    key = a._keys.of_room(ROOM).presence.decode()
    empty_valkey.command("SET", key, "x")
    a.report_presence(ROOM, "ann", HERE)
    await until(lambda: ROOM in a._presence._stale)
    a.report_presence(ROOM, "bob", HERE)
    with pytest.raises(StoreUnavailableError, match="another type"):
        await b.read_presence(ROOM)
    empty_valkey.command("DEL", key)
    await until_read(b, {"ann": HERE, "bob": HERE})


async def test_all_watchers_converge(empty_valkey: Valkey) -> None:
    chance = random.Random(7)
    stores = [RedisStore(parse_address(empty_valkey.url)) for _ in range(3)]
    watches = [Watch(stores[0])]
    present: list[dict[str, UserPresence]] = [{} for _ in stores]
    for step in range(300):
        n, user = chance.randrange(3), f"u{chance.randrange(6)}"
        if chance.random() < 0.4:
            present[n].pop(user, None)
        else:
            present[n][user] = UserPresence(chance.randrange(3), (f"d{chance.randrange(3)}",))
        stores[n].report_presence(ROOM, user, present[n].get(user))
        if step == 100:
            watches.append(Watch(stores[1]))
        if step in (50, 150, 250):
            empty_valkey.command("CLIENT", "KILL", "TYPE", "pubsub" if step != 150 else "normal")
        if chance.random() < 0.3:
            await asyncio.sleep(0.003)

    def expected(n: int) -> dict[str, UserPresence]:
        merged: dict[str, UserPresence] = {}
        for other, users in enumerate(present):
            for name, user in users.items() if other != n else ():
                merged[name] = merged[name].merged_with(user) if name in merged else user
        return merged

    for n, watch in enumerate(watches):
        await watch.until(expected(n))
    for store in stores:
        await store.close()
