"""Check whether the server can accept publishes, for load balancers. See PROTOCOL.md, "HTTP"."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from ..stores.base import Store, StoreUnavailableError

MAX_AGE_S = 1.0
"""How long a result is cached, so that a flood of requests checks the store once a second."""


class Readiness:
    """The last result of the store's check, renewed on demand."""

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._expires_at = 0.0
        self._checking: asyncio.Task[str | None] | None = None

    async def check(self) -> None:
        """Check that the store can keep a publish. The result is at most a second old.

        Raises:
            StoreUnavailableError: it cannot.
        """
        if self._checking is None or (self._checking.done() and self._clock() >= self._expires_at):
            self._checking = asyncio.create_task(self._check_store())
        # Shared by all requests that wait for it: a client that disconnects does not cancel it.
        problem = await asyncio.shield(self._checking)
        if problem is not None:
            raise StoreUnavailableError(problem)

    async def _check_store(self) -> str | None:
        try:
            await self._store.check()
        except StoreUnavailableError as error:
            return str(error)
        finally:
            self._expires_at = self._clock() + MAX_AGE_S
        return None
