"""A text that grows while the slot of its room moves to another primary of a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Entry
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.keys import partition_of, slot_of
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.folding import Texts
from tests.support.polling import until, until_ready
from tests.support.text_reporter import TextReporter
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import PROGRAMS, ValkeyCluster, running_cluster

ROOM = Room("request_q1")
SLOT = slot_of(partition_of(ROOM))
TEXT = "".join([f"é{number} " for number in range(2000)])
PART = 160
"""How much is published between two steps of a migration."""


@pytest.fixture(params=PROGRAMS)
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ValkeyCluster]:
    with running_cluster(tmp_path / "cluster", replicas=False, program=request.param) as servers:
        yield servers


@contextlib.asynccontextmanager
async def growing_text(
    cluster: ValkeyCluster,
) -> AsyncIterator[tuple[TextReporter, Callable[[], Awaitable[None]]]]:
    """Publish the text at one node, with a subscriber at another. Afterwards it is whole at both.

    Yields:
        The reporter, and a function that waits until it has published some more.
    """
    stores = [RedisStore(parse_address(cluster.url)) for _ in range(2)]
    texts = Texts()

    def deliver(_room: Room, entry: Entry, _published_at: float | None) -> int:
        texts.apply(json.loads(entry.text))
        return 1

    stores[1].subscribe(deliver)
    await stores[1].join(ROOM)
    for store in stores:
        await until_ready(store)
    reporter = TextReporter(stores[0], ROOM, TEXT)
    reporting = asyncio.create_task(reporter.publish_to(len(TEXT)))

    async def grow() -> None:
        end = min(reporter.length + PART, len(TEXT))
        async with asyncio.timeout(TIMEOUT_S):
            await until(lambda: reporter.length >= end)

    try:
        await grow()
        yield reporter, grow
        assert reporter.length < len(TEXT), "it grew all the time"
        await reporting
        await until(lambda: texts.by_key.get("k") == TEXT)
        for store in stores:
            (entry,) = (await store.read(ROOM, store.earliest(), 10)).entries
            assert json.loads(entry.text)["data"]["delta"] == TEXT
    finally:
        reporting.cancel()
        for store in stores:
            await store.close()


async def test_text_is_whole_after_its_slot_has_moved_key_by_key(cluster: ValkeyCluster) -> None:
    async with growing_text(cluster) as (reporter, grow):
        target = next(each for each in cluster.primaries if each is not cluster.primary_of(SLOT))
        source = cluster.start_moving(SLOT, target)
        await asyncio.sleep(0.1)  # pieces wait: the keys of their ids are not at the source
        folds = next(
            key
            for key in source.command("CLUSTER", "GETKEYSINSLOT", SLOT, 1000)
            if b":folds:" in key
        )
        migrate = ("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", folds.decode())
        source.command(*migrate)  # the text is at the target, and its log at the source
        await asyncio.sleep(0.1)
        cluster.finish_moving(SLOT, source, target)
        await grow()
        assert cluster.primary_of(SLOT) is target
        assert (reporter.mismatches, reporter.refused) == ([], 0)


async def test_text_is_whole_after_its_slot_has_moved_to_and_fro(cluster: ValkeyCluster) -> None:
    async with growing_text(cluster) as (reporter, grow):
        source = cluster.primary_of(SLOT)
        others = [each for each in cluster.primaries if each is not source]
        for target in (*others, source):
            before = cluster.start_moving(SLOT, target)
            cluster.finish_moving(SLOT, before, target)
            await grow()
        assert (reporter.mismatches, reporter.refused) == ([], 0)
