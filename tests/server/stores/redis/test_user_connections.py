"""The connections of a user over two stores on one Valkey, without and with failures."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.keys import ALL_PARTITIONS, partition_of
from synap_realtime.server.stores.redis.script import Script
from synap_realtime.server.stores.redis.scripts import COUNT_CONNECTIONS
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.polling import until
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.valkey import Valkey, running_valkey
from tests.support.waits import SetWaits


def counted(valkey: Valkey, user: str = "ann") -> int:
    """Return how many connections of a user Redis counts."""
    with valkey.client() as client:
        return sum(sum(map(int, client.hvals(key))) for key in client.keys(f"synap:*:user:{user}"))


async def test_the_limit_holds_over_all_nodes(nodes: tuple[RedisStore, RedisStore]) -> None:
    a, b = nodes
    assert await a.acquire_connection("ann", 2)
    assert await b.acquire_connection("ann", 2)
    assert not await a.acquire_connection("ann", 2)
    assert not await b.acquire_connection("ann", 2)
    assert await b.acquire_connection("bob", 2)
    a.release_connection("ann")
    await until(lambda: b.acquire_connection("ann", 2))
    assert not await a.acquire_connection("ann", 2)


async def test_nothing_stays_in_redis(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    for store in nodes:
        assert await store.acquire_connection("ann", 5)
        assert await store.acquire_connection("bob", 5)
    assert empty_valkey.command("KEYS", "synap:*:users:*") != []
    for store in nodes:
        store.release_connection("ann")
        store.release_connection("bob")
    await until(lambda: empty_valkey.command("KEYS", "synap:*:user*") == [])
    await until(lambda: not any(store._connections._users for store in nodes))


async def test_connections_that_begin_together_never_exceed_the_limit(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    held = [0, 0]

    async def connect(number: int) -> None:
        for _ in range(20):
            if await nodes[number].acquire_connection("ann", 7):
                held[number] += 1
                assert sum(held) <= 7
                await asyncio.sleep(0)
                held[number] -= 1
                nodes[number].release_connection("ann")

    await asyncio.gather(*(connect(n % 2) for n in range(40)))
    await until(lambda: counted(empty_valkey) == 0)
    granted = await asyncio.gather(*(nodes[n % 2].acquire_connection("ann", 7) for n in range(40)))
    assert sum(granted) == counted(empty_valkey) == 7


async def test_connections_of_one_user_that_wait_share_a_call(
    nodes: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = nodes[0]
    calls = []
    call = store._connections._call

    def noting(script: Script, *arguments: Any) -> Any:
        calls.append(script)
        return call(script, *arguments)

    monkeypatch.setattr(store._connections, "_call", noting)
    granted = await asyncio.gather(*(store.acquire_connection("ann", 50) for _ in range(60)))
    assert (sum(granted), calls.count(COUNT_CONNECTIONS)) == (50, 1)


async def test_a_client_that_gives_up_does_not_count(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    store = nodes[0]
    for delay in (None, 0, 0.0001, 0.0005, 0.001, 0.002):
        waiting = [asyncio.create_task(store.acquire_connection("ann", 5)) for _ in range(3)]
        if delay is not None:
            await asyncio.sleep(delay)
        for each in waiting[:2]:
            each.cancel()
        (*_, kept) = await asyncio.gather(*waiting, return_exceptions=True)
        assert kept is True
        given_up = [each for each in waiting[:2] if not each.cancelled()]
        for _ in (*given_up, kept):
            store.release_connection("ann")
        await until(lambda: not store._connections._users)
        assert counted(empty_valkey) == 0


async def test_connections_of_a_failed_node_are_removed(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore], set_waits: SetWaits
) -> None:
    set_waits(redis_node_lifetime_s=scaled(2.0))
    failing, other = nodes
    users = [f"u{n}" for n in range(300)]
    failing._shards.start()
    await until(lambda: failing._shards.is_current)
    granted = await asyncio.gather(*(failing.acquire_connection(user, 1) for user in users))
    assert all(granted)
    assert not await other.acquire_connection("u1", 1)
    await (
        failing._shards.close_feeds()
    )  # from now on it sends nothing, like a process that was killed
    await until(lambda: other.acquire_connection("u1", 1))
    await until(lambda: counted(empty_valkey, "*") == 1)


async def test_a_node_that_was_silent_reports_its_connections_again(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    silent, other = nodes
    silent._shards.start()
    assert await silent.acquire_connection("ann", 1)
    await other._membership.remove(silent._node)  # as after its lifetime
    await until(lambda: counted(empty_valkey) == 1)
    assert not await other.acquire_connection("ann", 1)


async def test_a_stopped_node_has_no_connections(empty_valkey: Valkey) -> None:
    store = RedisStore(parse_address(empty_valkey.url))
    assert await store.acquire_connection("ann", 1)
    assert await store.acquire_connection("bob", 1)
    store.release_connection("ann")
    await store.close()  # bob's client did not close its connection in time
    assert empty_valkey.command("KEYS", "synap:*:user*") == []


async def test_a_node_that_reports_again_while_it_stops_has_no_connections(
    empty_valkey: Valkey,
) -> None:
    store = RedisStore(parse_address(empty_valkey.url))
    assert await store.acquire_connection("bob", 1)
    await store._connections.close()
    await store._connections.report_again(ALL_PARTITIONS)  # the link was replaced meanwhile
    await store._shards.close_feeds()
    await store._shards.close()
    store.release_connection("bob")
    assert empty_valkey.command("KEYS", "synap:*:user*") == []


async def test_redis_that_comes_back_empty_gets_all_connections_again(tmp_path: Path) -> None:
    with running_valkey(tmp_path, "--appendonly", "no") as valkey:
        a, b = (RedisStore(parse_address(valkey.url)) for _ in range(2))
        for store in (a, b):
            store._shards.start()
            assert await store.acquire_connection("ann", 2)
        await until(lambda: a._shards.is_current and b._shards.is_current)
        valkey.restart()
        await until(lambda: counted(valkey) == 2)
        assert not await a.acquire_connection("ann", 2)
        for store in (a, b):
            await store.close()


async def test_connections_that_a_new_primary_should_not_have(
    empty_valkey: Valkey, nodes: tuple[RedisStore, RedisStore]
) -> None:
    a = nodes[0]
    a._shards.start()
    assert await a.acquire_connection("ann", 9)
    await until(lambda: a._shards.is_current)
    with empty_valkey.client() as client:  # as a replica that lacks the last writes
        for user in ("ann", "bob"):
            client.hset(a._keys.user_connections(user), a._node, 5)
            client.sadd(a._keys.connected_users(partition_of(user), a._node), user)
    empty_valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: (counted(empty_valkey, "ann"), counted(empty_valkey, "bob")) == (1, 0))


async def test_without_redis_nobody_is_admitted_and_counts_heal(
    tmp_path: Path, set_waits: SetWaits
) -> None:
    set_waits(redis_call_timeout_s=0.2, redis_presence_retry_s=0.1)
    with running_valkey(tmp_path) as valkey:
        store = RedisStore(parse_address(valkey.url))
        assert await store.acquire_connection("ann", 3)
        assert await store.acquire_connection("ann", 3)
        valkey.kill()
        with pytest.raises(StoreUnavailableError):
            await store.acquire_connection("ann", 3)
        with pytest.raises(StoreUnavailableError):
            await store.acquire_connection("bob", 3)
        store.release_connection("ann")
        valkey.start()
        await until(lambda: counted(valkey) == 1)
        await until(lambda: list(store._connections._users) == ["ann"])
        await store.close()


async def test_connections_of_a_node_that_stopped_without_redis_are_removed(
    tmp_path: Path, set_waits: SetWaits
) -> None:
    set_waits(redis_node_lifetime_s=scaled(2.0))
    with running_valkey(tmp_path) as valkey:
        stopping, other = (RedisStore(parse_address(valkey.url)) for _ in range(2))
        for store in (stopping, other):
            with contextlib.suppress(StoreUnavailableError):
                await store.check()
        assert await stopping.acquire_connection("ann", 1)
        valkey.kill()
        async with asyncio.timeout(TIMEOUT_S):
            await stopping.close()
        valkey.start()
        assert counted(valkey) == 1
        assert not await other.acquire_connection("ann", 1)
        await until(lambda: other.acquire_connection("ann", 1))
        await other.close()
