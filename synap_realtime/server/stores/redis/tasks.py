"""The background tasks of a store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from ...errors import StoreUnavailableError


class Tasks:
    """Tasks whose failures their callers receive, if there are any left."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine until it ends or :meth:`wait` has waited for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._has_ended)
        return task

    async def wait(self) -> None:
        """Wait for the tasks that run now."""
        for task in list(self._running):
            if not task.done():
                with contextlib.suppress(asyncio.CancelledError, StoreUnavailableError):
                    await task

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: no caller may be left
