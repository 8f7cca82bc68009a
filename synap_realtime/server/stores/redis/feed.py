"""The pub/sub connection by which a node receives new entries from one primary."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ...errors import StoreUnavailableError
from .connection import RedisConnection, RedisConnectionLostError, RedisReplyError, backoff_s
from .errors import UNREACHABLE, describe_problem

logger = logging.getLogger(__name__)

Connect = Callable[[Callable[[Any], None]], Awaitable[RedisConnection]]
"""Opens a connection to the primary, whose messages go to a function."""

PROBE_INTERVAL_S = 1.0
"""How often a node sends a message to itself. It proves that messages arrive, which a reply to a
ping does not: the connection might lead to a server that has been replaced."""

SILENCE_S = 1.9
"""After this time without a message, the connection is replaced."""

_BATCH = 512  # channels per command


class Feed:
    """Receives the messages of the channels that are subscribed to.

    Attributes:
        is_current: whether messages arrive, and everything before was made up for.
    """

    def __init__(
        self,
        connect: Connect,
        probe_channel: bytes,
        send_probe: Callable[[], object],
        on_message: Callable[[bytes, bytes], None],
        catch_up: Callable[[], Awaitable[None]],
    ) -> None:
        """
        Args:
            send_probe: publishes to the probe channel, without waiting.
            on_message: called with channel and payload.
            catch_up: called when all channels are subscribed to at a new connection: messages may
                have been lost before.
        """
        self.is_current = False
        self._connect = connect
        self._probe_channel = probe_channel
        self._send_probe = send_probe
        self._on_message = on_message
        self._catch_up = catch_up
        self._wanted: dict[bytes, asyncio.Future[None]] = {}
        self._changes: dict[bytes, bytes] = {}  # channel to command, not sent yet
        self._unconfirmed: Counter[bytes] = Counter()  # subscriptions that were sent
        self._received_at = 0.0
        self._connection: RedisConnection | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="synap-feed")

    async def subscribe(self, channel: bytes) -> None:
        """Receive the messages of a channel. Returns when the server has confirmed it."""
        confirmed = self._wanted.get(channel)
        if confirmed is None:
            confirmed = self._wanted[channel] = asyncio.get_running_loop().create_future()
            self._change(channel, b"SUBSCRIBE")
        await asyncio.shield(confirmed)

    def unsubscribe(self, channel: bytes) -> None:
        if (confirmed := self._wanted.pop(channel, None)) is not None:
            confirmed.cancel()
            self._change(channel, b"UNSUBSCRIBE")

    def restart(self) -> None:
        """Replace the connection: another server may have taken over."""
        if self._connection is not None:
            self._connection.abort(RedisConnectionLostError("it may lead to a replaced server"))

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for confirmed in self._wanted.values():
            confirmed.cancel()

    def _change(self, channel: bytes, command: bytes) -> None:
        if self._connection is None:
            return  # the next connection subscribes to all
        if not self._changes:
            asyncio.get_running_loop().call_soon(self._send_changes)
        self._changes[channel] = command

    def _send_changes(self) -> None:
        changes, self._changes = self._changes, {}
        for command in (b"SUBSCRIBE", b"UNSUBSCRIBE"):
            self._send(command, [channel for channel, to in changes.items() if to == command])

    def _send(self, command: bytes, channels: list[bytes]) -> None:
        if command == b"SUBSCRIBE":
            self._unconfirmed.update(channels)
        if self._connection is not None and channels:
            self._connection.send(
                [
                    (command, *channels[start : start + _BATCH])
                    for start in range(0, len(channels), _BATCH)
                ]
            )

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._follow()
            except (*UNREACHABLE, RedisReplyError, StoreUnavailableError) as error:
                if self.is_current:
                    failures = 0
                    problem = describe_problem(error)
                    logger.warning("messages of Redis stopped: %s; reconnecting", problem)
            finally:
                self.is_current = False
                connection, self._connection = self._connection, None
                if connection is not None:
                    connection.abort(RedisConnectionLostError("it is replaced"))
            await asyncio.sleep(backoff_s(failures))
            failures += 1

    async def _follow(self) -> None:
        """Connect, subscribe, catch up, and probe until the connection fails."""
        loop = asyncio.get_running_loop()
        connection = self._connection = await self._connect(self._receive)
        self._changes.clear()
        self._unconfirmed.clear()
        for channel, confirmed in self._wanted.items():
            if confirmed.done():
                self._wanted[channel] = loop.create_future()
        self._received_at = loop.time()
        self._send(b"SUBSCRIBE", [self._probe_channel, *self._wanted])
        confirming = loop.create_task(self._confirm_all(list(self._wanted.values())))
        try:
            while not connection.closed.done():
                if confirming.done():
                    confirming.result()
                if loop.time() - self._received_at > SILENCE_S:
                    raise TimeoutError
                self._send_probe()
                await asyncio.wait([connection.closed], timeout=PROBE_INTERVAL_S)
            raise connection.closed.result()
        finally:
            confirming.cancel()

    def _receive(self, message: Any) -> None:
        if isinstance(message, RedisReplyError):
            if self._connection is not None:
                self._connection.abort(message)
            return
        self._received_at = asyncio.get_running_loop().time()
        kind, channel, payload = message
        if kind == b"message":
            if channel != self._probe_channel:
                self._on_message(channel, payload)
        elif kind == b"subscribe":
            self._unconfirmed[channel] -= 1
            if self._unconfirmed[channel] > 0:  # it was unsubscribed from in between
                return
            del self._unconfirmed[channel]
            confirmed = self._wanted.get(channel)
            if confirmed is not None and not confirmed.done():
                confirmed.set_result(None)

    async def _confirm_all(self, confirmed: Sequence[asyncio.Future[None]]) -> None:
        if confirmed:
            await asyncio.wait(confirmed)
        await self._catch_up()
        self.is_current = True
