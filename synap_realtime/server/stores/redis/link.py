"""The connection over which a node sends commands to one primary.

Calls that are made while the previous ones are under way are sent together: one round trip for all,
and one command for the units of a script. A call that the server refuses, because another one
serves its keys, goes back to the caller.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from ...errors import StoreUnavailableError
from ..base import LinkStats
from .connection import (
    REPLY_TIMEOUT_S,
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
from .publish_script import PUBLISH
from .requirements import Requirements
from .script import Script
from .scripts import ALL, CONFIRMED

logger = logging.getLogger(__name__)

MAX_PENDING_BYTES = 64 * 1024 * 1024
"""Calls are rejected while more than this waits to be sent."""

_BATCH_BYTES = 1024 * 1024  # about what is sent in one round trip
_MAX_UNITS = 100  # in one command: no other client is served while it runs
_MAX_COALESCING = 3  # iterations of the event loop

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
        unit_starts: with units of several sizes: the number of the first key of each.
        units: how many units it has; 0: its script has no units.
        group: calls of one group may share a command: in a cluster, those of one partition.
        is_asking: whether the server gets it although another one owns the slot that is being
            migrated.
    """

    script: Script
    keys: Sequence[bytes]
    arguments: Sequence[bytes | int | str]
    deadline: float
    result: asyncio.Future[Any]
    size: int
    unit_starts: Sequence[int]
    units: int
    group: int = 0
    is_asking: bool = False

    def keys_from(self, unit: int) -> Sequence[bytes]:
        """Return the keys of a unit and of those after it."""
        start = self.unit_starts[unit] if self.unit_starts else unit * self.script.unit_keys
        return self.keys[start:]

    def fail(self, problem: str) -> None:
        if not self.result.done():
            self.result.set_exception(StoreUnavailableError(problem))


