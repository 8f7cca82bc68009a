"""Steps that wait for an event, and runs that an event cancels."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .events import Event
from .expressions import ExpressionError, matches

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Waiter:
    """Waits for an event of one name for which the condition holds (``event`` is the run's)."""

    run_event: Event
    name: str
    expression: str | None
    found: Callable[[Event], object]
    failed: Callable[[ExpressionError], object]

    def offer(self, event: Event) -> None:
        if event["name"] != self.name:
            return
        variables = {"event": self.run_event, "async": event}
        try:
            if self.expression is None or matches(self.expression, **variables):
                self.found(event)
        except ExpressionError as error:
            self.failed(error)


class Waiters:
    """All waiters of this process."""

    def __init__(self) -> None:
        self._waiting: set[Waiter] = set()

    async def wait(
        self, run_event: Event, name: str, expression: str | None, timeout_s: float
    ) -> Event | None:
        """Return the first matching event; None after the timeout.

        Raises:
            ExpressionError: the condition cannot be evaluated.
        """
        found: asyncio.Future[Event] = asyncio.get_running_loop().create_future()

        def take(event: Event) -> None:
            if not found.done():
                found.set_result(event)

        def fail(error: ExpressionError) -> None:
            if not found.done():
                found.set_exception(error)

        with self.waiting(Waiter(run_event, name, expression, take, fail)):
            try:
                async with asyncio.timeout(timeout_s):
                    return await found
            except TimeoutError:
                return None

    @contextmanager
    def waiting(self, waiter: Waiter) -> Iterator[None]:
        self._waiting.add(waiter)
        try:
            yield
        finally:
            self._waiting.discard(waiter)

    def offer(self, event: Event) -> None:
        for waiter in tuple(self._waiting):
            waiter.offer(event)
