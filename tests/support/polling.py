"""Wait for what nothing announces."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import Store

from .timeouts import TIMEOUT_S


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true. It may be asynchronous."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(0.01)


async def until_ready(store: Store) -> None:
    """Wait until a store is available."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            with contextlib.suppress(StoreUnavailableError):
                await store.check()
                return
            await asyncio.sleep(0.02)
