"""Coroutines that mostly have nothing to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from types import coroutine
from typing import Any


def run_eagerly(
    loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]
) -> asyncio.Task[None] | None:
    """Run it at once, up to where it has to wait for something; the rest is a task.

    Python 3.12 has ``eager_start`` for it. Here there is no current task before the first wait, so
    what asks for one (``asyncio.timeout``) must come later, or be run as a task from the start.

    Returns:
        The task; None if all is done.
    """
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    return loop.create_task(_finish(work, waits_for))


async def _finish(work: Coroutine[Any, Any, None], waits_for: Any) -> None:
    await _rest_of(work, waits_for)


@coroutine
def _rest_of(work: Coroutine[Any, Any, None], waits_for: Any) -> Generator[Any, Any, None]:
    while True:
        try:
            try:
                value = yield waits_for
            except BaseException as error:  # noqa: BLE001 - it is for the work
                waits_for = work.throw(error)
            else:
                waits_for = work.send(value)
        except StopIteration:
            return
