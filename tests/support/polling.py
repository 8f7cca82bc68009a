"""Wait for what nothing announces."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .timeouts import TIMEOUT_S


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition is true. It may be asynchronous."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(0.01)
