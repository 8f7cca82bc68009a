"""Two nodes on one Valkey, while something fails: nothing is lost, doubled or out of order."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import Entry, Publication
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.link import Link
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.valkey import Valkey, running_sentinel, running_valkey
from tests.support.waits import SetWaits

ROOMS = [Room(f"user_{n}") for n in range(8)]
LOAD_S = 3.0


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with running_valkey(tmp_path / "valkey") as server:
        yield server


@dataclass
class Subscriber:
    """All rooms at one node. After a gap, it drops ids that it knows, as a client does.

    Attributes:
        dropped: these ids.
    """

    store: RedisStore
    ids: dict[Room, list[str]] = field(default_factory=dict)
    positions: dict[Room, Cursor] = field(default_factory=dict)
    gaps: Counter[Room] = field(default_factory=Counter)
    dropped: list[str] = field(default_factory=list)

    async def start(self) -> None:
        self.store.subscribe(self.deliver, self.on_gap)
        for room in ROOMS:
            await self.store.join(room)

    def deliver(self, room: Room, entry: Entry, _published_at: float | None) -> int:
        last = self.positions.get(room)
        if last is not None and last.epoch == entry.cursor.epoch:
            assert entry.cursor.offset > last.offset, "in order, once"
        self.positions[room] = entry.cursor
        id = entry.text.partition('"id":"')[2].partition('"')[0]
        ids = self.ids.setdefault(room, [])
        if self.gaps[room] and id in ids:
            self.dropped.append(id)
        else:
            ids.append(id)
        return 1

    def on_gap(self, room: Room, position: Cursor) -> None:
        self.gaps[room] += 1
        self.positions[room] = position


@dataclass
class Traffic:
    """What was published and received while something failed."""

    acknowledged: dict[Room, list[str]]
    subscribers: list[Subscriber]
    refused: int
    longest_wait_s: float


async def run_traffic(
    url: str, fault: Callable[[], Awaitable[None]], *, direct: str | None = None
) -> Traffic:
    """Publish at one node and subscribe at both, through a fault in the middle.

    Args:
        direct: the URL of the second node; default: the same.
    """
    stores = [RedisStore(parse_address(each)) for each in (url, direct or url)]
    subscribers = [Subscriber(store) for store in stores]
    acknowledged: dict[Room, list[str]] = {room: [] for room in ROOMS}
    traffic = Traffic(acknowledged, subscribers, 0, 0.0)
    over = asyncio.Event()

    async def publish(room: Room) -> None:
        number = 0
        while not over.is_set():
            id = f"{room}:{number}"
            began = time.monotonic()
            while True:
                try:
                    store = stores[number % 2]
                    await store.publish([Publication(room, id, f'{{"id":"{id}"}}')])
                    break
                except StoreUnavailableError:
                    traffic.refused += 1
                    await asyncio.sleep(0.02)
            traffic.longest_wait_s = max(traffic.longest_wait_s, time.monotonic() - began)
            acknowledged[room].append(id)
            number += 1
            await asyncio.sleep(0.002)

    try:
        for subscriber in subscribers:
            await subscriber.start()
        async with asyncio.TaskGroup() as group:
            for room in ROOMS:
                group.create_task(publish(room))
            await asyncio.sleep(LOAD_S / 2)
            await fault()
            await asyncio.sleep(LOAD_S / 2)
            over.set()
        async with asyncio.timeout(TIMEOUT_S):
            await until(lambda: all(is_settled(each, acknowledged) for each in subscribers))
            for store in stores:
                await until_ready(store)
    finally:
        for store in stores:
            await store.close()
    return traffic


def is_settled(subscriber: Subscriber, acknowledged: dict[Room, list[str]]) -> bool:
    """Whether all that was acknowledged has arrived, except where a gap was reported."""
    return all(
        set(ids) <= set(subscriber.ids.get(room, ())) or subscriber.gaps[room]
        for room, ids in acknowledged.items()
    )


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.05)


async def until_ready(store: RedisStore) -> None:
    while True:
        with contextlib.suppress(StoreUnavailableError):
            await store.check()
            return
        await asyncio.sleep(0.05)


def assert_exact(traffic: Traffic) -> None:
    """Every acknowledged notification arrived once, in order, at both nodes, without a gap."""
    for subscriber in traffic.subscribers:
        assert not subscriber.gaps
        for room, ids in traffic.acknowledged.items():
            assert subscriber.ids[room] == ids
            assert len(ids) > 10  # on a busy machine, too


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
    await failing._feed.close()  # from now on it sends nothing, like a process that was killed
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


class Replicated:
    """A primary and a replica under three Sentinels."""

    def __init__(self, folder: Path) -> None:
        self.stack = contextlib.ExitStack()
        enter = self.stack.enter_context
        self.primary = enter(running_valkey(folder / "primary"))
        self.replica = enter(
            running_valkey(folder / "replica", "--replicaof", "127.0.0.1", str(self.primary.port))
        )
        self.sentinels = [
            enter(running_sentinel(folder / f"sentinel-{n}", self.primary.port)) for n in range(3)
        ]
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        self.url = f"redis+sentinel://{hosts}/main"
        end = time.monotonic() + TIMEOUT_S
        while not self.is_complete():
            assert time.monotonic() < end, "the Sentinels do not know each other"
            time.sleep(0.05)

    def is_complete(self) -> bool:
        """Whether each Sentinel knows the replica and the other Sentinels."""
        if self.replica.command("INFO", "replication")["master_link_status"] != "up":
            return False
        for each in self.sentinels:
            with each.client(decode_responses=True) as client:
                state = client.sentinel_master("main")
            if (state["num-slaves"], state["num-other-sentinels"]) != (1, 2):
                return False
        return True


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[Replicated]:
    servers = Replicated(tmp_path)
    with servers.stack:
        yield servers


def assert_nothing_lost_silently(traffic: Traffic) -> None:
    """What an acknowledged notification lacks, a gap has reported; nothing came twice."""
    for subscriber in traffic.subscribers:
        for room, ids in traffic.acknowledged.items():
            received = Counter(subscriber.ids[room])
            assert [id for id, count in received.items() if count > 1] == []
            if set(ids) - received.keys():
                assert subscriber.gaps[room]


async def test_killed_primary_loses_nothing_silently(replicated: Replicated) -> None:
    async def fault() -> None:
        replicated.primary.kill()
        await asyncio.sleep(scaled(4))

    traffic = await run_traffic(replicated.url, fault)
    assert_nothing_lost_silently(traffic)
    assert replicated.replica.command("ROLE")[0] == b"master"
    for subscriber in traffic.subscribers:
        assert set(subscriber.gaps) == set(ROOMS)


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
