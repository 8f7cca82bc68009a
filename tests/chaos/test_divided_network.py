"""A primary that is cut off with one node, while the others have chosen another primary."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import Entry
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.link import Link
from tests.support.loop_thread import LoopThread
from tests.support.polling import until, until_ready
from tests.support.replicated import Replicated
from tests.support.scripted_redis import answering, bulk
from tests.support.stores import publication
from tests.support.timeouts import TIMEOUT_S, scaled

ROOM = Room("user_1")

REMEDY = ("--min-replicas-to-write", "1", "--min-replicas-max-lag", "1")
DOWN_AFTER_S = 5.0
"""More than the lag after which the primary refuses writes, and the second until it notices."""


@dataclass
class Node:
    """A node with a subscriber.

    Attributes:
        ids: what the subscriber received.
        gaps: when it was informed of a gap.
    """

    store: RedisStore
    ids: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def deliver(self, _room: Room, entry: Entry, _published_at: float | None) -> int:
        id = entry.text.partition('"id": "')[2].partition('"')[0]
        if id not in self.ids:  # as a client that drops what it knows
            self.ids.append(id)
        return 1

    def on_gap(self, _room: Room, _position: Cursor) -> None:
        self.gaps.append(time.monotonic())


@dataclass
class Divided:
    """Two nodes. One stays with the former primary, if the network is divided.

    Attributes:
        near: the node that still reaches it. Its Sentinel is cut off, too.
        far: the one that follows the other Sentinels.
        acknowledged: when each publish at the near node was answered.
    """

    servers: Replicated
    near: Node
    far: Node
    _link: Link
    _links: LoopThread
    primary_port: int
    acknowledged: dict[str, float] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def divide(self) -> None:
        self._change(self._link.stall)

    def heal(self) -> None:
        self.primary_port = self.servers.replica.port
        self._change(self._link.restore)

    def _change(self, change: object) -> None:
        async def work() -> None:
            assert callable(change)
            change()

        self._links.run(work())

    async def publish(self) -> str | None:
        """Publish at the near node. Return why it was refused."""
        id = f"n{next(self._numbers)}"
        try:
            await self.near.store.publish([publication(id, ROOM)])
        except StoreUnavailableError as error:
            return str(error)
        self.acknowledged[id] = time.monotonic()
        return None

    async def publish_until(self, node: Node) -> list[str | None]:
        """Publish at the near node until a second after another one was informed of a gap."""
        refusals = []
        async with asyncio.timeout(TIMEOUT_S):
            while not node.gaps or time.monotonic() < node.gaps[0] + scaled(1):
                refusals.append(await self.publish())
                await asyncio.sleep(0.02)
        return refusals

    def lost(self, node: Node) -> set[str]:
        """What was acknowledged, and did not reach the subscriber of a node."""
        return self.acknowledged.keys() - set(node.ids)

    def lost_silently(self, node: Node) -> set[str]:
        """Those that were acknowledged after the subscriber was informed of the last gap."""
        return {id for id in self.lost(node) if self.acknowledged[id] > max(node.gaps)}


@asynccontextmanager
async def network(
    folder: Path, *options: str, down_after_s: float = 1.0, durability: str = "primary"
) -> AsyncIterator[Divided]:
    async with contextlib.AsyncExitStack() as stack:
        links = stack.enter_context(LoopThread("tests-links"))
        relays: list[Link] = []

        def through(port: int) -> int:
            link = Link(f"http://127.0.0.1:{port}")
            links.run(link.__aenter__())
            stack.callback(lambda: links.run(link.__aexit__(None, None, None)))
            relays.append(link)
            return urlsplit(link.url).port or 0

        servers = await asyncio.to_thread(
            lambda: Replicated(
                folder, options=options, through=through, down_after_ms=round(down_after_s * 1000)
            )
        )
        stack.enter_context(servers.stack)

        def sentinel(request: bytes) -> bytes:
            """The Sentinel of the near node, which learns of the other primary at the end."""
            if b"SENTINEL" not in request:
                return b""
            return bulk("config-epoch", "1") + bulk("127.0.0.1", str(divided.primary_port))

        port = await stack.enter_async_context(answering(sentinel))
        near, far = (
            Node(RedisStore(parse_address(f"{url}?durability={durability}")))
            for url in (f"redis+sentinel://127.0.0.1:{port}/main", servers.url)
        )
        divided = Divided(servers, near, far, relays[0], links, servers.primary.port)
        for node in (near, far):
            node.store.subscribe(node.deliver, node.on_gap)
            await node.store.join(ROOM)
            await until_ready(node.store)
            stack.push_async_callback(node.store.close)
        yield divided


async def until_one_again(divided: Divided) -> None:
    """Join the networks. What either node publishes reaches both."""
    divided.heal()
    await until(lambda: divided.near.gaps)
    await until_ready(divided.near.store)
    for node, id in ((divided.near, "last-1"), (divided.far, "last-2")):
        await node.store.publish([publication(id, ROOM)])
        await until(lambda id=id: all(id in each.ids for each in (divided.near, divided.far)))  # type: ignore[misc]


async def test_all_subscribers_are_informed_when_the_network_is_whole_again(tmp_path: Path) -> None:
    """Until then, those of the smaller part receive what is published there."""
    async with network(tmp_path) as divided:
        assert await divided.publish() is None
        divided.divide()
        refusals = await divided.publish_until(divided.far)
        assert set(refusals) == {None}
        assert divided.lost(divided.near) == set()
        head = await divided.far.store.head(ROOM)
        await until_one_again(divided)
        assert divided.lost(divided.near) == set()
        assert divided.lost(divided.far), "the former primary had acknowledged them"
        assert divided.lost_silently(divided.far) == set()
        assert len(divided.far.gaps) == 2
        # Also a client of the other part that was not connected meanwhile.
        page = await divided.far.store.read(ROOM, head, 10)
        assert not page.recovered


async def test_primary_that_needs_a_replica_to_write_loses_nothing_silently(
    tmp_path: Path,
) -> None:
    async with network(tmp_path, *REMEDY, down_after_s=DOWN_AFTER_S) as divided:
        assert await divided.publish() is None
        # It stands for a second replica, without which the new primary would refuse writes, too.
        divided.servers.replica.command("CONFIG", "SET", "min-replicas-to-write", 0)
        divided.divide()
        refusals = await divided.publish_until(divided.far)
        assert "min-replicas-to-write" in (refusals[-1] or "")
        with pytest.raises(StoreUnavailableError, match="min-replicas-to-write"):
            await divided.near.store.check()
        await until_one_again(divided)
        for node in (divided.near, divided.far):
            assert divided.lost_silently(node) == set()


async def test_publishes_that_wait_for_a_replica_lose_nothing(tmp_path: Path) -> None:
    async with network(tmp_path, durability="replica") as divided:
        assert await divided.publish() is None
        divided.divide()
        refusals = await divided.publish_until(divided.far)
        assert "no replica has confirmed it" in (refusals[-1] or "")
        for node in (divided.near, divided.far):
            assert divided.lost(node) == set()
        divided.heal()
        await until(lambda: divided.near.gaps)
