"""``progress`` and ``delta``: what a job says about itself, wherever in its code it is."""

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
"""Call sites that are warned about in one process."""


@contextmanager
def report_run(reporter: Reporter) -> Iterator[None]:
    """Around one attempt: says that the run has started, and what the code says goes to ``told``.

    What comes of the attempt is for the adapter to say, then to settle. When the block is left,
    ``progress`` and ``delta`` do nothing in any code that it has left behind (tasks, threads,
    forked children).
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
    """Say how far the running job is. Never waits, and never fails the job for the network's sake.

    At most ten a second are sent (fewer in a long job), and the last one always. Outside of a job,
    after its end, in a signal handler or a finalizer, and in a thread or a process that the
    reporter was not taken to (:func:`bind_reporter`) it does nothing.

    An argument that has no meaning (NaN, a label that is no text) is left out, and logged once for
    each call site: what a job says about itself never makes it fail.

    Args:
        fraction: any real number from 0 to 1; what is beyond is moved to the border. None if it
            cannot be told.
        label: what is being done, for the user: text, or a lazy translation.
        stall_after_s: how long silence is normal from here on, if longer than usual: seconds or a
            timedelta, more than 0 and finite.

    Raises:
        InvalidArgumentError: in tests with the ``realtime`` fixture only, for a wrong argument.

    See PROTOCOL.md, "Jobs".
    """
    extent = _live_extent("progress")
    if extent is not None and extent.sink is not None:
        extent.sink.progress(
            fraction, label, stall_after_s=stall_after_s, is_replay=extent.is_replay
        )


def delta(text: str) -> None:
    """Show the next piece of a text that the running job writes. Never waits.

    It does nothing where :func:`progress` does nothing.

    Args:
        text: the piece, or a lazy translation; what is no text is left out, as in :func:`progress`.

    Raises:
        InvalidArgumentError: in tests with the ``realtime`` fixture only, for what is no text.

    See PROTOCOL.md, "Jobs".
    """
    extent = _live_extent("delta")
    if extent is not None and extent.sink is not None:
        extent.sink.delta(text, is_replay=extent.is_replay)


def bind_reporter(function: Callable[P, R]) -> Callable[P, R]:
    """Take the running job's reporter along to a thread or a process that would not have it.

    ::

        await loop.run_in_executor(pool, bind_reporter(render), document)

    Works for threads and thread pools, for process pools (``fork``, ``spawn``, ``forkserver``) and
    for :class:`multiprocessing.Process` on the same machine. In another process, what the function
    reports goes to the process that runs the job. Call it where the function is handed over, inside
    the job: as a decorator it would find no job. When the job's attempt is over, the function's
    ``progress`` and ``delta`` do nothing, wherever it runs.

    Args:
        function: for another process, one that can be pickled. It may be :func:`progress` or
            :func:`delta` itself, to be passed as an argument.

    Returns:
        ``function``, to be called with the reporter that is current now; where no job runs,
        ``function`` unchanged.
    """
    extent = _live_extent("bind_reporter")
    if extent is None or extent.sink is None:
        return function
    shared_extents.add(extent)
    return _Bound(function, extent)


class _Bound(Generic[P, R]):
    """See :func:`bind_reporter`."""

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
            source = source.ticket  # in a forked child, made before the fork
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
        # What the interpreter calls in the middle of a job is not that job's code.
        return None if is_interrupting() else extent
    if extent is not None and extent.pid == os.getpid():
        _warn(name, "the job that started this code is over")
    elif extent is not None or any(each.pid != os.getpid() for each in tuple(open_extents)):
        _warn(name, f"this process was forked from a job; {_HOW}")
    elif open_extents:
        _warn(name, f"no job runs in this thread ({threading.current_thread().name}); {_HOW}")
    return None


_HOW = "inside the job, hand over synap_realtime.bind_reporter(function)"

_warned: set[tuple[str, int]] = set()


def _warn(name: str, cause: str) -> None:
    """Log once for each call site, so that a loop does not fill the log."""
    try:
        frame = sys._getframe(3)
        site = (frame.f_code.co_filename, frame.f_lineno)
    except ValueError:  # no Python code has called it: it is itself what a greenlet runs
        site = ("unknown", 0)
    if site not in _warned and len(_warned) < MAX_WARNINGS and not is_interrupting():
        _warned.add(site)
        logger.warning("%s() at %s:%d does nothing: %s", name, *site, cause)
