"""Cancel runs whose process exits."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager

from .reporter import Reporter

_reporters: set[Reporter] = set()


@contextmanager
def cancelled_at_exit(reporter: Reporter) -> Iterator[None]:
    """Cancel the run if the process exits inside the block.

    A process may exit in the middle of a block without raising there, for example when the main
    thread ends while a daemon thread, a greenlet or an event loop runs the block.
    """
    _reporters.add(reporter)
    try:
        yield
    finally:
        _reporters.discard(reporter)


@atexit.register  # runs before the broadcaster's handler, which was registered earlier and flushes
def _at_exit() -> None:
    for reporter in tuple(_reporters):
        reporter.cancelled()
