"""Two nodes on one Valkey, while something fails: nothing is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from synap_realtime.server.stores.base import Publication
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.link import Link
from tests.support.polling import until, until_ready
from tests.support.replicated import Replicated
from tests.support.store_traffic import (
    ROOMS,
    Subscriber,
    assert_exact,
    assert_nothing_lost_silently,
    run_traffic,
)
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.valkey import PROGRAMS, Valkey, needs_faketime, running_valkey
from tests.support.waits import SetWaits


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with running_valkey(tmp_path / "valkey") as server:
        yield server


async def test_killed_pubsub_connections_lose_nothing(valkey: Valkey) -> None:
    async def fault() -> None:
        for _ in range(5):
            assert valkey.command("CLIENT", "KILL", "TYPE", "pubsub") >= 1
            await asyncio.sleep(0.2)

    assert_exact(await run_traffic(valkey.url, fault))


async def test_killed_command_connections_lose_nothing(valkey: Valkey) -> None:
    async def fault() -> None:
        for _ in range(5):
            valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.2)

    assert_exact(await run_traffic(valkey.url, fault))


async def test_stopped_server_delays_and_loses_nothing(valkey: Valkey) -> None:
    async def fault() -> None:
        valkey.signal(signal.SIGSTOP)
        await asyncio.sleep(scaled(4))
        valkey.signal(signal.SIGCONT)

    traffic = await run_traffic(valkey.url, fault)
    assert_exact(traffic)


async def test_flushed_scripts_are_loaded_again(valkey: Valkey) -> None:
    async def fault() -> None:
        valkey.command("SCRIPT", "FLUSH")

    traffic = await run_traffic(valkey.url, fault)
    assert_exact(traffic)
    assert traffic.refused == 0


async def test_killed_server_that_restarts_loses_nothing_and_starts_an_epoch(
    valkey: Valkey,
) -> None:
    """Nobody can know that the new process has everything, so a gap is reported."""

    async def fault() -> None:
        valkey.kill()
        await asyncio.sleep(scaled(0.5))
        valkey.start()

    traffic = await run_traffic(valkey.url, fault)
    for subscriber in traffic.subscribers:
        assert subscriber.gaps == dict.fromkeys(ROOMS, 1)
        assert subscriber.ids == traffic.acknowledged
        assert subscriber.dropped == []


async def test_server_that_lost_acknowledged_writes_is_noticed(tmp_path: Path) -> None:
    """Without a log on its disk, the server comes back empty."""
    with running_valkey(tmp_path / "valkey", "--appendonly", "no") as valkey:

        async def fault() -> None:
            valkey.restart()

        stores = [RedisStore(parse_address(valkey.url))]
        subscriber = Subscriber(stores[0])
        await subscriber.start()
        room = ROOMS[0]
        (before,) = await stores[0].publish([Publication(room, "a", '{"id":"a"}')])
        await fault()
        async with asyncio.timeout(TIMEOUT_S):
            await until(lambda: bool(subscriber.gaps[room]))
        page = await stores[0].read(room, before.cursor, 10)
        assert (list(page.entries), page.recovered) == ([], False)
        (after,) = await stores[0].publish([Publication(room, "b", '{"id":"b"}')])
        assert after.cursor.epoch != before.cursor.epoch
        assert after.broadcast_count == 1, "the node has reported its subscribers again"
        await stores[0].close()


@pytest.fixture
async def link(valkey: Valkey) -> AsyncIterator[Link]:
    async with Link(valkey.url.replace("redis", "http")) as link:
        yield link


async def test_cut_link_of_one_node_heals(valkey: Valkey, link: Link) -> None:
    async def fault() -> None:
        for _ in range(3):
            link.refuse()
            link.cut()
            await asyncio.sleep(0.4)
            link.restore()
            await asyncio.sleep(0.4)

    url = link.url.replace("http", "redis")
    assert_exact(await run_traffic(url, fault, direct=valkey.url))


async def test_subscribers_of_a_killed_node_are_removed(
    valkey: Valkey, set_waits: SetWaits
) -> None:
    set_waits(redis_node_lifetime_s=scaled(2.0))
    room = ROOMS[0]
    failing, other = (RedisStore(parse_address(valkey.url)) for _ in range(2))
    for store in (failing, other):
        await store.join(room)
    publications = (Publication(room, f"n{n}", '{"id":"a"}') for n in itertools.count())
    (before,) = await other.publish([next(publications)])
    assert before.broadcast_count == 2
    await (
        failing._shards.close_feeds()
    )  # from now on it sends nothing, like a process that was killed
    async with asyncio.timeout(TIMEOUT_S):
        count = 2
        while count != 1:
            await asyncio.sleep(0.1)
            (result,) = await other.publish([next(publications)])
            count = result.broadcast_count
    for store in (failing, other):
        await store.close()


async def test_no_node_has_failed_after_the_server_was_away(
    valkey: Valkey, set_waits: SetWaits, caplog: pytest.LogCaptureFixture
) -> None:
    """All nodes were silent meanwhile."""
    set_waits(redis_node_lifetime_s=scaled(1.5))
    async with contextlib.AsyncExitStack() as stack:
        stores = [RedisStore(parse_address(valkey.url)) for _ in range(3)]
        for store in stores:
            stack.push_async_callback(store.close)
            await store.join(ROOMS[0])
        valkey.kill()
        await asyncio.sleep(scaled(4))
        valkey.start()
        async with asyncio.timeout(TIMEOUT_S):
            for store in stores:
                await until_ready(store)
        await asyncio.sleep(scaled(1))
    assert "a node has failed" not in caplog.text


async def test_node_that_was_silent_reports_its_subscribers_again(valkey: Valkey) -> None:
    room = ROOMS[0]
    silent, other = (RedisStore(parse_address(valkey.url)) for _ in range(2))
    await silent.join(room)
    await other._membership.remove(silent._node)  # as after its lifetime
    publications = (Publication(room, f"n{n}", '{"id":"a"}') for n in itertools.count())
    (before,) = await other.publish([next(publications)])
    assert before.broadcast_count == 0
    count = 0
    async with asyncio.timeout(TIMEOUT_S):
        while count != 1:
            await asyncio.sleep(0.1)
            (result,) = await other.publish([next(publications)])
            count = result.broadcast_count
    for store in (silent, other):
        await store.close()


# Sentinel: a primary, a replica, and three that watch them


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[Replicated]:
    servers = Replicated(tmp_path)
    with servers.stack:
        yield servers


async def test_killed_primary_loses_nothing_silently(replicated: Replicated) -> None:
    async def fault() -> None:
        replicated.primary.kill()
        await asyncio.sleep(scaled(4))

    traffic = await run_traffic(replicated.url, fault)
    assert_nothing_lost_silently(traffic)
    assert replicated.replica.command("ROLE")[0] == b"master"
    for subscriber in traffic.subscribers:
        assert set(subscriber.gaps) == set(ROOMS)


@pytest.mark.parametrize("program", PROGRAMS)
async def test_failover_with_durability_replica_loses_nothing_that_was_answered(
    tmp_path: Path, program: Path
) -> None:
    servers = Replicated(tmp_path, program)
    with servers.stack:

        async def fault() -> None:
            servers.primary.kill()
            # Now the only replica is the primary, and another one is needed for the rest.
            await asyncio.sleep(scaled(4))
            servers.primary.start()
            servers.primary.command("REPLICAOF", "127.0.0.1", servers.replica.port)
            await asyncio.sleep(scaled(1))

        traffic = await run_traffic(f"{servers.url}?durability=replica", fault)
        assert servers.replica.command("ROLE")[0] == b"master"
        assert_nothing_lost_silently(traffic)
        ids = {
            json.loads(fields[b"t"])["id"]
            for key in servers.replica.command("KEYS", "*:log:*")
            for _, fields in servers.replica.command("XRANGE", key, "-", "+")
        }
        for acknowledged in traffic.acknowledged.values():
            assert set(acknowledged) <= ids


async def test_primary_that_hangs_for_longer_than_the_failover(replicated: Replicated) -> None:
    async def fault() -> None:
        replicated.primary.signal(signal.SIGSTOP)
        await asyncio.sleep(scaled(5))
        replicated.primary.signal(signal.SIGCONT)
        await asyncio.sleep(scaled(2))

    traffic = await run_traffic(replicated.url, fault)
    assert_nothing_lost_silently(traffic)
    assert replicated.replica.command("ROLE")[0] == b"master"


async def test_planned_failover(replicated: Replicated) -> None:
    async def fault() -> None:
        replicated.sentinels[0].command("SENTINEL", "FAILOVER", "main")
        await asyncio.sleep(scaled(4))

    traffic = await run_traffic(replicated.url, fault)
    assert_nothing_lost_silently(traffic)
    assert replicated.replica.command("ROLE")[0] == b"master"


async def test_killed_replica_and_sentinel_disturb_nobody(replicated: Replicated) -> None:
    async def fault() -> None:
        replicated.replica.kill()
        replicated.sentinels[0].kill()
        await asyncio.sleep(scaled(1))

    assert_exact(await run_traffic(replicated.url, fault))


@needs_faketime
@pytest.mark.parametrize("clock", ["-1h", "+10m"])
async def test_new_primary_whose_clock_is_off(
    tmp_path: Path, clock: str, set_waits: SetWaits
) -> None:
    """Offsets go on, nothing is lost silently, and a node that failed meanwhile is removed."""
    lifetime_s = scaled(4.0)
    set_waits(redis_node_lifetime_s=lifetime_s)
    servers = Replicated(tmp_path, clock=clock)
    with servers.stack:
        failing = RedisStore(parse_address(servers.url))
        await failing.join(ROOMS[0])
        await until_ready(failing)

        async def fault() -> None:
            # From now on it sends nothing, like a process that was killed.
            await failing._shards.close_feeds()
            servers.primary.kill()
            await until(lambda: servers.replica.is_primary)
            await asyncio.sleep(3 * lifetime_s)

        traffic = await run_traffic(servers.url, fault)
        assert_nothing_lost_silently(traffic)
        for subscriber in traffic.subscribers:
            assert subscriber.gaps == dict.fromkeys(ROOMS, 1)
        assert servers.replica.command("ZRANGE", "synap:{0}:nodes", 0, -1) == []
        await failing.close()
