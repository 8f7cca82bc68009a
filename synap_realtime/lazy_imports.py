"""Imports at first use that a fork in another thread cannot cut in half.

A child of ``fork`` has only the thread that forked. A module that another thread was importing
stays half imported in the child, and its lock stays taken: the child's own import of it never
returns. So each import of this package that is not made at import time runs inside of
:func:`importing`, and a fork waits for that block to end.
"""

from __future__ import annotations

# The two of the standard library that take a lock before a fork. Hooks run in the reverse order of
# their registration: those of modules that are imported here first run after the hook below, so a
# fork never holds what the importing thread needs while it waits for that thread.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

WAIT_S = 5.0
"""How long a fork waits at most: the importing thread may itself wait for a module's lock that the
forking thread holds."""

_lock = threading.RLock()
_forking: set[int] = set()
"""Threads that hold the lock because they fork."""


@contextmanager
def importing() -> Iterator[None]:
    """Let no other thread fork while the block imports."""
    with _lock:
        yield


def _before_fork() -> None:
    if _lock.acquire(timeout=WAIT_S):
        _forking.add(threading.get_ident())


def _after_in_parent() -> None:
    if (ident := threading.get_ident()) in _forking:
        _forking.discard(ident)
        _lock.release()


def _after_in_child() -> None:
    global _lock
    _lock = threading.RLock()
    _forking.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
