"""Clients that say nothing any more. See PROTOCOL.md, "Subscribing"."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol


class Talker(Protocol):
    """A connection whose client should say something now and then."""

    def silent(self) -> None:
        """It has not, for too long."""


class Silence:
    """When each was heard last: one timer for all."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._heard: OrderedDict[Talker, float] = OrderedDict()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def heard(self, talker: Talker) -> None:
        """Something has come from it, or it has just come itself."""
        self._heard[talker] = self._loop.time()
        self._heard.move_to_end(talker)
        if self._timer is None:
            self._timer = self._loop.call_later(self._limit_s, self._look)

    def gone(self, talker: Talker) -> None:
        self._heard.pop(talker, None)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        while self._heard:
            talker, heard_at = next(iter(self._heard.items()))
            left_s = heard_at + self._limit_s - self._loop.time()
            if left_s > 0:
                self._timer = self._loop.call_later(left_s, self._look)
                return
            del self._heard[talker]
            talker.silent()
