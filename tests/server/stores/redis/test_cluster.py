"""A store on a cluster: which node gets a call, and what a wrong URL says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime import ConfigurationError
from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores import open_store
from synap_realtime.server.stores.base import Entry, Retention
from synap_realtime.server.stores.redis.address import Peer, parse_address
from synap_realtime.server.stores.redis.cluster import parse_redirection, parse_slots
from synap_realtime.server.stores.redis.connection import RedisReplyError
from synap_realtime.server.stores.redis.keys import ALL_PARTITIONS, partition_of, slot_of
from synap_realtime.server.stores.redis.scripts import ROOMS_OF_NODE
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.polling import until_ready
from tests.support.stores import ids, publication
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import (
    PROGRAMS,
    ClusterNode,
    ValkeyCluster,
    running_cluster,
    running_valkey,
)

ROOM = Room("user_1")
SLOT = slot_of(partition_of(ROOM))


@pytest.fixture(scope="module", params=PROGRAMS)
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ValkeyCluster]:
    folder = tmp_path_factory.mktemp("cluster")
    with running_cluster(folder, replicas=False, program=request.param) as cluster:
        yield cluster


@pytest.fixture
def source(servers: ValkeyCluster) -> ClusterNode:
    """The node with the slot of the room."""
    return servers.primary_of(SLOT)


@pytest.fixture
def target(servers: ValkeyCluster, source: ClusterNode) -> ClusterNode:
    return next(each for each in servers.primaries if each is not source)


def open_on(servers: ValkeyCluster, prefix: str) -> RedisStore:
    return RedisStore(parse_address(f"{servers.url}?prefix={prefix}"))


# Which node gets a call


async def test_calls_follow_a_slot_that_has_moved(
    servers: ValkeyCluster, source: ClusterNode, target: ClusterNode
) -> None:
    store = open_on(servers, "moved")
    await store.publish([publication("n1")])
    servers.start_moving(SLOT, target)
    servers.finish_moving(SLOT, source, target)
    results = await asyncio.gather(
        *(store.publish([publication(f"n{number}")]) for number in range(2, 20))
    )
    offsets = [result.cursor.offset for (result,) in results]
    assert offsets == sorted(offsets), "in the order of the calls"
    assert await ids(store) == [f"n{number}" for number in range(1, 20)]
    await store.close()


async def test_calls_wait_while_a_slot_is_migrated_key_by_key(
    servers: ValkeyCluster, source: ClusterNode, target: ClusterNode
) -> None:
    store = open_on(servers, "migrating")
    await store.publish([publication("n1")])
    servers.start_moving(SLOT, target)
    waiting = asyncio.gather(*(store.publish([publication(f"n{n}")]) for n in (2, 3)))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    servers.finish_moving(SLOT, source, target)
    await waiting
    assert await ids(store) == ["n1", "n2", "n3"]
    await store.close()


async def test_calls_of_a_migration_that_does_not_end_are_refused(
    servers: ValkeyCluster, source: ClusterNode, target: ClusterNode
) -> None:
    store = open_on(servers, "unfinished")
    await store.publish([publication("n1")])
    other = next(
        room
        for room in map(Room, (f"user_{n}" for n in range(100)))
        if servers.primary_of(slot_of(partition_of(room))) is source
        and slot_of(partition_of(room)) != SLOT
    )
    servers.start_moving(SLOT, target)
    refused = asyncio.create_task(store.publish([publication("n2")]))
    await store.publish([publication("n1", other)])  # other slots of the node are not affected
    assert not refused.done()
    with pytest.raises(StoreUnavailableError, match="moving these keys to another node"):
        await refused
    servers.finish_moving(SLOT, source, target)
    (result,) = await store.publish([publication("n2")])
    assert not result.duplicate
    await store.close()


async def test_a_call_is_asked_of_the_node_that_has_the_keys_already(
    servers: ValkeyCluster, source: ClusterNode, target: ClusterNode
) -> None:
    """All keys of a room that has no notifications are missing at the source."""
    store = open_on(servers, "asked")
    await until_ready(store)
    servers.start_moving(SLOT, target)
    source.command("CONFIG", "RESETSTAT")
    target.command("CONFIG", "RESETSTAT")
    key = store._keys.node_rooms_in(partition_of(ROOM), "nobody")
    assert await store._call(ROOMS_OF_NODE, (key,)) == [[]]
    assert "cmdstat_asking" in target.command("INFO", "commandstats")
    servers.finish_moving(SLOT, source, target)
    await store.close()


async def test_messages_follow_a_slot_that_has_moved(
    servers: ValkeyCluster, source: ClusterNode, target: ClusterNode
) -> None:
    """Nothing is called meanwhile: the server ends the subscription."""
    store = open_on(servers, "followed")
    received: asyncio.Queue[Entry] = asyncio.Queue()
    gaps: list[Cursor] = []

    def deliver(_room: Room, entry: Entry, _published_at: float | None) -> int:
        received.put_nowait(entry)
        return 1

    store.subscribe(deliver, lambda _room, position: gaps.append(position))
    await store.join(ROOM)
    await until_ready(store)
    servers.start_moving(SLOT, target)
    servers.finish_moving(SLOT, source, target)
    publisher = open_on(servers, "followed")
    for number in range(3):
        await publisher.publish([publication(f"n{number}")])
    async with asyncio.timeout(TIMEOUT_S):
        found = [await received.get() for _ in range(3)]
    assert [f'"id": "n{number}"' in entry.text for number, entry in enumerate(found)] == [True] * 3
    assert len(gaps) == 1, "nobody can prove to a node that no failover happened in between"
    await until_ready(store)
    await publisher.close()
    await store.close()


async def test_a_node_that_is_not_named_is_found(servers: ValkeyCluster) -> None:
    url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{servers.primaries[0].port}?prefix=found"
    store = RedisStore(parse_address(url))
    for number in range(10):
        await store.publish([publication("n1", Room(f"user_{number}"))])
    assert len(store._shards.representatives) == 3
    await until_ready(store)
    assert (await store.usage()).bytes > 3_000_000
    await store.close()


async def test_a_primary_marks_all_partitions_that_it_serves(servers: ValkeyCluster) -> None:
    store = open_store(f"{servers.url}?prefix=marked", Retention())
    async with asyncio.timeout(TIMEOUT_S):
        while sum(len(each.command("KEYS", "marked:*:state")) for each in servers.primaries) < 128:
            with contextlib.suppress(StoreUnavailableError):
                await store.check()
            await asyncio.sleep(0.02)
    await store.close()


# What a wrong URL says


@pytest.mark.parametrize("scheme", ["redis", "valkey"])
def test_a_cluster_needs_the_scheme_of_clusters(servers: ValkeyCluster, scheme: str) -> None:
    with pytest.raises(ConfigurationError, match=r"node of a cluster.*redis\+cluster://"):
        open_store(f"{scheme}://127.0.0.1:{servers.primaries[0].port}", Retention())


def test_a_single_server_is_no_cluster(tmp_path: Path) -> None:
    with (
        running_valkey(tmp_path / "valkey") as server,
        pytest.raises(ConfigurationError, match="no node of a cluster: write redis://"),
    ):
        open_store(server.url.replace("redis", "redis+cluster"), Retention())


def test_a_cluster_without_some_slots_is_incomplete(tmp_path: Path) -> None:
    node = ClusterNode(tmp_path / "node")
    try:
        node.command("CLUSTER", "ADDSLOTSRANGE", 0, 100)
        with pytest.raises(ConfigurationError, match="not complete: 101 of 16384 slots"):
            open_store(f"redis+cluster://127.0.0.1:{node.port}", Retention())
    finally:
        node.kill()


# The slot map


def test_slots_without_a_host_are_at_the_node_that_was_asked() -> None:
    view = parse_slots(
        [[0, 16383, [None, 7001, b"id", []], [b"", 7002, b"id"]]], Peer("proxy", 7000)
    )
    assert set(view.owners) == {Peer("proxy", 7001)}
    assert view.nodes == {Peer("proxy", 7000), Peer("proxy", 7001), Peer("proxy", 7002)}


def test_unknown_host_name_is_replaced_by_the_ip_address() -> None:
    view = parse_slots([[0, 16383, [b"?", 7001, b"id", [b"ip", b"10.0.0.1"]]]], Peer("a", 1))
    assert set(view.owners) == {Peer("10.0.0.1", 7001)}


def test_partition_whose_slot_is_not_served_has_no_owner() -> None:
    view = parse_slots([[0, 8000, [b"a", 1, b"id"]]], Peer("a", 1))
    assert [owner is None for owner in view.owners] == [
        slot_of(number) > 8000 for number in ALL_PARTITIONS
    ]


@pytest.mark.parametrize(
    ("reply", "peer"),
    [
        ("MOVED 3999 127.0.0.1:6381", Peer("127.0.0.1", 6381)),
        ("ASK 3999 node.example:6381", Peer("node.example", 6381)),
        ("MOVED 3999 ::1:6381", Peer("::1", 6381)),
        ("MOVED 3999 :6381", Peer("asked", 6381)),
        ("MOVED 3999 ?:6381", None),
        ("MOVED 3999 127.0.0.1:²", None),
        ("MOVED 3999 127.0.0.1:65536", None),
        ("MOVED", None),
        ("TRYAGAIN Multiple keys request during rehashing of slot", None),
    ],
)
def test_the_node_of_a_redirection(reply: str, peer: Peer | None) -> None:
    assert parse_redirection(RedisReplyError(reply), Peer("asked", 1)) == peer


def test_slots_are_those_of_redis(servers: ValkeyCluster) -> None:
    for number in ALL_PARTITIONS:
        key = f"synap:{{{number}}}:x"
        assert servers.primaries[0].command("CLUSTER", "KEYSLOT", key) == slot_of(number)
