"""The pub/sub connection by which a node receives new entries from one primary."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable
from time import monotonic
from typing import Any, Protocol

from ....lexical import parse_digits
from ...errors import StoreUnavailableError
from ..base import LinkStats
from .connection import RedisConnection, RedisConnectionLostError, RedisReplyError, backoff_s
from .errors import UNREACHABLE, describe_problem
from .keys import NODES_PARTITION, partition_of_key, slot_of

logger = logging.getLogger(__name__)

Connect = Callable[[Callable[[Any], None]], Awaitable[RedisConnection]]
"""Opens a connection to the primary, whose messages go to a function."""

PROBE_INTERVAL_S = 1.0
"""How often a node sends a message to itself. It proves that messages arrive, which a reply to a
ping does not: the connection might lead to a server that has been replaced."""

SILENCE_S = 1.9
"""After this time without a message, the connection is replaced."""

_BATCH = 512  # channels per command


class Channels(Protocol):
    """Subscribes to channels."""

    def start(self) -> None:
        """Start to receive messages."""
        ...

    async def subscribe(self, channel: bytes) -> None:
        """Receive the messages of a channel. Returns when Redis has confirmed it."""
        ...

    def unsubscribe(self, channel: bytes) -> None:
        """Receive no more messages of a channel."""
        ...


class Feed:
    """Receives the messages of the channels of some partitions.

    Attributes:
        partitions: those that the primary serves. Changed by :meth:`adopt` and :meth:`drop`.
        lost: those that it says it does not serve any more.
        migrating: those of which it sends some calls to another server. They are not used to prove
            that messages arrive.
    """

    def __init__(
        self,
        connect: Connect,
        *,
        stats: LinkStats,
        probe_channel: Callable[[int], bytes],
        send_probe: Callable[[int], object],
        on_message: Callable[[bytes, bytes], None],
        catch_up: Callable[[Collection[int]], Awaitable[None]],
        on_failed: Callable[[], None],
        on_moved: Callable[[RedisReplyError | None], None],
    ) -> None:
        """
        Args:
            probe_channel: returns the channel by which a partition's primary is probed.
            send_probe: publishes to the probe channel of a partition, without waiting.
            on_message: called with channel and payload.
            catch_up: called when all channels of some partitions are subscribed to: messages may
                have been lost before.
            on_failed: called when the connection has failed.
            on_moved: called when partitions are ``lost``, with the server's reply if that names
                another server. Call :meth:`drop`, or :meth:`adopt` to try again.
        """
        self.partitions: set[int] = set()
        self.lost: set[int] = set()
        self.migrating: set[int] = set()
        self._connect = connect
        self._stats = stats
        self._deaf_since: float | None = None
        self._make_probe_channel = probe_channel
        self._send_probe = send_probe
        self._on_message = on_message
        self._catch_up = catch_up
        self._on_failed = on_failed
        self._on_moved = on_moved
        self._wanted: defaultdict[int, dict[bytes, asyncio.Future[None]]] = defaultdict(dict)
        self._changes: dict[bytes, bytes] = {}  # channel to command, not sent yet
        self._unconfirmed: Counter[bytes] = Counter()  # subscriptions that were sent
        self._ending: Counter[bytes] = Counter()  # unsubscriptions that were sent
        self._behind: set[int] = set()  # partitions that have to be caught up with
        self._is_catching_up = False
        self._fell_behind = asyncio.Event()
        self._received_at = 0.0
        self._time: Callable[[], float] = monotonic  # that of the event loop, once it runs
        self._probe_channel = b""
        self._connection: RedisConnection | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_current(self) -> bool:
        """Whether messages arrive, and everything before was made up for."""
        return self._connection is not None and not self._behind and not self._is_catching_up

    @property
    def unconfirmed(self) -> int:
        """How many channels are wanted whose messages do not arrive."""
        wanted = [each for channels in self._wanted.values() for each in channels.values()]
        if self._connection is None:
            return len(wanted)
        return sum(not confirmed.done() for confirmed in wanted)

    @property
    def deaf_s(self) -> float:
        """For how many seconds messages have not arrived, until now."""
        if self._deaf_since is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._deaf_since

    def start(self) -> None:
        if self._task is None:
            self._deaf_since = asyncio.get_running_loop().time()
            self._task = asyncio.get_running_loop().create_task(self._run(), name="synap-feed")

    def subscribe(self, channel: bytes) -> asyncio.Future[None]:
        """Receive the messages of a channel.

        Returns:
            Done when the server has confirmed it, or when the channel is no longer wanted here.
        """
        wanted = self._wanted[partition_of_key(channel)]
        confirmed = wanted.get(channel)
        if confirmed is None:
            confirmed = wanted[channel] = asyncio.get_running_loop().create_future()
            self._change(channel, b"SSUBSCRIBE")
        return confirmed

    def unsubscribe(self, channel: bytes) -> None:
        confirmed = self._wanted[partition_of_key(channel)].pop(channel, None)
        if confirmed is not None:
            _settle(confirmed)
            self._change(channel, b"SUNSUBSCRIBE")

    def adopt(self, partition: int, channels: Iterable[bytes]) -> None:
        """Subscribe to the channels of a partition, then catch up with it."""
        self.partitions.add(partition)
        self.lost.discard(partition)
        self._fall_behind(partition)
        for channel in channels:
            self.subscribe(channel)
        for channel in self._wanted[partition]:
            self._change(channel, b"SSUBSCRIBE")

    def drop(self, partition: int) -> None:
        """Forget a partition, which another server serves.

        The server itself ends the subscriptions of a slot that it has lost.
        """
        for numbers in (self.partitions, self.lost, self.migrating, self._behind):
            numbers.discard(partition)
        for channel, confirmed in self._wanted.pop(partition, {}).items():
            self._changes.pop(channel, None)
            _settle(confirmed)

    def restart(self) -> None:
        """Replace the connection: another server may have taken over."""
        if self._connection is not None:
            self._connection.abort(RedisConnectionLostError("it may lead to a replaced server"))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for wanted in self._wanted.values():
            for confirmed in wanted.values():
                confirmed.cancel()

    def _lose(self, partition: int) -> None:
        self.lost.add(partition)
        self._fall_behind(partition)

    def _fall_behind(self, partition: int) -> None:
        """Note that messages of a partition may not arrive."""
        loop = asyncio.get_running_loop()
        wanted = self._wanted[partition]
        for channel, confirmed in wanted.items():
            del self._unconfirmed[channel]
            del self._ending[channel]
            if confirmed.done():
                wanted[channel] = loop.create_future()
        self._behind.add(partition)
        if self._deaf_since is None:
            self._deaf_since = loop.time()
        self._fell_behind.set()

    def _change(self, channel: bytes, command: bytes) -> None:
        if self._connection is None:
            return  # the next connection subscribes to all
        if not self._changes:
            asyncio.get_running_loop().call_soon(self._send_changes)
        self._changes[channel] = command

    def _send_changes(self) -> None:
        changes, self._changes = self._changes, {}
        for command in (b"SSUBSCRIBE", b"SUNSUBSCRIBE"):
            self._send(command, [channel for channel, to in changes.items() if to == command])

    def _send(self, command: bytes, channels: list[bytes]) -> None:
        (self._unconfirmed if command == b"SSUBSCRIBE" else self._ending).update(channels)
        if self._connection is None or not channels:
            return
        by_partition: defaultdict[int, list[bytes]] = defaultdict(list)
        for channel in channels:  # those of one command have to be in one slot
            by_partition[partition_of_key(channel)].append(channel)
        self._connection.send(
            [
                (command, *together[start : start + _BATCH])
                for together in by_partition.values()
                for start in range(0, len(together), _BATCH)
            ]
        )

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._follow()
            except (*UNREACHABLE, RedisReplyError) as error:
                if self.is_current:
                    failures = 0
                    problem = describe_problem(error)
                    logger.warning("messages of Redis stopped: %s; reconnecting", problem)
            finally:
                connection, self._connection = self._connection, None
                if self._deaf_since is None:
                    self._deaf_since = self._received_at
                if connection is not None:
                    self._stats.message_reconnects += 1
                    connection.abort(RedisConnectionLostError("it is replaced"))
            self._on_failed()
            await asyncio.sleep(backoff_s(failures))
            failures += 1

    async def _follow(self) -> None:
        """Connect, subscribe, catch up, and probe until the connection fails."""
        loop = asyncio.get_running_loop()
        self._time = loop.time
        connection = await self._connect(self._receive)
        self._connection = connection
        self._changes.clear()
        self._unconfirmed.clear()
        self._ending.clear()
        self._probe_channel = b""
        self.lost.clear()
        for partition in self.partitions:
            self._fall_behind(partition)
        self._received_at = loop.time()
        self._send(b"SSUBSCRIBE", [name for wanted in self._wanted.values() for name in wanted])
        catching_up = loop.create_task(self._catch_up_always())
        try:
            while not connection.closed.done():
                if catching_up.done():  # it never ends by itself
                    raise RedisConnectionLostError("what was missed was not made up for")
                if loop.time() - self._received_at > SILENCE_S:
                    raise TimeoutError
                self._probe()
                await asyncio.wait([connection.closed], timeout=PROBE_INTERVAL_S)
            raise connection.closed.result()
        finally:
            catching_up.cancel()

    def _probe(self) -> None:
        """Publish to this connection, over the primary that it leads to."""
        if not self.partitions:
            return
        partition = min(self.partitions - self.migrating or self.partitions)
        if partition != NODES_PARTITION and NODES_PARTITION in self.partitions:
            self._send_probe(NODES_PARTITION)  # it keeps the node in the list
        channel = self._make_probe_channel(partition)
        if channel != self._probe_channel:
            self._probe_channel = channel
            self._send(b"SSUBSCRIBE", [channel])
        self._send_probe(partition)

    def _receive(self, message: Any) -> None:
        if isinstance(message, RedisReplyError):
            self._on_error(message)
            return
        self._received_at = self._time()
        kind, channel, payload = message
        if kind == b"smessage":
            if channel != self._probe_channel:
                self._on_message(channel, payload)
        elif kind == b"ssubscribe":
            self._unconfirmed[channel] -= 1
            if self._unconfirmed[channel] > 0:  # it was unsubscribed from in between
                return
            del self._unconfirmed[channel]
            confirmed = self._wanted[partition_of_key(channel)].get(channel)
            if confirmed is not None:
                _settle(confirmed)
        elif kind == b"sunsubscribe" and channel is not None:
            if self._ending[channel] > 0:
                self._ending[channel] -= 1
                return
            partition = partition_of_key(channel)
            if channel == self._probe_channel:
                self._probe_channel = b""
                self._on_moved(None)
            elif channel in self._wanted[partition]:  # the server has lost the slot
                self._lose(partition)
                self._on_moved(None)

    def _on_error(self, error: RedisReplyError) -> None:
        if (slot := _moved_slot(error)) is not None:
            self._probe_channel = b""  # perhaps that of this slot
            for partition in self.partitions:
                if slot_of(partition) == slot:
                    self._lose(partition)
            self._on_moved(error)
        elif self._connection is not None:
            self._connection.abort(error)

    async def _catch_up_always(self) -> None:
        failures = 0
        while True:
            while not self._behind:
                self._fell_behind.clear()
                await self._fell_behind.wait()
            partitions = frozenset(self._behind)
            self._behind.clear()
            self._is_catching_up = True
            try:
                await self._confirm(partitions)
                await self._catch_up(partitions)
                failures = 0
            except StoreUnavailableError:
                await asyncio.sleep(backoff_s(failures))
                failures += 1
                self._behind |= partitions & self.partitions
            finally:
                self._is_catching_up = False
            if self.is_current:
                self._stats.deaf_s += self.deaf_s
                self._deaf_since = None

    async def _confirm(self, partitions: Collection[int]) -> None:
        """Wait until all channels of some partitions are subscribed to."""
        waiting = [
            confirmed for number in partitions for confirmed in self._wanted[number].values()
        ]
        if waiting:
            await asyncio.wait(waiting)


def _settle(confirmed: asyncio.Future[None]) -> None:
    if not confirmed.done():
        confirmed.set_result(None)


def _moved_slot(error: RedisReplyError) -> int | None:
    """Return the slot of ``MOVED 3999 127.0.0.1:6381``; None for any other error."""
    code, slot, *_ = *str(error).split(), "", ""
    return parse_digits(slot) if code == "MOVED" else None
