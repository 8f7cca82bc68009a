"""Route calls and subscriptions to the primaries that serve their keys.

A standalone server, and the primary that Sentinels name, serve all partitions. In a Redis Cluster
each primary serves some.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..base import LinkStats
from .address import Peer, RedisAddress
from .cluster import Owners, SlotMap, parse_redirection
from .connection import RedisConnection, RedisReplyError, connect
from .errors import describe_problem
from .feed import Feed
from .keys import ALL_PARTITIONS, NODES_PARTITION, PARTITIONS, partition_of_key
from .link import MAX_PENDING_BYTES, Call, Link
from .requirements import Requirements
from .script import Script
from .tasks import Tasks
from .topology import Topology

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S = 3.0
"""A call fails after this time. Until then it is repeated, where its keys are served."""

_HOLD_S = 0.03  # how often a call is tried again


class _Shard:
    """One primary: a link for calls, and a feed for messages.

    Attributes:
        peer: None if it is looked up at each connection.
        was_connected: whether calls could be sent before.
    """

    def __init__(self, peer: Peer | None, link: Link, feed: Feed) -> None:
        self.peer = peer
        self.link = link
        self.feed = feed
        self.was_connected = False

    @property
    def partitions(self) -> set[int]:
        return self.feed.partitions

    async def close(self) -> None:
        await self.feed.close()
        await self.link.close()


@dataclass(slots=True, eq=False)
class _Held:
    """Calls of one partition that wait until it is served.

    Attributes:
        problem: why they wait.
        timer: releases them.
    """

    calls: list[Call]
    problem: str
    timer: asyncio.TimerHandle


class Shards:
    """All primaries of a store."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        stats: LinkStats,
        channels: Iterable[bytes],
        probe_channel: Callable[[int], bytes],
        send_probe: Callable[[int], object],
        on_message: Callable[[bytes, bytes], None],
        catch_up: Callable[[Collection[int]], Awaitable[None]],
        clock_shift_us: Callable[[], int],
    ) -> None:
        """
        Args:
            stats: counts how the connections work.
            channels: those that are always subscribed to.
            probe_channel, send_probe, on_message, catch_up: see :class:`~.feed.Feed`.
            clock_shift_us: see :class:`~.link.Link`.
        """
        self._address = address
        self._stats = stats
        self._make_feed = partial(
            Feed,
            stats=stats,
            probe_channel=probe_channel,
            send_probe=send_probe,
            on_message=on_message,
            catch_up=catch_up,
        )
        self._clock_shift_us = clock_shift_us
        self._requirements = Requirements(address)
        self._topology = Topology(address, self._on_switch)
        self._slot_map = SlotMap(address, self._on_owners)
        self._shards: dict[Peer | None, _Shard] = {}
        self._owners: list[_Shard | None] = [None] * len(ALL_PARTITIONS)
        self._held: dict[int, _Held] = {}  # by partition
        self._held_bytes = 0
        self._channels: dict[int, set[bytes]] = {number: set() for number in ALL_PARTITIONS}
        for channel in channels:
            self._channels[partition_of_key(channel)].add(channel)
        self._owners_changed = asyncio.Event()
        self._tasks = Tasks()
        self._only: _Shard | None = None  # without a cluster
        if not address.is_cluster:
            self._only = self._shard(None)
            self._only.partitions.update(ALL_PARTITIONS)
            self._owners = [self._only] * len(ALL_PARTITIONS)

    @property
    def is_current(self) -> bool:
        """Whether messages of all partitions arrive, and everything before was made up for."""
        return all(each is not None and each.feed.is_current for each in set(self._owners))

    @property
    def representatives(self) -> list[int]:
        """A partition of each primary."""
        found = [min(each.partitions) for each in self._shards.values() if each.partitions]
        return found or [NODES_PARTITION]

    @property
    def former_acknowledged_at(self) -> float | None:
        """When a primary that was replaced has acknowledged the last publish of this node.

        By the clock of the event loop. None: never, or it was forgotten. In a cluster it is not
        needed: a primary that is cut off rejects publishes before another one is chosen.
        """
        return None if self._only is None else self._only.link.former_acknowledged_at

    def forget_former(self) -> None:
        """Forget when a primary that was replaced has acknowledged a publish."""
        if self._only is not None:
            self._only.link.former_acknowledged_at = None

    def stats(self) -> LinkStats:
        """Return how the connections work."""
        feeds = [each.feed for each in self._shards.values()]
        return replace(
            self._stats,
            unconfirmed_subscriptions=sum(feed.unconfirmed for feed in feeds),
            deaf_s=self._stats.deaf_s + sum(feed.deaf_s for feed in feeds),
        )

    def start(self) -> None:
        """Start to receive messages."""
        if self._only is not None:
            self._only.feed.start()
        else:
            self._slot_map.start()

    def call(
        self,
        script: Script,
        keys: Sequence[bytes],
        arguments: Sequence[bytes | int | str],
        unit_starts: Sequence[int] = (),
    ) -> asyncio.Future[Any]:
        """Call a script where its keys are. It may run more than once: all can be repeated.

        Args:
            keys: at least one; in a cluster, all in one partition.
            unit_starts: see :class:`~.link.Call`.

        Returns:
            The reply; for a script with units, a reply for each. StoreUnavailableError: it was not
            called, or its reply was lost, or that of a unit is an error.
        """
        loop = asyncio.get_running_loop()
        size = sum([len(each) for each in arguments if not isinstance(each, int)]) + 200
        deadline = loop.time() + CALL_TIMEOUT_S
        if unit_starts:
            units = len(unit_starts)
        else:
            units = len(keys) // script.unit_keys if script.unit_keys else 0
        result = loop.create_future()
        call = Call(script, keys, arguments, deadline, result, size, unit_starts, units)
        if self._only is not None:
            self._only.link.add(call)
        else:
            call.group = partition_of_key(keys[0])
            self._route(call)
        return result

    async def subscribe(self, channel: bytes) -> None:
        """Receive the messages of a channel. Returns when its primary has confirmed it."""
        partition = partition_of_key(channel)
        self._channels[partition].add(channel)
        while True:
            shard = self._owners[partition]
            if shard is None:
                self._owners_changed.clear()
                await self._owners_changed.wait()
                continue
            await asyncio.shield(shard.feed.subscribe(channel))
            if self._owners[partition] is shard:
                return

    def unsubscribe(self, channel: bytes) -> None:
        partition = partition_of_key(channel)
        self._channels[partition].discard(channel)
        if (shard := self._owners[partition]) is not None:
            shard.feed.unsubscribe(channel)

    async def close_feeds(self) -> None:
        """Receive no more messages."""
        await self._slot_map.close()
        for shard in list(self._shards.values()):
            await shard.feed.close()

    async def close(self) -> None:
        """Finish the pending calls, then disconnect."""
        for partition in list(self._held):
            self._release(partition)
        for shard in list(self._shards.values()):
            await shard.close()
        for held in self._held.values():
            held.timer.cancel()
            for call in held.calls:
                call.fail("the store is closed")
        await self._tasks.wait()
        await self._topology.close()
        await asyncio.sleep(0)  # an aborted transport closes its socket in the next iteration

    def _shard(self, peer: Peer | None) -> _Shard:
        found = self._shards.get(peer)
        if found is not None:
            return found
        open_connection = (
            self._topology.connect if peer is None else partial(_connect, self._address, peer)
        )
        shard: _Shard

        def on_connected() -> None:
            if not shard.was_connected:
                for partition in shard.partitions:
                    for channel in self._channels[partition]:
                        shard.feed.subscribe(channel)
            if shard.partitions:
                shard.feed.start()
            if shard.was_connected:
                # It may still be connected to a server that was replaced, or catch up with one.
                shard.feed.restart()
            shard.was_connected = True

        link = Link(
            "Redis" if peer is None else f"Redis {peer}",
            open_connection,
            self._requirements,
            stats=self._stats,
            on_connected=on_connected,
            on_failed=lambda: self._on_failed(shard),
            on_refused=lambda refused: self._on_refused(shard, refused),
            clock_shift_us=self._clock_shift_us,
        )
        feed = self._make_feed(
            open_connection,
            on_failed=lambda: self._on_failed(shard),
            on_moved=lambda error: self._on_moved(shard, error),
        )
        shard = self._shards[peer] = _Shard(peer, link, feed)
        return shard

    def _on_switch(self) -> None:
        """Handle another primary that the Sentinels name."""
        if self._only is not None:
            self._only.link.restart()
            self._only.feed.restart()

    # Calls

    def _route(self, call: Call) -> None:
        partition = partition_of_key(call.keys[0])
        shard = self._owners[partition]
        if (held := self._held.get(partition)) is not None:
            self._hold(partition, call, held.problem)
        elif shard is None:
            self._slot_map.refresh()
            self._hold(partition, call, self._slot_map.problem or "no primary serves these keys")
        else:
            shard.link.add(call)

    def _hold(self, partition: int, call: Call, problem: str) -> None:
        """Keep a call back for a moment. Later ones of its partition wait behind it."""
        if self._held_bytes > MAX_PENDING_BYTES:
            call.fail("too much waits to be sent to Redis")
            return
        held = self._held.get(partition)
        if held is None:
            timer = asyncio.get_running_loop().call_later(_HOLD_S, self._release, partition)
            held = self._held[partition] = _Held([], problem, timer)
        held.problem = problem
        held.calls.append(call)
        self._held_bytes += call.size

    def _release(self, partition: int) -> None:
        held = self._held.pop(partition)
        held.timer.cancel()
        now = asyncio.get_running_loop().time()
        for call in held.calls:
            self._held_bytes -= call.size
            if call.deadline > now:
                self._route(call)
            else:
                call.fail(held.problem)

    def _on_refused(self, shard: _Shard, refused: Sequence[tuple[Call, RedisReplyError]]) -> None:
        waiting: dict[int, str] = {}
        for call, error in refused:
            call.is_asking = False
            partition = partition_of_key(call.keys[0])
            other = parse_redirection(error, shard.peer)
            if shard is self._only:
                call.fail("this Redis is a node of a cluster: write redis+cluster:// in --store")
                continue
            if error.code in ("ASK", "TRYAGAIN"):
                shard.feed.migrating.add(partition)
            if error.code == "ASK" and other is not None:
                call.is_asking = True
                self._shard(other).link.add(call)
            else:
                if error.code != "TRYAGAIN":
                    self._slot_map.refresh(other)
                waiting[partition] = describe_problem(error)
                self._hold(partition, call, waiting[partition])
        if waiting:
            for call in shard.link.take(
                lambda call: not call.is_asking and partition_of_key(call.keys[0]) in waiting
            ):
                self._route(call)

    def _on_failed(self, shard: _Shard) -> None:
        if shard is self._only:
            return
        self._slot_map.refresh()
        self._reroute(shard)

    def _reroute(self, shard: _Shard) -> None:
        """Take the calls back that wait for a primary which does not serve their keys."""
        for call in shard.link.take(
            lambda call: self._owners[partition_of_key(call.keys[0])] is not shard
        ):
            call.is_asking = False
            self._route(call)

    # The cluster

    def _on_moved(self, shard: _Shard, error: RedisReplyError | None) -> None:
        if shard is self._only:
            shard.feed.restart()
        else:
            hint = None if error is None else parse_redirection(error, shard.peer)
            self._slot_map.refresh(hint)

    def _on_owners(self, owners: Owners) -> None:
        """Follow partitions to the primaries that serve them now."""
        moved: defaultdict[_Shard, list[int]] = defaultdict(list)  # from each shard
        gained: Counter[str] = Counter()
        for partition, peer in enumerate(owners):
            old = self._owners[partition]
            new = None if peer is None else self._shard(peer)
            if new is old:
                continue
            self._owners[partition] = new
            if old is not None:
                moved[old].append(partition)
                old.feed.drop(partition)
                gained[str(peer)] += 1
            if new is not None:
                new.feed.adopt(partition, self._channels[partition])
                new.feed.start()
            if partition in self._held:
                self._release(partition)
        self._owners_changed.set()
        for place, count in gained.items():
            logger.warning(
                "Redis Cluster: %d of %d partitions moved to %s", count, PARTITIONS, place
            )
        for shard in moved:
            self._reroute(shard)
            if not shard.partitions:
                del self._shards[shard.peer]
                shard.link.restart()  # what it was sent is sent again
                self._tasks.spawn(shard.close())
        for shard in self._shards.values():
            for partition in list(shard.feed.lost):  # the map says that it is still there
                shard.feed.adopt(partition, ())


async def _connect(
    address: RedisAddress, peer: Peer, on_message: Callable[[Any], None] | None = None
) -> RedisConnection:
    return await connect(address, peer, on_message)
