"""Memory that was freed goes back to the system.

The C library keeps what was freed between two things that are still there. After a flood of
requests it would keep most of what the flood took, for as long as the process lives.
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
from collections.abc import Callable

LOOK_EVERY_S = 0.5

CONNECTION_BYTES = 8 * 1024
"""What a connection takes, about: its parser, its transport, its place in the tables."""

MIN_BYTES = 8 * 1024 * 1024
"""So much has to be held at some time, and half of it free again, before it is worth the while."""


def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's; see malloc_trim(3)."""
    if sys.platform != "linux":
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim


class Trimmer:
    """Gives memory back when much less is held than a while ago.

    It takes the event loop some 3 ms for 35 MB. In a thread it would take no less: the C library
    locks the memory that it looks through.
    """

    def __init__(self, held: Callable[[], int], trim: Callable[[int], int] | None = None) -> None:
        """
        Args:
            held: how many bytes are held for peers now.
            trim: default: the C library's, where it has one.
        """
        self._held = held
        self._trim = trim or _malloc_trim()
        self._peak = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._trim is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOOK_EVERY_S, self._look)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        held = self._held()
        self._peak = max(self._peak, held)
        if self._trim is not None and self._peak >= MIN_BYTES and held < self._peak // 2:
            self._peak = held
            self._trim(0)
        self.start()
