"""The clock by which stores judge age: time that passed while this process ran."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MAX_STEP_S = 60.0
"""The most that counts between two readings. A running server reads its clock every second: a
longer step means that the clock was set, or that the machine slept."""


class RunningClock:
    """Seconds of running time: it never goes back, and no jump of another clock moves it far.

    The wall clock may be set at any moment, by an operator, by NTP or by a broken battery. If age
    were judged by it, one wrong reading would delete every room's log for good. Time in which the
    process did not run, or the machine slept, does not count: logs are kept for longer then.

    Any thread may call it.
    """

    def __init__(self, source: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            source: seconds, from any origin. It may jump.
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
