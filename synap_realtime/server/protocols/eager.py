"""Run coroutines without a task for as long as they do not block."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any


def run_eagerly(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]
) -> asyncio.Task[None] | None:
    """Run a coroutine up to its first suspension, and the rest of it as a task.

    Python 3.12 has ``eager_start`` for this. Here there is no current task before the first
    suspension, so code that needs one (``asyncio.timeout``) must not run before it.

    Returns:
        The task; None if the coroutine has finished.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return loop.create_task(_finish(work, awaited))


async def _finish(work: Coroutine[Any, Any, None], awaited: Any) -> None:
    await _rest_of(work, awaited)


@coroutine
def _rest_of(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    while True:
        try:
            try:
                value = yield awaited
            except BaseException as error:  # noqa: BLE001 - passed into the coroutine
                awaited = work.throw(error)
            else:
                awaited = work.send(value)
        except StopIteration:
            return
