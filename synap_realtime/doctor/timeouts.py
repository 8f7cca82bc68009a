"""Blocking calls with a time limit: a name server or a disk may never answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

TIMEOUT_S = 4.0
"""Each step over the network, and each look at a disk, may take so long."""


async def run_in_thread(function: Callable[[], T], timeout_s: float = TIMEOUT_S) -> T:
    """Call it in a thread of its own, which is left behind when the time is over.

    (The event loop's own threads are waited for at the end of the program.)

    Raises:
        TimeoutError: it did not answer in time.
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
        except Exception as error:  # noqa: BLE001 - raised again for who waits
            failure = error
        try:
            loop.call_soon_threadsafe(settle, result, failure)
        except RuntimeError:  # the loop has ended: nobody waits
            return

    threading.Thread(target=work, daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await answer
