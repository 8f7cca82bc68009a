"""Many moments, one timer: a timer for each connection would be a tenth of its memory."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from typing import Protocol

_MAX_DELAY_S = 86_400.0  # a timer may not be set for years ahead; a day on, it looks again


class TimerTarget(Protocol):
    """Somebody who is to be woken, once for each alarm that was set."""

    is_over: bool
    """It is not to be woken any more."""

    def on_timer(self) -> None: ...


class TimerQueue:
    """Those of one server."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, TimerTarget]] = []
        self._order = itertools.count()  # among those of one moment
        self._cancelled = 0
        self._timer: asyncio.TimerHandle | None = None

    def schedule(self, delay_s: float, sleeper: TimerTarget) -> None:
        """Ring it so much later."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, delay_s)
        is_next = not self._heap or when < self._heap[0][0]
        heapq.heappush(self._heap, (when, next(self._order), sleeper))
        if is_next:
            self._wait(loop)

    def discard(self) -> None:
        """A sleeper is over: when half of them are, they are forgotten."""
        self._cancelled += 1
        if self._cancelled > len(self._heap) // 2:
            self._cancelled = 0
            self._heap = [alarm for alarm in self._heap if not alarm[2].is_over]
            heapq.heapify(self._heap)

    def close(self) -> None:
        """The server has stopped."""
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
        for sleeper in due:
            if not sleeper.is_over:
                sleeper.on_timer()
        if self._heap:
            self._wait(loop)
