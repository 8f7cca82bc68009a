"""Log internal errors of the server as single lines, at a bounded rate.

With a traceback for each error, a client that triggers a fault could fill the disk: a request of
70 bytes would write 2 KB.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .events import RateLimitFilter

logger = logging.getLogger(__name__)

MAX_LINES_PER_S = 5
"""The maximum rate of lines. The next line counts those that were suppressed. Tracebacks are logged
at ``debug``."""

_SHOWN_FRAMES = 3

logger.addFilter(RateLimitFilter(MAX_LINES_PER_S))


def report(what: str, error: BaseException | None) -> None:
    """Log an internal error.

    Args:
        what: what failed, and what happens next.
    """
    if error is None:
        logger.error("%s", what)
        return
    frames = traceback.extract_tb(error.__traceback__)[-_SHOWN_FRAMES:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(frames))
    # The text of the error is left out: it may repeat what a client has sent.
    logger.error("%s: %s at %s", what, type(error).__name__, where or "?")
    if logger.isEnabledFor(logging.DEBUG):
        logger.debug("%s", what, exc_info=error)


Handler = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]


def handler(count: Callable[[], None]) -> Handler:
    """Make an exception handler for an event loop; see ``loop.set_exception_handler``.

    Args:
        count: called for each error.
    """

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        count()
        report(f"event loop: {context.get('message', 'unhandled error')}", context.get("exception"))

    return handle
