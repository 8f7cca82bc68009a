"""Two nodes on a Valkey cluster, while something fails: nothing is lost silently or doubled."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.redis.keys import partition_of, slot_of
from tests.support.polling import until
from tests.support.store_traffic import (
    ROOMS,
    Traffic,
    assert_exact,
    assert_nothing_lost_silently,
    run_traffic,
)
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.valkey import PROGRAMS, VALKEY, ClusterNode, ValkeyCluster, running_cluster

SLOTS = {room: slot_of(partition_of(room)) for room in ROOMS}


@pytest.fixture(params=[VALKEY])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ValkeyCluster]:
    with running_cluster(tmp_path / "cluster", program=request.param) as servers:
        yield servers


def rooms_at(cluster: ValkeyCluster, node: ClusterNode) -> set[Room]:
    return {room for room, slot in SLOTS.items() if cluster.primary_of(slot) is node}


def assert_only_these_resume(traffic: Traffic, rooms: set[Room]) -> None:
    """Rooms at other primaries notice nothing; to these, a gap is reported."""
    assert_nothing_lost_silently(traffic)
    for subscriber in traffic.subscribers:
        assert set(subscriber.gaps) == rooms
        for room in set(ROOMS) - rooms:
            assert subscriber.ids[room] == traffic.acknowledged[room]


async def until_primary(node: ClusterNode) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        await until(lambda: node.command("ROLE")[0] == b"master")


async def test_killed_pubsub_connections_lose_nothing(cluster: ValkeyCluster) -> None:
    async def kill_at(node: ClusterNode) -> None:
        """Wait until the previous one was replaced, and kill that, too."""
        await until(lambda: node.command("CLIENT", "KILL", "TYPE", "pubsub"))

    async def fault() -> None:
        for _ in range(5):
            for node in cluster.primaries:
                await kill_at(node)
            await asyncio.sleep(0.2)

    assert_exact(await run_traffic(cluster.url, fault))


async def test_killed_command_connections_lose_nothing(cluster: ValkeyCluster) -> None:
    async def fault() -> None:
        for node in cluster.primaries:
            node.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await asyncio.sleep(0.2)

    assert_exact(await run_traffic(cluster.url, fault))


@pytest.mark.parametrize("cluster", PROGRAMS, indirect=True)
async def test_slots_that_migrate_key_by_key(cluster: ValkeyCluster) -> None:
    source = cluster.primaries[0]
    moving = rooms_at(cluster, source)
    assert 0 < len(moving) < len(ROOMS)

    async def fault() -> None:
        for room, target in zip(moving, cluster.primaries[1:] * len(moving), strict=False):
            cluster.start_moving(SLOTS[room], target)
            await asyncio.sleep(0.2)
            cluster.finish_moving(SLOTS[room], source, target)

    traffic = await run_traffic(cluster.url, fault)
    assert_only_these_resume(traffic, moving)
    assert traffic.refused == 0
    assert traffic.longest_wait_s < scaled(2)


async def test_slots_that_migrate_atomically(cluster: ValkeyCluster) -> None:
    source, target = cluster.primaries[:2]
    moving = rooms_at(cluster, source)

    async def fault() -> None:
        for room in moving:
            slot = SLOTS[room]
            source.command("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target.id)
        async with asyncio.timeout(TIMEOUT_S):
            await until(lambda: rooms_at(cluster, source) == set())

    traffic = await run_traffic(cluster.url, fault)
    assert_only_these_resume(traffic, moving)
    assert traffic.refused == 0
    assert traffic.longest_wait_s < scaled(2)


@pytest.mark.parametrize("cluster", PROGRAMS, indirect=True)
async def test_killed_primary_loses_nothing_silently(cluster: ValkeyCluster) -> None:
    primary, replica = cluster.primaries[0], cluster.replicas[0]
    affected = rooms_at(cluster, primary)

    async def fault() -> None:
        primary.kill()
        await until_primary(replica)

    assert_only_these_resume(await run_traffic(cluster.url, fault), affected)


async def test_primary_that_hangs_for_longer_than_the_failover(cluster: ValkeyCluster) -> None:
    primary, replica = cluster.primaries[1], cluster.replicas[1]
    affected = rooms_at(cluster, primary)

    async def fault() -> None:
        primary.signal(signal.SIGSTOP)
        await until_primary(replica)
        await asyncio.sleep(scaled(1))
        primary.signal(signal.SIGCONT)
        await asyncio.sleep(scaled(1))

    assert_only_these_resume(await run_traffic(cluster.url, fault), affected)


async def test_planned_failover(cluster: ValkeyCluster) -> None:
    primary, replica = cluster.primaries[2], cluster.replicas[2]
    affected = rooms_at(cluster, primary)

    async def fault() -> None:
        replica.command("CLUSTER", "FAILOVER")
        await until_primary(replica)

    traffic = await run_traffic(cluster.url, fault)
    assert_only_these_resume(traffic, affected)
    assert traffic.refused == 0
    assert traffic.longest_wait_s < scaled(2)


async def test_killed_replica_disturbs_nobody(cluster: ValkeyCluster) -> None:
    async def fault() -> None:
        cluster.replicas[0].kill()
        await asyncio.sleep(scaled(3))

    assert_exact(await run_traffic(cluster.url, fault))
