"""The clocks of the stores: running time, by which entries age, and offsets.

Offsets reveal nothing about other rooms: see PROTOCOL.md, "Terminology".
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MAX_STEP_S = 60.0
"""The longest step between two readings. A running server reads its clock every second, so a longer
step means that the clock was set or that the machine was suspended."""


class RunningClock:
    """Seconds of running time. It never goes back and does not follow jumps of its source.

    The wall clock may be set at any moment, by an operator, by NTP or by a failing battery. If
    retention depended on it, one wrong reading would delete every log. Time in which the process
    was stopped or the machine suspended does not count: logs are then kept for longer.

    The clock is thread-safe.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            source: seconds from any origin; may jump.
        """
        self._source = source
        self._origin = source()  # moves with each jump of the source
        self._last = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        now = self._source() - self._origin
        if 0.0 <= now - self._last <= MAX_STEP_S:
            self._last = now
            return now
        return self._after_jump()

    def _after_jump(self) -> float:
        with self._lock:
            raw = self._source() - self._origin
            now = self._last + min(max(raw - self._last, 0.0), MAX_STEP_S)
            self._origin += raw - now
            self._last = now
            return now


class OffsetClock:
    """Issues offsets from the time: microseconds since 1970.

    A store numbers the notifications of all rooms in one sequence. If it counted, two cursors of a
    room would reveal how much was published to the other rooms in between. The wall clock is read
    once, so later jumps of it do not affect offsets.
    """

    __slots__ = ("_base", "_clock")

    def __init__(self, last: int = 0, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """
        Args:
            last: the highest offset that was ever issued. This clock issues higher ones.
            clock_ns: monotonic nanoseconds.
        """
        self._clock = clock_ns
        self._base = max(last + 1, time.time_ns() // 1000) - clock_ns() // 1000

    def now(self) -> int:
        """Return the offset of the present time."""
        return self._base + self._clock() // 1000

    def next(self, last: int) -> int:
        """Return the offset of a new notification: higher than ``last``, and never before now."""
        now = self._base + self._clock() // 1000
        return now if now > last else last + 1
