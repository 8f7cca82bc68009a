"""Return freed memory to the system.

The C library keeps a freed block between two blocks that are in use. After a flood of requests it
would keep most of that memory until the process exits.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Protocol

CHECK_INTERVAL_S = 0.5

CONNECTION_BYTES = 8 * 1024
"""Estimate of what an open connection takes: its parser, its transport, its entries in tables."""

MIN_BYTES = 8 * 1024 * 1024
"""Growth of the process that makes a trim worth while; of a process that is larger than 64 MiB, an
eighth of it, so that one that grows for other reasons is seldom trimmed in vain."""

MIN_HELD_BYTES = 4 * 1024 * 1024
"""Bytes held for peers that make a trim worth while when half of them are free again."""

MAX_SHARE = 0.01
"""Trims take at most this share of the event loop's time."""

ATTEMPTS = 5
"""A process that stays as large after so many trims, over 15 s, needs its memory."""


class Memory(Protocol):
    """The memory of this process."""

    def resident(self) -> int | None:
        """Return how many bytes are in physical memory; None if that is unknown now."""
        ...

    def trim(self) -> None:
        """Return freed pages to the system."""
        ...


class GlibcMemory:
    """Memory that glibc's malloc manages."""

    def __init__(self, malloc_trim: Callable[[int], int]) -> None:
        self._malloc_trim = malloc_trim
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")

    def resident(self) -> int | None:
        """See proc_pid_statm(5)."""
        try:
            fields = Path("/proc/self/statm").read_bytes().split()
        except OSError:  # out of descriptors, or there is no /proc
            return None
        return int(fields[1]) * self._page_bytes

    def trim(self) -> None:
        """See malloc_trim(3)."""
        self._malloc_trim(0)


def _memory() -> Memory | None:
    if sys.platform != "linux":
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return None if trim is None else GlibcMemory(trim)


class Trimmer:
    """Trims when the process has grown by more than what peers hold, or peers hold much less.

    Neither alone is enough. Peers may hold many times as much between two checks as at either. And
    what is held for them is an estimate, so that a process may seem to have grown in the middle of
    a flood, when there is little to trim. It is then trimmed again, after increasing pauses, and as
    soon as peers hold much less.

    A trim blocks the event loop for about 3 ms per 35 MB. A thread would not help, because the C
    library locks the memory that it scans.
    """

    def __init__(
        self,
        held: Callable[[], int],
        memory: Memory | None = None,
        *,
        is_alone: bool = True,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """
        Args:
            held: returns how many bytes are held for peers now.
            memory: default: the C library's; nothing is trimmed if it has no such function.
            is_alone: False if the process does other work, too, and may grow because of that. It is
                then trimmed only after much was held for peers.
            clock: returns monotonic seconds.
        """
        self._held = held
        self._memory = memory or _memory()
        self._clock = clock
        self._is_alone = is_alone
        self._base: int | None = None  # least size, without what is held
        self._attempts = 0  # to get back there
        self._peak = 0  # of what is held, since the last trim
        self._pause_s = 0.0  # until the next check
        self._rest_s = 0.0  # without any trim
        self._waited_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Check now, and then periodically until :meth:`close`.

        A flood may come before the first periodic check, and would be taken for the usual size.
        """
        if self._memory is not None:
            self.check()
            self._wait()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self.on_timer)

    def on_timer(self) -> None:
        """Check, if a pause is over or peers hold much less than before it."""
        self._waited_s += CHECK_INTERVAL_S
        may_trim = self._waited_s >= self._rest_s
        if self._waited_s >= self._pause_s or (may_trim and self._has_ended(self._held())):
            self._pause_s = self.check()
            self._waited_s = 0.0
        self._wait()

    def check(self) -> float:
        """Trim if that is worthwhile. Return the pause until the next check, in seconds."""
        memory = self._memory
        resident = None if memory is None else memory.resident()
        if memory is None or resident is None:
            return CHECK_INTERVAL_S
        held = self._held()
        has_ended = self._has_ended(held)
        has_grown = self._has_grown(resident, held) and (self._is_alone or self._attempts > 0)
        if not (has_grown or has_ended):
            self._attempts = 0
            return CHECK_INTERVAL_S
        if has_ended:
            self._attempts = 0  # those in the middle of the flood do not count
        began = self._clock()
        memory.trim()
        self._rest_s = (self._clock() - began) / MAX_SHARE
        self._peak = held
        resident = memory.resident() or resident
        self._attempts = self._attempts + 1 if self._has_grown(resident, held) else 0
        pause_s: float = CHECK_INTERVAL_S * 2**self._attempts
        if self._attempts == ATTEMPTS:
            self._base, self._attempts = resident - held, 0
        return max(pause_s, self._rest_s)

    def _has_ended(self, held: int) -> bool:
        self._peak = max(self._peak, held)
        return self._peak >= MIN_HELD_BYTES and held < self._peak // 2

    def _has_grown(self, resident: int, held: int) -> bool:
        size = resident - held
        if self._base is None or size < self._base:
            self._base = size
        return size - self._base >= max(MIN_BYTES, resident // 8)