class Link:
    """Calls scripts at one primary.

    Attributes:
        is_closed: whether it takes no more calls.
        problem: why there is no connection, or why publishes are refused; None: all is well.
        former_acknowledged_at: when the server before this one has acknowledged the last publish,
            by the clock of the event loop; None: never, or it was dealt with.
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
        clock_shift_us: Callable[[], int],
    ) -> None:
        """
        Args:
            name: what log messages call the server.
            requirements: checked at each new connection.
            on_connected: called for each new connection, before calls are sent over it.
            on_failed: called after the connection has failed. The calls wait for the next one.
            on_refused: called with the calls that the server has refused, with their replies, such
                as ``MOVED``.
            clock_shift_us: returns the shift of the clock that the scripts get.
        """
        self.is_closed = False
        self.problem: str | None = None
        self.former_acknowledged_at: float | None = None
        self._acknowledged_at: float | None = None
        self._name = name
        self._connect = connect
        self._requirements = requirements
        self._stats = stats
        self._on_connected = on_connected
        self._on_failed = on_failed
        self._on_refused = on_refused
        self._clock_shift_us = clock_shift_us
        self._connection: RedisConnection | None = None
        self._incarnation = b""  # which run of which server the connection leads to
        self._epoch_prefix = secrets.token_hex(6).encode()
        self._epoch_numbers = itertools.count()
        self._pending: deque[Call] = deque()
        self._pending_bytes = 0
        self._is_busy = False  # calls are under way, will be sent soon, or wait for a connection
        self._idle = asyncio.Event()
        self._failures = 0  # since the last reply
        self._connecting: asyncio.Task[None] | None = None

    def add(self, call: Call) -> None:
        """Send a call. It may run more than once: each script here can be repeated."""
        if self.is_closed:
            call.fail("the store is closed")
        elif self._pending_bytes > MAX_PENDING_BYTES:
            call.fail("too much waits to be sent to Redis")
        else:
            self._pending.append(call)
            self._pending_bytes += call.size
            if not self._is_busy:
                self._is_busy = True
                self._coalesce()

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
        while self._is_busy:
            self._idle.clear()
            await self._idle.wait()
        self._disconnect(RedisConnectionLostError("the store is closed"))

    async def _reconnect(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        try:
            await self._open()
        except (*UNREACHABLE, RedisReplyError) as error:
            self._fail(error)
        else:
            self._flush()

    def _fail(self, error: Exception) -> None:
        """Give the connection up, and open another one if calls wait for it."""
        self._disconnect(error)
        self._report(describe_problem(error))
        self._on_failed()
        self._expire()
        pause_s = backoff_s(self._failures)
        self._failures += 1
        self._flush(pause_s)

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
            if incarnation != self._incarnation:
                self._stats.failovers += 1
                self.former_acknowledged_at = self._acknowledged_at or self.former_acknowledged_at
                self._acknowledged_at = None
        self._incarnation = incarnation
        self._report(None)
        self._on_connected()

    def _coalesce(self, known: int = 0, left: int = _MAX_COALESCING) -> None:
        """Send what is pending as soon as an iteration of the event loop adds nothing to it.

        A busy node sends more together that way: a round trip costs both sides more than a
        publication does. One that is alone waits for one iteration.
        """
        count = len(self._pending)
        if left and known < count < _MAX_UNITS:
            loop = self._pending[0].result.get_loop()
            loop.call_soon(self._coalesce, count, left - 1)
        else:
            self._flush()

    def _flush(self, pause_s: float = 0.0) -> None:
        """Send what is pending, up to a size. Nothing else is under way.

        Args:
            pause_s: the pause before it connects, if it has to.
        """
        if not self._pending:
            self._is_busy = False
            self._idle.set()
            return
        if self._connection is None:
            self._connecting = asyncio.get_running_loop().create_task(
                self._reconnect(pause_s), name="synap-redis"
            )
            return
        batch: list[Call] = []
        size = 0
        while self._pending and size < _BATCH_BYTES:
            call = self._pending.popleft()
            self._pending_bytes -= call.size
            size += call.size
            batch.append(call)
        together = _share_commands(batch)
        commands: list[Command] = []
        for calls in together:
            if calls[0].is_asking:
                commands.append((b"ASKING",))
            commands.append(self._command(calls))
        confirm = self._requirements.confirm
        if confirm is not None:
            if any(call.script.sha in CONFIRMED for call in batch):
                commands.append(confirm)
            else:
                confirm = None
        on_replies = partial(self._on_replies, together, is_confirmed=confirm is not None)
        self._connection.request(commands, on_replies)

    def _on_replies(
        self,
        together: Sequence[Sequence[Call]],
        replies: list[Any] | Exception,
        *,
        is_confirmed: bool,
    ) -> None:
        """Finish calls, or send them again.

        Args:
            together: the calls of each command.
            replies: or why there are none.
            is_confirmed: whether the last reply is that of ``WAIT``.
        """
        if isinstance(replies, Exception):
            self._put_back([call for calls in together for call in calls])
            self._fail(replies)
            return
        unconfirmed = describe_unconfirmed(replies.pop()) if is_confirmed else None
        refusals: str | None = None
        has_written = has_published = False
        again: list[Call] = []
        refused: list[tuple[Call, RedisReplyError]] = []
        in_order = iter(replies)
        for calls in together:
            reply = next(in_order)
            if calls[0].is_asking:
                reply = next(in_order)
            script = calls[0].script
            confirms = script.sha in CONFIRMED
            has_written = has_written or confirms
            for call, keys, result in _results(calls, reply):
                if isinstance(result, RedisReplyError):
                    if is_elsewhere(result):
                        refused.append((call, result))
                    elif result.code == "NOSCRIPT" or is_temporary(result):
                        again.append(call)
                        refusal = result
                    else:
                        problem = describe_problem(result, keys)
                        if concerns_all_keys(result):
                            refusals = problem
                        call.fail(problem)
                elif unconfirmed is not None and confirms:
                    refusals = unconfirmed
                    call.fail(unconfirmed)
                else:
                    has_published = has_published or script is PUBLISH
                    if not call.result.done():
                        call.result.set_result(result)
        if has_published:
            self._acknowledged_at = asyncio.get_running_loop().time()
        if refusals is not None:
            self._report(refusals)
        elif self.problem is not None and has_written:
            self._report(None)
        if refused:
            self._on_refused(refused)
        if again:  # the next connection loads the scripts, perhaps at another server
            self._put_back(again)
            self._fail(refusal)
        else:
            self._failures = 0
            self._coalesce()

    def _command(self, calls: Sequence[Call]) -> Command:
        """Return the command of calls of one script."""
        script = calls[0].script
        # Each time another epoch: a call that is repeated at another server must not continue the
        # epoch that it has begun at the previous one.
        epoch = b"%b%x" % (self._epoch_prefix, next(self._epoch_numbers))
        common = (self._incarnation, epoch, self._clock_shift_us())
        if len(calls) == 1:
            keys, arguments = calls[0].keys, calls[0].arguments
        else:
            keys = list(chain.from_iterable([call.keys for call in calls]))
            arguments = list(chain.from_iterable([call.arguments for call in calls]))
        return (b"EVALSHA", script.sha, len(keys), *keys, *common, *arguments)

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


def _share_commands(batch: Sequence[Call]) -> list[list[Call]]:
    """Return the calls of each command. Those of a script with units share one."""
    together: list[list[Call]] = []
    open_commands: dict[tuple[bytes, int], tuple[list[Call], int]] = {}  # with their units
    for call in batch:
        units = call.units
        if not units or call.is_asking:
            together.append([call])
            continue
        place = (call.script.sha, call.group)
        calls, count = open_commands.get(place, ([], 0))
        if not calls or count + units > _MAX_UNITS:
            calls, count = [], 0
            together.append(calls)
        calls.append(call)
        open_commands[place] = (calls, count + units)
    return together


def _results(calls: Sequence[Call], reply: Any) -> Iterator[tuple[Call, Sequence[bytes], Any]]:
    """Yield each call of a command with its result, and with the keys that an error is about."""
    begin = 0
    for call in calls:
        units = call.units
        if not units or isinstance(reply, RedisReplyError):
            yield call, call.keys, reply
            continue
        replies = reply[begin : begin + units]
        begin += units
        for number, each in enumerate(replies):
            if isinstance(each, RedisReplyError):
                yield call, call.keys_from(number), each
                break
        else:
            yield call, call.keys, replies
