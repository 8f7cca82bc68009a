"""A text that grows, and a job that runs, while a primary is replaced whose replica lacks the last
notifications."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import Entry, Publication, PublishResult
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.failover import Redundant, in_cluster, lose_primary, with_sentinels
from tests.support.folding import Texts
from tests.support.jobs import lifecycle
from tests.support.polling import until, until_ready
from tests.support.text_reporter import TextReporter
from tests.support.timeouts import TIMEOUT_S

ROOM = Room("request_q1")
TEXT = "".join([f"é{number} " for number in range(60)])


@pytest.fixture(params=[with_sentinels, in_cluster])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Redundant]:
    with request.param(tmp_path) as servers:
        yield servers


async def test_text_is_whole_after_a_failover_that_lost_pieces(servers: Redundant) -> None:
    stores = [RedisStore(parse_address(servers.url)) for _ in range(2)]
    texts = Texts()
    gaps: list[object] = []

    def deliver(_room: Room, entry: Entry, _published_at: float | None) -> int:
        texts.apply(json.loads(entry.text))
        return 1

    stores[1].subscribe(deliver, lambda _room, position: gaps.append(position))
    await stores[1].join(ROOM)
    for store in stores:
        await until_ready(store)
    reporter = TextReporter(stores[0], ROOM, TEXT)
    await reporter.publish_to(20)
    primary = servers.primary_of(ROOM)
    primary.command("WAIT", 1, 1000)
    primary.cut_replication()
    await reporter.publish_to(60)
    await lose_primary(servers, primary)
    await reporter.publish_to(len(TEXT))
    assert reporter.mismatches == [20], "the publisher is told from where the new primary has none"
    await until(lambda: texts.by_key.get("k") == TEXT)
    assert len(gaps) == 1, "subscribers are informed of the gap once"
    for store in stores:
        (entry,) = (await store.read(ROOM, store.earliest(), 10)).entries
        assert json.loads(entry.text)["data"]["delta"] == TEXT
        await store.close()


async def publish_until_stored(store: RedisStore, publication: Publication) -> PublishResult:
    """Publish, again with the same id until it is answered, as the SDK does."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                (result,) = await store.publish([publication])
            except StoreUnavailableError:
                await asyncio.sleep(0.05)
            else:
                return result


async def test_record_of_a_job_is_that_of_the_log_after_a_failover(servers: Redundant) -> None:
    stores = [RedisStore(parse_address(servers.url)) for _ in range(2)]
    for store in stores:
        await until_ready(store)

    async def report(event: str, at: int, **data: Any) -> None:
        await publish_until_stored(stores[0], lifecycle(event, at=at, **data))

    await report("started", 1)
    await report("progress", 2, label="first", progress=0.1)
    primary = servers.primary_of(ROOM)
    primary.command("WAIT", 1, 1000)
    primary.cut_replication()
    await report("progress", 3, label="lost")
    await lose_primary(servers, primary)
    await publish_until_stored(stores[1], lifecycle("progress", at=4, progress=0.4))
    for store in stores:
        record = (await store.get_job(ROOM, "q1")).record
        assert record is not None
        assert (record.status, record.label, record.progress) == ("running", "first", 0.4)
    await report("completed", 5, title="T")
    snapshot = await stores[1].get_job(ROOM, "q1")
    assert snapshot.record is not None
    assert (snapshot.record.status, snapshot.record.result) == ("completed", {"title": "T"})
    assert (await stores[0].read(ROOM, snapshot.cursor, 10)).entries == []
    for store in stores:
        await store.close()
