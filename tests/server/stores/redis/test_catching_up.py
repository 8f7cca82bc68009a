"""A node whose messages stopped becomes ready again, whatever happens while it catches up."""

from __future__ import annotations

import asyncio

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Page
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.polling import until, until_ready
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import Valkey

ROOM = Room("user_1")


class SlowReadingStore(RedisStore):
    """A store whose reads do not end while ``pages`` is cleared; ``is_reading`` reports one."""

    def __init__(self, url: str) -> None:
        super().__init__(parse_address(url))
        self.pages = asyncio.Event()
        self.pages.set()
        self.is_reading = asyncio.Event()

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        page = await super().read(room, after, limit)
        self.is_reading.set()
        await self.pages.wait()
        return page


async def catching_up(valkey: Valkey) -> SlowReadingStore:
    """Return a store that has joined a room, and catches up until ``pages`` is set."""
    store = SlowReadingStore(valkey.url)
    await store.join(ROOM)
    await until_ready(store)
    store.is_reading.clear()
    store.pages.clear()
    valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
    async with asyncio.timeout(TIMEOUT_S):
        await store.is_reading.wait()
    return store


async def test_room_that_is_left_while_it_catches_up(empty_valkey: Valkey) -> None:
    """Such as that of a slow consumer: its heal is cancelled, and nothing else."""
    store = await catching_up(empty_valkey)
    store.leave(ROOM)
    await until_ready(store)
    await store.close()


def subscriber_ids(valkey: Valkey) -> set[bytes]:
    """Return ``id=…`` of each connection that receives messages."""
    clients = valkey.command("CLIENT", "LIST", "TYPE", "pubsub")
    return {line.split(b" ")[0] for line in clients.splitlines()}


async def test_calls_that_move_to_another_connection_while_it_catches_up(
    empty_valkey: Valkey,
) -> None:
    """They may reach another primary than its messages come from, so it connects again."""
    store = await catching_up(empty_valkey)
    async with asyncio.timeout(TIMEOUT_S):
        before = subscriber_ids(empty_valkey)
        empty_valkey.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await store.head(ROOM)
        await until(lambda: subscriber_ids(empty_valkey).isdisjoint(before))
    store.pages.set()
    await until_ready(store)
    await store.close()
