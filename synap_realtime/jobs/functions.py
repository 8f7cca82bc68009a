"""Recognize functions whose body does not run when a framework calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from ..errors import InvalidArgumentError


def is_coroutine_function(fn: object) -> bool:
    """Return whether calling ``fn`` returns a coroutine, also for an object with ``__call__``."""
    return _is(inspect.iscoroutinefunction, fn)


def check_job_function(field: str, fn: object, name: str | None = None) -> None:
    """Reject generator functions.

    Calling one returns a generator that nobody iterates, so the job would appear to complete
    without having run.

    Args:
        field: the argument or the task that received the function, for the error.
        name: the function's name. Default: its own.

    Raises:
        InvalidArgumentError: ``fn`` is a generator function, asynchronous or not; names it.
    """
    if _is(inspect.isasyncgenfunction, fn) or _is(inspect.isgeneratorfunction, fn):
        raise InvalidArgumentError(
            field,
            f"{name or name_of(fn)}() is a generator function, whose body would not run; return "
            "the result instead of using yield, and publish parts of it with progress() or delta()",
        )


def name_of(fn: object) -> str:
    """Return the name of a function, or of the class of a callable object, for an error."""
    while (inner := getattr(fn, "func", None)) is not None:  # functools.partial
        fn = inner
    return getattr(fn, "__qualname__", type(fn).__qualname__)


def _is(kind: Callable[[object], bool], fn: object) -> bool:
    return kind(fn) or kind(getattr(type(fn), "__call__", None))  # noqa: B004 - not whether it is callable
