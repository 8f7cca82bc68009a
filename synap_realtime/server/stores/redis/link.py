"""The connection over which a node sends commands to one primary.

Calls that are made while the previous ones are under way are sent together: one round trip for all.
A call that the server refuses, because another one serves its keys, goes back to the caller.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import StoreUnavailableError
from ..base import LinkStats
from .connection import (
    Command,
    RedisConnection,
    RedisConnectionLostError,
    RedisReplyError,
    backoff_s,
)
from .durability import describe_unconfirmed
from .errors import (
    UNREACHABLE,
    concerns_all_keys,
    describe_problem,
    is_elsewhere,
    is_temporary,
)
from .requirements import Requirements
from .scripts import ALL, CONFIRMED, Script

logger = logging.getLogger(__name__)

REPLY_TIMEOUT_S = 2.0
"""A server that does not reply for this time is considered dead."""

MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Calls are rejected while more than this waits to be sent."""

_BATCH_BYTES = 1024 * 1024  # about what is sent in one round trip

Connect = Callable[[], Awaitable[RedisConnection]]
"""Opens an authenticated connection to the primary."""


@dataclass(slots=True, eq=False)
class Call:
    """A call of a script that is under way.

    Attributes:
        keys: the keys that the script uses.
        arguments: what follows the incarnation of the server and the epoch.
        deadline: when it fails, by the clock of the event loop.
        size: about its length, in bytes.
        is_asking: whether the server gets it although another one owns the slot that is being
            migrated.
    """

    script: Script
    keys: Sequence[bytes]
    arguments: Sequence[bytes | int | str]
    deadline: float
    result: asyncio.Future[Any]
    size: int
    is_asking: bool = False

    def fail(self, problem: str) -> None:
        if not self.result.done():
            self.result.set_exception(StoreUnavailableError(problem))


