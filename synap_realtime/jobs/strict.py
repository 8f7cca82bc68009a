"""Handle invalid reports of a job: logged and ignored in production, an error in tests."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..errors import InvalidArgumentError

logger = logging.getLogger(__name__)

MAX_CALL_SITES = 100
"""Maximum number of call sites that one process logs, so that a loop does not flood the log."""

_PACKAGE = __name__.partition(".")[0]

_logged: set[tuple[str, int]] = set()

_collected: list[list[str]] = []
"""One list for each open :func:`strict` block."""


@contextmanager
def strict() -> Iterator[list[str]]:
    """Raise for invalid arguments of ``progress()`` and ``delta()`` in all threads of this process.

    Yields:
        the problems of truncated results, in order. They never raise where they are found: the job
        has returned by then, and must not appear to fail.
    """
    problems: list[str] = []
    _collected.append(problems)
    try:
        yield problems
    finally:
        _collected.remove(problems)


def reject(errors: Sequence[InvalidArgumentError]) -> None:
    """Handle ignored arguments: log them once for each call site of the application.

    Raises:
        InvalidArgumentError: the first one, in strict mode.
    """
    if not errors:
        return
    if _collected:
        raise errors[0]
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    site = (frame.f_code.co_filename, frame.f_lineno)
    if site not in _logged and len(_logged) < MAX_CALL_SITES:
        _logged.add(site)
        problems = "; ".join(str(error) for error in errors)
        logger.warning("invalid argument at %s:%d: %s; ignored", *site, problems)


def report_result(problem: str) -> None:
    """Record a result's problem for tests that run in strict mode."""
    for problems in _collected:
        problems.append(problem)


def _is_ours(module: str) -> bool:
    return module == _PACKAGE or module.startswith(f"{_PACKAGE}.")
