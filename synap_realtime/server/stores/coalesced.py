"""Coalesce equal reads of a store: one read of a log serves all who come back to its room."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Coalesced(Generic[P, T]):
    """Makes one call for all that ask for the same in one iteration of the event loop.

    The call begins after that iteration, so that its result contains everything that was in the
    store when any of them asked. For the same reason a call that has begun is not shared.
    """

    def __init__(self, call: Callable[P, Coroutine[Any, Any, T]]) -> None:
        """
        Args:
            call: takes hashable arguments.
        """
        self._call = call
        self._waiting: dict[tuple[object, ...], asyncio.Task[T]] = {}

    async def __call__(self, *arguments: P.args, **named: P.kwargs) -> T:
        """Return the result of the call, or raise what it raises."""
        key = (arguments, *named.items())
        shared = self._waiting.get(key)
        if shared is None:
            call = self._begin(key, *arguments, **named)
            shared = self._waiting[key] = asyncio.get_running_loop().create_task(call)
        # One that is cancelled while it waits does not cancel the call of the others.
        return await asyncio.shield(shared)

    async def _begin(self, key: tuple[object, ...], *arguments: P.args, **named: P.kwargs) -> T:
        del self._waiting[key]
        return await self._call(*arguments, **named)
