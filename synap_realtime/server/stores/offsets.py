"""Offsets of a log that say nothing about other rooms. See PROTOCOL.md, "Terminology"."""

from __future__ import annotations

import time
from collections.abc import Callable


class OffsetClock:
    """The offset of this moment: microseconds since 1970.

    A store numbers the notifications of all rooms in one sequence. If it counted them, two cursors
    of any room would say how much was published in all others between them, so it takes the time
    instead. The wall clock is read once; from then on a jump of it moves no offset.
    """

    __slots__ = ("_base", "_clock")

    def __init__(self, last: int = 0, *, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        """
        Args:
            last: the highest offset that was ever issued: all of this clock's come after it.
            clock_ns: monotonic nanoseconds.
        """
        self._clock = clock_ns
        self._base = max(last + 1, time.time_ns() // 1000) - clock_ns() // 1000

    def now(self) -> int:
        return self._base + self._clock() // 1000

    def next(self, last: int) -> int:
        """An offset for a notification: after the last one, even in the same microsecond."""
        now = self._base + self._clock() // 1000
        return now if now > last else last + 1
