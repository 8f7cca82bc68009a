"""What a node delivers when messages are late, and when a log was replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Entry, Publication, PublishResult
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import Valkey, running_valkey

ROOM = Room("user_1")


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with running_valkey(tmp_path / "valkey") as server:
        yield server


class Node:
    """A store that has joined one room, and what it delivers."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store
        self.ids: list[str] = []
        self.gaps: list[Cursor] = []
        self._changed = asyncio.Event()

    def deliver(self, _room: Room, entry: Entry, _published_at: float | None) -> int:
        self.ids.append(entry.text.partition('"id":"')[2].partition('"')[0])
        self._changed.set()
        return 1

    def on_gap(self, _room: Room, position: Cursor) -> None:
        self.gaps.append(position)
        self._changed.set()

    async def publish(self, id: str) -> PublishResult:
        (result,) = await self.store.publish([Publication(ROOM, id, f'{{"id":"{id}"}}')])
        return result

    async def until(self, *ids: str, gaps: int = 0) -> None:
        """Wait until exactly these were delivered, and so many gaps were reported."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.ids != [*ids] or len(self.gaps) != gaps:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def joined(valkey: Valkey, now: list[float] | None = None) -> AsyncIterator[Node]:
    clock = None if now is None else (lambda: now[0])
    store = RedisStore(parse_address(valkey.url), clock=clock)
    node = Node(store)
    store.subscribe(node.deliver, node.on_gap)
    await store.join(ROOM)
    try:
        yield node
    finally:
        store.leave(ROOM)
        await store.close()


def announce(valkey: Valkey, store: RedisStore, epoch: str, offset: int, id: str) -> None:
    channel = store._keys.of_room(ROOM).log.decode()
    assert valkey.command("SPUBLISH", channel, f'{epoch} 0 {offset} 0:4 {{"id":"{id}"}}') == 1


async def test_late_message_of_a_previous_epoch_is_dropped(valkey: Valkey) -> None:
    async with joined(valkey) as node:
        first = await node.publish("a")
        announce(valkey, node.store, "previous", first.cursor.offset + 1, "late")
        await node.publish("b")
        await node.until("a", "b")


async def test_announcement_of_what_the_log_lacks_is_not_delivered(valkey: Valkey) -> None:
    """It comes from a primary that was replaced: its log is not the one that is read."""
    async with joined(valkey) as node:
        first = await node.publish("a")
        channel = node.store._keys.of_room(ROOM).log.decode()
        head = first.cursor.offset
        message = f"{first.cursor.epoch} {head + 1} {head + 2} 0:4"
        valkey.command("SPUBLISH", channel, message)
        await node.publish("b")
        await node.until("a", "b")


async def test_subscribers_continue_in_a_log_that_replaced_theirs(valkey: Valkey) -> None:
    async with joined(valkey) as node:
        first = await node.publish("a")
        valkey.command("FLUSHALL")
        second = await node.publish("b")
        await node.until("a", "b", gaps=1)
        assert node.gaps[0].epoch == second.cursor.epoch != first.cursor.epoch
        assert node.gaps[0].offset < second.cursor.offset
        await node.publish("c")
        await node.until("a", "b", "c", gaps=1)


async def test_subscribers_continue_in_a_log_whose_clock_is_behind(valkey: Valkey) -> None:
    """The gap stands for what was published before it was noticed."""
    now = [time.time()]
    async with joined(valkey, now) as node:
        first = await node.publish("a")
        now[0] -= 3600
        valkey.command("FLUSHALL")
        second = await node.publish("b")
        assert second.cursor.offset < first.cursor.offset
        await node.until("a", gaps=1)
        assert node.gaps[0] == second.cursor
        await node.publish("c")
        await node.until("a", "c", gaps=1)


async def test_deleted_entries_are_a_gap_and_the_retained_ones_arrive(valkey: Valkey) -> None:
    async with joined(valkey) as node:
        await node.publish("a")
        valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
        other = RedisStore(parse_address(valkey.url))
        for id in "bcd":
            await other.publish([Publication(ROOM, id, f'{{"id":"{id}"}}')])
        valkey.command("XTRIM", other._keys.of_room(ROOM).log.decode(), "MAXLEN", "1")
        await other.close()
        await node.until("a", "d", gaps=1)
