"""Schedule many deadlines with one timer.

A timer for each connection would take a tenth of the connection's memory.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import Protocol

_MAX_DELAY_S = 86_400.0  # event loops reject timers years ahead; the queue checks again after a day


class TimerTarget(Protocol):
    """An object whose :meth:`on_timer` is called once for each deadline that was scheduled."""

    is_over: bool
    """Whether the target is finished. Its deadlines are then ignored."""

    def on_timer(self) -> None: ...


class TimerQueue:
    """The deadlines of one server."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, TimerTarget]] = []
        self._order = itertools.count()  # breaks ties of equal times
        self._cancelled = 0
        self._timer: asyncio.TimerHandle | None = None

    def schedule(self, delay_s: float, target: TimerTarget) -> None:
        """Call ``target.on_timer()`` after a delay, in seconds."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, delay_s)
        is_next = not self._heap or when < self._heap[0][0]
        heapq.heappush(self._heap, (when, next(self._order), target))
        if is_next:
            self._wait(loop)

    def discard(self) -> None:
        """Note that a target is finished. Remove the finished targets once they are half of all."""
        self._cancelled += 1
        if self._cancelled > len(self._heap) // 2:
            self._cancelled = 0
            self._heap = [entry for entry in self._heap if not entry[2].is_over]
            heapq.heapify(self._heap)

    def close(self) -> None:
        """Cancel the timer, because the server has stopped."""
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = min(self._heap[0][0] - loop.time(), _MAX_DELAY_S)
        self._timer = loop.call_later(max(0.0, delay_s), self._check)

    def _check(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for target in due:
            if not target.is_over:
                target.on_timer()
        if self._heap:
            self._wait(loop)
