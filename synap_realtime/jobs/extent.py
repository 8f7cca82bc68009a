"""Where a reporter is valid: the dynamic extent of one attempt, in one process."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, SupportsFloat


@dataclass(frozen=True, slots=True)
class Ticket:
    """How another process reports to an extent, through the process that owns it.

    Attributes:
        address: the owner's relay: a path (Unix socket), or a host and a port.
        key: a secret that names the extent and authorizes reports to it.
    """

    address: str | tuple[str, int]
    key: str


class Sink(Protocol):
    """Where progress and text of an extent go."""

    def progress(
        self,
        fraction: SupportsFloat | None,
        label: str | None = None,
        *,
        stall_after_s: SupportsFloat | timedelta | None = None,
        is_replay: bool | None = None,
    ) -> None: ...

    def delta(self, text: str, *, is_replay: bool | None = None) -> None: ...


class Extent:
    """One attempt's code while it runs. Closed for good when that code has returned or raised.

    Contexts are copied freely: by tasks, by threads, by a fork. The presence of an extent in a
    context therefore proves nothing: check :attr:`is_live`.

    Attributes:
        ticket: how other processes reach it; None until it is needed.
    """

    def __init__(
        self,
        sink: Sink | None,
        *,
        is_replay: bool | None = None,
        within: Extent | None = None,
    ) -> None:
        """Open an extent.

        Args:
            sink: None for code that has no reporter, whatever it was called from.
            is_replay: False if the code inside is known not to be a replay; None if the sink knows.
            within: the enclosing extent, with which it ends.
        """
        self.sink = sink
        self.is_replay = is_replay
        self.ticket: Ticket | None = None
        self.pid = os.getpid()
        self._within = within
        self._is_open = True
        self._on_close: list[Callable[[], object]] = []

    @property
    def is_live(self) -> bool:
        """Whether its code still runs, and in this process."""
        if not self._is_open or self.pid != os.getpid():
            return False
        return self._within is None or self._within.is_live

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the extent closes, or now if it has closed."""
        if self._within is not None:
            self._within.on_close(callback)
            return
        self._on_close.append(callback)
        if not self._is_open:
            callback()

    def close(self) -> None:
        """End it, for all copies in this process. Idempotent."""
        self._is_open = False
        for callback in self._on_close:
            callback()


current_extent: ContextVar[Extent | None] = ContextVar("synap_realtime_extent", default=None)

open_extents: set[Extent] = set()
"""Those of this process whose code runs; in a forked child, those of its parent at the fork."""

shared_extents: weakref.WeakSet[Extent] = weakref.WeakSet()
"""Those of functions that :func:`synap_realtime.bind_reporter` has bound."""


@contextmanager
def extent_of(sink: Sink | None) -> Iterator[Extent]:
    """Make ``sink`` the current reporter for the code inside, and for nothing else.

    Args:
        sink: None for code that has no reporter, whatever it was called from.
    """
    extent = Extent(sink)
    if sink is not None:
        open_extents.add(extent)
    try:
        with entered(extent):
            yield extent
    finally:
        extent.close()
        open_extents.discard(extent)


@contextmanager
def entered(extent: Extent | None) -> Iterator[None]:
    """Make an extent the current one of this context, without owning it."""
    token = current_extent.set(extent)
    try:
        yield
    finally:
        # ValueError: left in another context than entered, as an async generator may be. The extent
        # that stays in the first context is no longer live.
        with suppress(ValueError):
            current_extent.reset(token)