class Link:
    """Calls scripts at one primary.

    Attributes:
        is_closed: whether it takes no more calls.
        problem: why there is no connection, or why publishes are refused; None: all is well.
    """

    def __init__(
        self,
        name: str,
        connect: Connect,
        requirements: Requirements,
        *,
        stats: LinkStats,
        on_connected: Callable[[], None],
        on_failed: Callable[[], None],
        on_refused: Callable[[Sequence[tuple[Call, RedisReplyError]]], None],
    ) -> None:
        """
        Args:
            name: what log messages call the server.
            requirements: checked at each new connection.
            on_connected: called for each new connection, before calls are sent over it.
            on_failed: called after the connection has failed. The calls wait for the next one.
            on_refused: called with the calls that the server has refused, with their replies, such
                as ``MOVED``.
        """
        self.is_closed = False
        self.problem: str | None = None
        self._name = name
        self._connect = connect
        self._requirements = requirements
        self._stats = stats
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._on_refused = on_refused
        self._connection: RedisConnection | None = None
        self._incarnation = b""  # which run of which server the connection leads to
        self._epoch_prefix = secrets.token_hex(6).encode()
        self._epoch_numbers = itertools.count()
        self._pending: deque[Call] = deque()
        self._pending_bytes = 0
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def add(self, call: Call) -> None:
        """Send a call. It may run more than once: each script here can be repeated."""
        if self.is_closed:
            call.fail("the store is closed")
        elif self._pending_bytes > MAX_PENDING_BYTES:
            call.fail("too much waits to be sent to Redis")
        else:
            self._pending.append(call)
            self._pending_bytes += call.size
            self._changed.set()
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run(), name="synap-redis")

    def take(self, wanted: Callable[[Call], bool]) -> list[Call]:
        """Remove the calls that wait to be sent and for which a condition holds, in order."""
        taken = [call for call in self._pending if wanted(call)]
        if taken:
            self._pending = deque(call for call in self._pending if not wanted(call))
            self._pending_bytes -= sum(call.size for call in taken)
        return taken

    def restart(self) -> None:
        """Replace the connection: another server may have taken over."""
        if self._connection is not None:
            self._connection.abort(RedisConnectionLostError("it may lead to a replaced server"))

    async def close(self) -> None:
        """Finish the pending calls, then disconnect."""
        self.is_closed = True
        self._changed.set()
        if self._task is not None:
            await self._task
        self._disconnect(RedisConnectionLostError("the store is closed"))

    async def _run(self) -> None:
        failures = 0
        while not self.is_closed or self._pending:
            if not self._pending:
                self._changed.clear()
                await self._changed.wait()
                continue
            try:
                if self._connection is None:
                    await self._open()
                if self._pending:  # they may have been taken in between
                    await self._flush()
                failures = 0
            except (*UNREACHABLE, RedisReplyError) as error:
                self._disconnect(error)
                self._report(describe_problem(error))
                self._on_failed()
                self._expire()
                if self._pending:
                    await asyncio.sleep(backoff_s(failures))
                failures += 1

    async def _open(self) -> None:
        connection = self._connection = await self._connect()
        async with asyncio.timeout(REPLY_TIMEOUT_S):
            first = self._requirements.commands
            replies = await connection.execute(
                [*first, *[("SCRIPT", "LOAD", each.source) for each in ALL]]
            )
        info = self._requirements.check(replies[: len(first)])
        for reply in replies[len(first) :]:
            if isinstance(reply, RedisReplyError):
                raise reply
        incarnation = info["run_id"].encode()
        if self._incarnation:
            self._stats.call_reconnects += 1
            self._stats.failovers += incarnation != self._incarnation
        self._incarnation = incarnation
        self._report(None)
        self._on_connected()

    async def _flush(self) -> None:
        """Send what is pending, up to a size, and read the replies."""
        connection = self._connection
        assert connection is not None  # noqa: S101 - the caller has connected
        batch: list[Call] = []
        size = 0
        while self._pending and size < _BATCH_BYTES:
            call = self._pending.popleft()
            self._pending_bytes -= call.size
            size += call.size
            batch.append(call)
        commands: list[Command] = []
        for call in batch:
            if call.is_asking:
                commands.append((b"ASKING",))
            commands.append(self._command(call))
        confirm = self._requirements.confirm
        if confirm is not None:
            if any(call.script.sha in CONFIRMED for call in batch):
                commands.append(confirm)
            else:
                confirm = None
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                replies = await connection.execute(commands)
        except BaseException:
            self._put_back(batch)
            raise
        unconfirmed = None
        if confirm is not None:
            unconfirmed = describe_unconfirmed(replies.pop())
        refusals: str | None = None
        in_order = iter(replies)
        again: list[Call] = []
        refused: list[tuple[Call, RedisReplyError]] = []
        for call in batch:
            reply = next(in_order)
            if call.is_asking:
                reply = next(in_order)
            if isinstance(reply, RedisReplyError):
                if is_elsewhere(reply):
                    refused.append((call, reply))
                elif reply.code == "NOSCRIPT" or is_temporary(reply):
                    again.append(call)
                    refusal = reply
                else:
                    problem = describe_problem(reply, call.keys)
                    if concerns_all_keys(reply):
                        refusals = problem
                    call.fail(problem)
            elif unconfirmed is not None and call.script.sha in CONFIRMED:
                refusals = unconfirmed
                call.fail(unconfirmed)
            elif not call.result.done():
                call.result.set_result(reply)
        if refusals is not None:
            self._report(refusals)
        elif self.problem is not None and any(call.script.sha in CONFIRMED for call in batch):
            self._report(None)
        if refused:
            self._on_refused(refused)
        if again:  # the next connection loads the scripts, perhaps at another server
            self._put_back(again)
            raise refusal

    def _command(self, call: Call) -> Command:
        script, keys = call.script, call.keys
        # Each time another epoch: a call that is repeated at another server must not continue the
        # epoch that it has begun at the previous one.
        epoch = b"%b%x" % (self._epoch_prefix, next(self._epoch_numbers))
        return (b"EVALSHA", script.sha, len(keys), *keys, self._incarnation, epoch, *call.arguments)

    def _put_back(self, calls: Sequence[Call]) -> None:
        self._pending.extendleft(reversed(calls))
        self._pending_bytes += sum(call.size for call in calls)

    def _expire(self) -> None:
        """Fail the calls whose time is over, and all of a closed link."""
        now = asyncio.get_running_loop().time()
        kept: deque[Call] = deque()
        for call in self._pending:
            if call.deadline > now and not self.is_closed:
                kept.append(call)
                continue
            self._pending_bytes -= call.size
            call.fail(self.problem or "Redis is away")
        self._pending = kept

    def _disconnect(self, error: Exception) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort(error)

    def _report(self, problem: str | None) -> None:
        """Log once when Redis becomes unavailable and once when it is available again."""
        if problem is not None and self.problem is None:
            logger.error(
                "%s is unavailable: %s; publishes answer 503 until it is back", self._name, problem
            )
        elif problem is None and self.problem is not None:
            logger.warning("%s is available again", self._name)
        self.problem = problem
