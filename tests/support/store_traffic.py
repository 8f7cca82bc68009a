"""Traffic over two nodes that share a store on Redis, while something fails."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import Entry, Publication, Retention
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore

from .polling import until, until_ready
from .timeouts import TIMEOUT_S

ROOMS = [Room(f"user_{n}") for n in range(8)]
LOAD_S = 3.0


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
    retention = Retention(count=100_000)  # a fast machine publishes more than the default
    stores = [RedisStore(parse_address(each), retention) for each in (url, direct or url)]
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


def assert_exact(traffic: Traffic) -> None:
    """Every acknowledged notification arrived once, in order, at both nodes, without a gap."""
    for subscriber in traffic.subscribers:
        assert not subscriber.gaps
        for room, ids in traffic.acknowledged.items():
            assert subscriber.ids[room] == ids
            assert len(ids) > 10  # on a busy machine, too


def assert_nothing_lost_silently(traffic: Traffic) -> None:
    """What an acknowledged notification lacks, a gap has reported; nothing came twice."""
    for subscriber in traffic.subscribers:
        for room, ids in traffic.acknowledged.items():
            received = Counter(subscriber.ids[room])
            assert [id for id, count in received.items() if count > 1] == []
            if set(ids) - received.keys():
                assert subscriber.gaps[room]
