"""``progress`` and ``delta``: publish updates of the running job from anywhere in its code."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Generic, ParamSpec, SupportsFloat, TypeVar

from .extent import Extent, Ticket, current_extent, entered, extent_of, open_extents, shared_extents
from .interrupts import is_interrupting
from .relay import RelayedReporter, ticket_for
from .reporter import Reporter

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

MAX_WARNINGS = 100
"""Maximum number of call sites that one process warns about."""


@contextmanager
def report_run(reporter: Reporter) -> Iterator[None]:
    """Publish the start of a run and make ``reporter`` current for the code of one attempt.

    The adapter publishes the outcome of the attempt and then flushes the reporter. After the block,
    ``progress`` and ``delta`` do nothing in code that outlives it (tasks, threads, forked
    children).
    """
    with extent_of(reporter):
        if reporter.attempt == 1:
            reporter.started()
        with reporter.span.current():
            yield


def progress(
    fraction: SupportsFloat | None,
    label: str | None = None,
    *,
    stall_after_s: SupportsFloat | timedelta | None = None,
) -> None:
    """Publish how far the running job is. Never blocks, and never raises for a network failure.

    At most ten updates a second are sent (fewer in a long job). The last update is always sent. The
    call does nothing outside a job, after the job's end, in a signal handler or a finalizer, and in
    a thread or process without the job's reporter (see :func:`bind_reporter`).

    An invalid argument (NaN, a label that is not text) is omitted, and logged once for each call
    site, so that reporting never fails a job.

    Args:
        fraction: any real number; it is clamped to the range 0 to 1. None if the progress is
            unknown.
        label: the current activity, to show to the user: text, or a lazy translation.
        stall_after_s: how long the job may now stay silent before clients show it as stalled, if
            longer than usual: seconds or a timedelta, positive and finite.

    Raises:
        InvalidArgumentError: an argument is invalid; only in tests with the ``realtime`` fixture.

    See PROTOCOL.md, "Jobs".
    """
    extent = _live_extent("progress")
    if extent is not None and extent.sink is not None:
        extent.sink.progress(
            fraction, label, stall_after_s=stall_after_s, is_replay=extent.is_replay
        )


def delta(text: str) -> None:
    """Publish the next piece of a text that the running job generates. Never blocks.

    It does nothing where :func:`progress` does nothing.

    Args:
        text: the piece, or a lazy translation. A value that is not text is omitted, as in
            :func:`progress`.

    Raises:
        InvalidArgumentError: the value is not text; only in tests with the ``realtime`` fixture.

    See PROTOCOL.md, "Jobs".
    """
    extent = _live_extent("delta")
    if extent is not None and extent.sink is not None:
        extent.sink.delta(text, is_replay=extent.is_replay)


def bind_reporter(function: Callable[P, R]) -> Callable[P, R]:
    """Bind the running job's reporter to a function that another thread or process calls.

    ::

        await loop.run_in_executor(pool, bind_reporter(render), document)

    Works for threads and thread pools, for process pools (``fork``, ``spawn``, ``forkserver``) and
    for :class:`multiprocessing.Process` on the same machine. Reports from another process are
    relayed to the process that runs the job. Call it inside the job, where the function is
    submitted. As a decorator it has no effect, because no job runs at import time. After the job's
    attempt has ended, the function's ``progress`` and ``delta`` do nothing in any process.

    Args:
        function: must be picklable to run in another process. It may be :func:`progress` or
            :func:`delta` itself, to be passed as a callback.

    Returns:
        ``function`` bound to the current reporter, or ``function`` unchanged outside a job.
    """
    extent = _live_extent("bind_reporter")
    if extent is None or extent.sink is None:
        return function
    shared_extents.add(extent)
    return _Bound(function, extent)


class _Bound(Generic[P, R]):
    """A callable bound to a reporter; see :func:`bind_reporter`."""

    def __init__(self, function: Callable[P, R], source: Extent | Ticket | None) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._source = source

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if inspect.iscoroutinefunction(self._function):
            return self._awaited(*args, **kwargs)  # type: ignore[return-value]
        with self._entered():
            return self._function(*args, **kwargs)

    async def _awaited(self, *args: P.args, **kwargs: P.kwargs) -> Any:
        with self._entered():
            return await self._function(*args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _entered(self) -> Iterator[None]:
        source = self._source
        if isinstance(source, Extent):
            if source.pid == os.getpid():
                with entered(source):
                    yield
                return
            source = source.ticket  # in a forked child: the ticket was issued before the fork
        if source is None:
            with extent_of(None):
                yield
            return
        reporter = RelayedReporter(source)
        try:
            with extent_of(reporter) as extent:
                extent.ticket = source
                yield
        finally:
            reporter.close()

    def __reduce__(self) -> tuple[Any, ...]:
        source = self._source
        ticket = ticket_for(source) if isinstance(source, Extent) else source
        return _Bound, (self._function, ticket)


def _live_extent(name: str) -> Extent | None:
    extent = current_extent.get()
    if extent is not None and extent.is_live:
        # Code that the interpreter runs in the middle of a job does not belong to that job.
        return None if is_interrupting() else extent
    if extent is not None and extent.pid == os.getpid():
        _warn(name, "the job that started this code has ended")
    elif extent is not None or any(each.pid != os.getpid() for each in tuple(open_extents)):
        _warn(name, f"this process was forked from a job; {_HOW}")
    elif open_extents:
        _warn(name, f"no job runs in this thread ({threading.current_thread().name}); {_HOW}")
    return None


_HOW = "inside the job, pass synap_realtime.bind_reporter(function)"

_warned: set[tuple[str, int]] = set()


def _warn(name: str, cause: str) -> None:
    """Log once for each call site, so that a loop does not flood the log."""
    try:
        frame = sys._getframe(3)
        site = (frame.f_code.co_filename, frame.f_lineno)
    except ValueError:  # no Python caller: a greenlet runs progress() or delta() directly
        site = ("unknown", 0)
    if site not in _warned and len(_warned) < MAX_WARNINGS and not is_interrupting():
        _warned.add(site)
        logger.warning("%s() at %s:%d ignored: %s", name, *site, cause)
