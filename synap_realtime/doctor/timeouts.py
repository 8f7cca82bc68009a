"""Blocking calls with a timeout: a name server or a disk may never respond."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_S = 4.0
"""Timeout of each network step and each disk access."""


async def run_in_thread(function: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
    """Call a function in a new thread, which is abandoned after the timeout.

    (The threads of the event loop's executor are joined at exit.)

    Raises:
        TimeoutError: it did not return in time.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)  # type: ignore[arg-type]  # None only where T has it

    def work() -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - re-raised to the caller
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:  # the loop has ended: no caller waits
            return

    threading.Thread(target=work, daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await answer
