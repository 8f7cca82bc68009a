"""A node whose messages stopped becomes ready again, whatever happens while it catches up."""

from __future__ import annotations

import asyncio

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Page
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.polling import until_ready
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


async def test_room_that_is_left_while_it_catches_up(empty_valkey: Valkey) -> None:
    """Such as that of a slow consumer: its heal is cancelled, and nothing else."""
    store = SlowReadingStore(empty_valkey.url)
    await store.join(ROOM)
    await until_ready(store)
    store.is_reading.clear()
    store.pages.clear()
    empty_valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
    async with asyncio.timeout(TIMEOUT_S):
        await store.is_reading.wait()
    store.leave(ROOM)
    await until_ready(store)
    await store.close()
