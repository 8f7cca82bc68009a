"""Presence and the connections of users over two nodes on a Valkey cluster, while it changes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import UserPresence
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.keys import partition_of, slot_of
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.polling import until
from tests.support.valkey import ValkeyCluster, running_cluster

ROOMS = [Room(f"workspace_{n}") for n in range(12)]
USERS = [f"u{n}" for n in range(12)]
MOST = 4

Users = dict[str, UserPresence]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ValkeyCluster]:
    with running_cluster(tmp_path / "cluster") as servers:
        yield servers


@pytest.fixture
async def nodes(cluster: ValkeyCluster) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    address = parse_address(cluster.url)
    stores = RedisStore(address), RedisStore(address)
    yield stores
    for store in stores:
        await store.close()


async def run_changes(
    nodes: tuple[RedisStore, RedisStore],
    fault: Callable[[], Awaitable[None]],
    *,
    loses_writes: bool = False,
) -> None:
    """Let users come and go at one node through a fault. The other one has to know all in the end.

    Args:
        loses_writes: a user may have more connections than the limit until the nodes have reported
            theirs to the new primary.
    """
    here, there = nodes
    chance = random.Random(7)
    seen: dict[Room, Users] = {}
    expected: dict[Room, Users] = {room: {} for room in ROOMS}
    counts = dict.fromkeys(USERS, 0)
    is_over = False

    def handle(room: Room, changes: Mapping[str, UserPresence | None]) -> None:
        users = seen.setdefault(room, {})
        for name, user in changes.items():
            if user is None:
                users.pop(name, None)
            else:
                users[name] = user

    async def come_and_go() -> None:
        while not is_over:
            room, user = chance.choice(ROOMS), chance.choice(USERS)
            if chance.random() < 0.4:
                expected[room].pop(user, None)
            else:
                expected[room][user] = UserPresence(chance.randrange(3), (chance.choice("abc"),))
            here.report_presence(room, user, expected[room].get(user))
            await asyncio.sleep(0.002)

    async def connect(store: RedisStore) -> None:
        while not is_over:
            user = chance.choice(USERS)
            try:
                is_counted = await store.acquire_connection(user, MOST)
            except StoreUnavailableError:
                continue
            if is_counted:
                counts[user] += 1
                assert counts[user] <= MOST or loses_writes
                await asyncio.sleep(chance.random() / 50)
                counts[user] -= 1
                store.release_connection(user)

    for room in ROOMS:
        there.watch_presence(room, partial(handle, room))
    changes = [
        asyncio.create_task(each)
        for each in (come_and_go(), *(connect(nodes[n % 2]) for n in range(40)))
    ]
    await asyncio.sleep(0.5)
    await fault()
    await asyncio.sleep(0.5)
    is_over = True
    await asyncio.gather(*changes)

    async def is_read() -> bool:
        found = {room: (await there.read_presence(room)).users for room in ROOMS}
        return found == expected

    await until(lambda: seen == expected)
    await until(is_read)
    for user in USERS:  # nothing is counted any more, and everything can be

        async def is_free(user: str = user) -> bool:
            granted = [await here.acquire_connection(user, MOST) for _ in range(MOST)]
            for each in granted:
                if each:
                    here.release_connection(user)
            return all(granted)

        await until(is_free)


async def test_killed_connections(
    cluster: ValkeyCluster, nodes: tuple[RedisStore, RedisStore]
) -> None:
    async def fault() -> None:
        for kind in ("pubsub", "normal"):
            for node in cluster.primaries:
                node.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
                await asyncio.sleep(0.2)

    await run_changes(nodes, fault)


async def test_slots_that_migrate(
    cluster: ValkeyCluster, nodes: tuple[RedisStore, RedisStore]
) -> None:
    source, target = cluster.primaries[:2]

    async def fault() -> None:
        for name in (*ROOMS, *USERS):
            slot = slot_of(partition_of(name))
            if cluster.primary_of(slot) is source:
                cluster.start_moving(slot, target)
                await asyncio.sleep(0.1)
                cluster.finish_moving(slot, source, target)

    await run_changes(nodes, fault)


async def test_planned_failover(
    cluster: ValkeyCluster, nodes: tuple[RedisStore, RedisStore]
) -> None:
    async def fault() -> None:
        cluster.replicas[1].command("CLUSTER", "FAILOVER")
        await until(lambda: cluster.replicas[1].command("ROLE")[0] == b"master")

    await run_changes(nodes, fault)


async def test_killed_primary(cluster: ValkeyCluster, nodes: tuple[RedisStore, RedisStore]) -> None:
    async def fault() -> None:
        cluster.primaries[0].kill()
        await until(lambda: cluster.replicas[0].command("ROLE")[0] == b"master")

    await run_changes(nodes, fault, loses_writes=True)
