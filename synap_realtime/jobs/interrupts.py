"""Tell a job's own code from a signal handler that interrupted it."""

from __future__ import annotations

# signal.getsignal() makes an enum of each answer, which costs ten times as much.
import _signal  # type: ignore[import-not-found]
import functools
import signal
import sys
from types import CodeType, FrameType

_SIGNALS = tuple(signal.valid_signals())


def in_signal_handler() -> bool:
    """Return whether a Python signal handler is among the callers.

    A handler runs between two instructions of whatever the main thread was doing, in its context:
    without this check it would report on the job that it interrupted. The interpreter passes the
    interrupted frame to the handler, and that frame is also the handler's caller, which is true of
    no ordinary call. Handlers without Python code (C extensions) are not recognized.
    """
    handlers = {_code(handler) for each in _SIGNALS if callable(handler := _signal.getsignal(each))}
    handlers.discard(None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code in handlers and _was_given_its_caller(frame):
            return True
        frame = frame.f_back
    return False


def _was_given_its_caller(frame: FrameType) -> bool:
    # By code alone, all functions that share a decorator with a handler would be handlers.
    caller = frame.f_back
    return caller is not None and any(
        value is caller or (type(value) is tuple and any(each is caller for each in value))
        for value in frame.f_locals.values()
    )


def _code(handler: object) -> CodeType | None:
    while isinstance(handler, functools.partial):
        handler = handler.func
    for each in (handler, getattr(handler, "__func__", None), getattr(handler, "__call__", None)):  # noqa: B004
        function = getattr(each, "__func__", each)
        if isinstance(code := getattr(function, "__code__", None), CodeType):
            return code
    return None
