"""Runs that end with their process."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager

from .reporter import Reporter

_reporters: set[Reporter] = set()


@contextmanager
def cancelled_at_exit(reporter: Reporter) -> Iterator[None]:
    """Cancel the run if the process ends inside the block.

    For code that is never run again: a process may end in the middle of it without an exception
    there, such as when the main thread ends while daemon threads, greenlets or an event loop run.
    """
    _reporters.add(reporter)
    try:
        yield
    finally:
        _reporters.discard(reporter)


@atexit.register  # before the broadcaster's, which was registered earlier and flushes
def _at_exit() -> None:
    for reporter in tuple(_reporters):
        reporter.cancelled()
