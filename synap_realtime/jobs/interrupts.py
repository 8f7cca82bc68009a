"""Distinguish a job's own code from code that the interpreter runs in the middle of it."""

from __future__ import annotations

# signal.getsignal() converts each result to an enum, which is ten times slower.
import _signal  # type: ignore[import-not-found]
import asyncio
import functools
import inspect
import signal
import sys
import weakref
from types import CodeType, FrameType

_SIGNALS = tuple(signal.valid_signals())

_MAX_CONTEXTS = 32
"""Maximum number of chained exceptions (``__context__``) to inspect."""

_EXCEPTION_HANDLER = asyncio.BaseEventLoop.call_exception_handler.__code__
"""The method with which asyncio reports the unretrieved exception of a collected future."""


def is_interrupting() -> bool:
    """Return whether the caller runs in a signal handler or a finalizer.

    The interpreter calls both between two instructions of whatever code is running, and in its
    context. Without this check they would report on the job that they interrupted: an object of one
    user's job that is garbage-collected during another user's job would report to the wrong user.

    - A signal handler is passed the interrupted frame, and that frame is also its caller, which is
      true of no ordinary call.
    - ``__del__`` is known by its name, and an alias of it by its class.
    - The callback of a weak reference, also that of :func:`weakref.finalize`, is passed a reference
      to a dead object.
    - A generator or a coroutine that is collected before its end handles GeneratorExit.
    - asyncio's exception handler is called for a task that is collected.

    Code without Python frames (C extensions) is not recognized.
    """
    if _is_closing_generator():
        return True
    handlers = {_code(handler) for each in _SIGNALS if callable(handler := _signal.getsignal(each))}
    handlers.discard(None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if code in handlers and _was_given_its_caller(frame):
            return True
        if code.co_name == "__del__" or code is _EXCEPTION_HANDLER or _is_finalizer(frame, code):
            return True
        frame = frame.f_back
    return False


def _is_closing_generator() -> bool:
    error = sys.exception()
    for _ in range(_MAX_CONTEXTS):
        if error is None or isinstance(error, GeneratorExit):
            return error is not None
        error = error.__context__
    return False


def _is_finalizer(frame: FrameType, code: CodeType) -> bool:
    # Plain loops: this runs for each caller of each progress() and delta().
    count, names = code.co_argcount, code.co_varnames
    has_rest = code.co_flags & inspect.CO_VARARGS
    if not (count or has_rest):
        return False
    local = frame.f_locals
    if count:
        first = local.get(names[0])
        finalizer = getattr(type(first), "__del__", None)
        if finalizer is not None and _code(finalizer) is code:
            return True
        if isinstance(first, weakref.ref) and first() is None:
            return True
        if count > 1:  # a bound method's frame, and that of weakref.finalize
            second = local.get(names[1])
            if isinstance(second, weakref.ref) and second() is None:
                return True
    if has_rest:
        rest = local.get(names[count + code.co_kwonlyargcount], ())
        for each in rest if type(rest) is tuple else ():
            if isinstance(each, weakref.ref) and each() is None:
                return True
    return False


def _was_given_its_caller(frame: FrameType) -> bool:
    # Matching the code object alone would include every function that shares a decorator with a
    # handler.
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
