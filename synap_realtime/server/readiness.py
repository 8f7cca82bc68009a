"""Whether a publish would be kept now, for load balancers. See PROTOCOL.md, "HTTP"."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from .stores.base import Store, StoreUnavailableError

MAX_AGE_S = 1.0
"""How long an answer of the store is used, so that a flood of requests asks it once a second."""


class Readiness:
    """The store's last answer, renewed on demand."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._expires_at = 0.0
        self._asking: asyncio.Task[str | None] | None = None

    async def check(self) -> None:
        """Check that a publish would be kept. The answer is at most a second old.

        Raises:
            StoreUnavailableError: it would not.
        """
        if self._asking is None or (self._asking.done() and self._clock() >= self._expires_at):
            self._asking = asyncio.create_task(self._ask())
        # Shared by all requests that wait for it: a client that disconnects does not cancel it.
        problem = await asyncio.shield(self._asking)
        if problem is not None:
            raise StoreUnavailableError(problem)

    async def _ask(self) -> str | None:
        try:
            await self._store.check()
        except StoreUnavailableError as error:
            return str(error)
        finally:
            self._expires_at = self._clock() + MAX_AGE_S
        return None
