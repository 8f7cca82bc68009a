"""The scope in which a reporter is valid: the dynamic extent of one attempt, in one process."""

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
    """The address and secret with which another process reports to an extent of this one.

    Attributes:
        address: the owner's relay: a path (Unix socket), or a host and a port.
        key: a secret that identifies the extent and authorizes reports to it.
    """

    address: str | tuple[str, int]
    key: str


class ReportSink(Protocol):
    """The destination of an extent's progress and deltas."""

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
    """The scope of one attempt's code. It closes permanently when that code returns or raises.

    Contexts are copied freely: by tasks, by threads, by a fork. The presence of an extent in a
    context therefore proves nothing: check :attr:`is_live`.

    Attributes:
        ticket: how other processes reach it; None until one is needed.
    """

    def __init__(
        self,
        sink: ReportSink | None,
        *,
        is_replay: bool | None = None,
        within: Extent | None = None,
    ) -> None:
        """Open an extent.

        Args:
            sink: None for code without a reporter, regardless of its caller.
            is_replay: False if the code inside is known not to be a replay; None if the sink
                decides.
            within: the enclosing extent; this extent closes with it.
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
        """Return whether the extent is open and belongs to this process."""
        if not self._is_open or self.pid != os.getpid():
            return False
        return self._within is None or self._within.is_live

    def on_close(self, callback: Callable[[], object]) -> None:
        """Call ``callback`` when the extent closes, or immediately if it is closed."""
        if self._within is not None:
            self._within.on_close(callback)
            return
        self._on_close.append(callback)
        if not self._is_open:
            callback()

    def close(self) -> None:
        """Close the extent for all copies in this process. Idempotent."""
        self._is_open = False
        for callback in self._on_close:
            callback()


current_extent: ContextVar[Extent | None] = ContextVar("synap_realtime_extent", default=None)

open_extents: set[Extent] = set()
"""The open extents of this process. In a forked child: those of its parent at the fork."""

shared_extents: weakref.WeakSet[Extent] = weakref.WeakSet()
"""Extents whose reporter :func:`synap_realtime.bind_reporter` has bound to a function."""


@contextmanager
def extent_of(sink: ReportSink | None) -> Iterator[Extent]:
    """Make ``sink`` the current reporter for the code inside the block only.

    Args:
        sink: None for code without a reporter, regardless of its caller.
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
    """Make an extent current in this context without owning it."""
    token = current_extent.set(extent)
    try:
        yield
    finally:
        # ValueError: the context differs from the one that entered, as in an async generator. The
        # extent that remains in the first context is no longer live.
        with suppress(ValueError):
            current_extent.reset(token)
