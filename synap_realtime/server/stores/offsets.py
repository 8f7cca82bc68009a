"""Offsets that reveal nothing about other rooms. See PROTOCOL.md, "Terminology"."""

from __future__ import annotations

import time
from collections.abc import Callable


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
