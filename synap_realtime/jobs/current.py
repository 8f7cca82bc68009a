"""``progress`` and ``delta``: what a job says about itself, wherever in its code it is."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .reporter import Reporter

logger = logging.getLogger(__name__)

reporter: ContextVar[Reporter | None] = ContextVar("synap_realtime_reporter", default=None)
"""That of the job that runs here. ``asyncio.to_thread`` takes it along; a thread pool does not."""


@contextmanager
def running(told: Reporter) -> Iterator[None]:
    """Around one attempt: says that the run has started, and what the code says goes to ``told``.

    What comes of the attempt is for the adapter to say, then to settle.
    """
    token = reporter.set(told)
    try:
        if told.attempt == 1:
            told.started()
        with told.span.current():
            yield
    finally:
        reporter.reset(token)


def progress(
    fraction: float | None, label: str | None = None, *, stall_after_s: float | None = None
) -> None:
    """Say how far the running job is. Never waits, and never fails the job for the network's sake.

    At most ten a second are sent (fewer in a long job), and the last one always. Outside of a job
    it does nothing.

    Args:
        fraction: 0 to 1; what is beyond is moved to the border. None if it cannot be told.
        label: what is being done, for the user.
        stall_after_s: how long silence is normal from here on, if longer than usual.

    Raises:
        InvalidArgumentError: an argument has the wrong type.

    See PROTOCOL.md, "Jobs".
    """
    if (current := reporter.get()) is None:
        logger.debug("progress() outside of a job that is told: ignored")
    else:
        current.progress(fraction, label, stall_after_s=stall_after_s)


def delta(text: str) -> None:
    """Show the next piece of a text that the running job writes. Never waits.

    Raises:
        InvalidArgumentError: the piece is not text.

    See PROTOCOL.md, "Jobs".
    """
    if (current := reporter.get()) is None:
        logger.debug("delta() outside of a job that is told: ignored")
    else:
        current.delta(text)
