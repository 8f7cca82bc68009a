"""Drain a mounted server on SIGTERM and SIGINT, before its host handles them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.asynccontextmanager
async def drain_on_signal(drain: Callable[[], Coroutine[Any, Any, None]]) -> AsyncGenerator[None]:
    """Drain at the first signal, then call the previous handler. At a second, call it immediately.

    The host has to wait, because uvicorn closes WebSockets with another code within 0.1 s. Nothing
    is changed outside of the main thread, or if no handler is installed.
    """
    chain = _Chain(drain)
    if threading.current_thread() is threading.main_thread():
        chain.install()
    try:
        yield
    finally:
        chain.restore()
        await chain.until_drained()


class _Chain:
    def __init__(self, drain: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._previous: dict[int, Handler] = {}
        self._pending_signal: int | None = None  # the signal that is passed on after draining
        self._received = False
        self._draining: asyncio.Task[None] | None = None

    def install(self) -> None:
        for number in _SIGNALS:
            if callable(previous := signal.getsignal(number)):
                self._previous[number] = previous
                signal.signal(number, self._on_signal)

    def restore(self) -> None:
        for number, previous in self._previous.items():
            if (
                signal.getsignal(number) == self._on_signal
            ):  # else another handler was installed later
                signal.signal(number, previous)

    async def until_drained(self) -> None:
        if self._draining is not None:
            await asyncio.wait([self._draining])

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._received:
            self._received = True
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._start)
                self._pending_signal = number
                return
        self._pending_signal = None
        self._previous[number](number, frame)

    def _start(self) -> None:
        self._draining = self._loop.create_task(self._drain())
        self._draining.add_done_callback(self._forward)

    def _forward(self, _: asyncio.Task[None]) -> None:
        if self._pending_signal is not None:
            self._previous[self._pending_signal](self._pending_signal, None)
