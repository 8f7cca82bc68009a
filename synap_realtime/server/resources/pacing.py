"""Share the event loop fairly between connections, and run coroutines without a task if possible.

Without :class:`Pacer`, all data of one loop iteration is handled before any socket is polled again:
50 WebSockets with 900 ping frames each would delay a publisher by 60 ms.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from time import monotonic
from types import coroutine
from typing import Any

SHARE_S = 0.002
"""The time of each loop iteration for work that can wait. The rest is done in the next iteration,
after the sockets have been polled."""

TASK_S = 0.00025
"""The charge for starting a task, which runs in the next iteration and is not measured."""

MAX_DEFERRED_BYTES = 128 * 1024 * 1024
"""The maximum of received data that waits for its share. Beyond it, data is handled on arrival, so
that pacing itself cannot exhaust memory. By default, the budget of ``--max-request-bytes`` aborts
connections long before: 65 connections that send 256 KiB each must not delay all others."""


class Pacer:
    """Divide the loop's time between connections that send much.

    Publishes on connections of a known publisher do not wait here, nor do short WebSocket messages.
    """

    def __init__(self, share_s: float = SHARE_S, *, clock: Callable[[], float] = monotonic) -> None:
        """
        Args:
            clock: returns monotonic seconds.
        """
        self._share_s = share_s
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[Callable[[], None], int]] = deque()
        self._waiting_bytes = 0
        self._deadline = 0.0
        self._has_begun = False  # whether the share of an iteration is being counted
        self._is_running = False  # whether waiting work is being run

    def is_of_running_loop(self) -> bool:
        """Return whether it divides the time of the loop that runs now."""
        return self._loop is asyncio.get_running_loop()

    def has_time(self) -> bool:
        """Return whether more work that can wait may be done in this loop iteration.

        While other work waits, new work has to wait behind it.
        """
        if not self._has_begun:
            self._begin()
            return True
        if not self._is_running and self._waiting:
            return self._waiting_bytes > MAX_DEFERRED_BYTES
        return self._clock() < self._deadline

    def charge(self, cost_s: float) -> None:
        """Count work that is done later as done in this iteration."""
        self._deadline -= cost_s

    def add(self, work: Callable[[], None], size: int = 0) -> None:
        """Run work in a later loop iteration, after all work that already waits.

        Args:
            work: takes a short time, and adds itself again if there is more to do.
            size: how many bytes it holds.
        """
        self._waiting.append((work, size))
        self._waiting_bytes += size
        if not self._has_begun:
            self._begin()

    async def acquire(self, cost_s: float) -> None:
        """Wait until there is time for work of about this cost, and charge it."""
        if not self.has_time():
            granted = self._loop.create_future()
            self.add(lambda: None if granted.done() else granted.set_result(None))
            await granted
        self.charge(cost_s)

    def _begin(self) -> None:
        self._has_begun = True
        self._deadline = self._clock() + self._share_s
        self._loop.call_soon(self._next)

    def _next(self) -> None:
        self._has_begun = False
        if not self._waiting:
            return
        self._begin()
        self._is_running = True
        try:
            while self._waiting:
                work, size = self._waiting.popleft()
                self._waiting_bytes -= size
                work()
                if self._clock() >= self._deadline:
                    break
        finally:
            self._is_running = False


def run_eagerly(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]
) -> asyncio.Task[None] | None:
    """Run a coroutine up to its first suspension, and the rest of it as a task.

    Python 3.12 has ``eager_start`` for this. Unlike there, no task is current before the first
    suspension, so code that needs one (``asyncio.timeout``) must not run before it.

    Returns:
        The task; None if the coroutine has finished.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return loop.create_task(_finish(work, awaited))


async def _finish(work: Coroutine[Any, Any, None], awaited: Any) -> None:
    await _rest_of(work, awaited)


@coroutine
def _rest_of(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    while True:
        try:
            try:
                value = yield awaited
            except BaseException as error:  # noqa: BLE001 - passed into the coroutine
                awaited = work.throw(error)
            else:
                awaited = work.send(value)
        except StopIteration:
            return
