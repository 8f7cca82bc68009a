"""Batch events, so that one run receives several of them (``batch_events``)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .events import Event
from .expressions import ExpressionError, evaluate, matches
from .registry import Batching, Function

logger = logging.getLogger(__name__)

Start = Callable[[Function, list[Event]], object]


@dataclass(slots=True)
class _Batch:
    function: Function
    timer: asyncio.TimerHandle | None = None
    events: list[Event] = field(default_factory=list)


class Batches:
    """The open batches: one for each function, or for each value of the function's key."""

    def __init__(self, start: Start) -> None:
        self._start = start
        self._open: dict[tuple[str, str], _Batch] = {}
        self._none_open = asyncio.Event()
        self._none_open.set()

    def __len__(self) -> int:
        return len(self._open)

    @property
    def waiting(self) -> int:
        """Number of events in open batches."""
        return sum(len(batch.events) for batch in self._open.values())

    def add(self, function: Function, batching: Batching, event: Event) -> None:
        """Add an event to a batch, which starts when it is full or its timeout has passed.

        An event that the function's condition excludes from batching starts a run immediately.
        """
        try:
            if batching.condition and not matches(batching.condition, event=event):
                self._start(function, [event])
                return
            key = evaluate(batching.key, event=event) if batching.key else None
        except ExpressionError as error:
            logger.error("starting function %s without a batch: its %s", function.id, error)
            self._start(function, [event])
            return
        place = (function.id, _name(key))
        if (batch := self._open.get(place)) is None:
            batch = self._open[place] = _Batch(function)
            loop = asyncio.get_running_loop()
            batch.timer = loop.call_later(batching.timeout_s, self._close, place)
            self._none_open.clear()
        batch.events.append(event)
        if len(batch.events) >= batching.max_size:
            self._close(place)

    async def all_started(self) -> None:
        """Wait until no event is in an open batch."""
        await self._none_open.wait()

    def clear(self) -> int:
        """Discard all open batches."""
        lost = self.waiting
        for place in tuple(self._open):
            self._take(place)
        return lost

    def _close(self, place: tuple[str, str]) -> None:
        batch = self._take(place)
        self._start(batch.function, batch.events)

    def _take(self, place: tuple[str, str]) -> _Batch:
        batch = self._open.pop(place)
        if batch.timer is not None:
            batch.timer.cancel()
        if not self._open:
            self._none_open.set()
        return batch


def _name(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(key, sort_keys=True, default=str)
