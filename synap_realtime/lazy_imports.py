"""Protect imports at first use against a concurrent fork.

A child of ``fork`` has only the thread that forked. A module that another thread was importing
remains half imported in the child, and its lock remains held, so that an import of it blocks for
ever. So each import of this package that is not made at import time runs inside of
:func:`importing`, and a fork waits for the end of that block.
"""

from __future__ import annotations

# These two modules of the standard library acquire a lock before a fork. Hooks run in the reverse
# order of their registration. Importing the modules here makes their hooks run after the one below,
# so that a fork never holds a lock that the importing thread needs while it waits for that thread.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

WAIT_S = 5.0
"""The longest time that a fork waits. Without the limit it could deadlock, when the importing
thread waits for a module lock that the forking thread holds."""

_lock = threading.RLock()
_forking: set[int] = set()
"""The threads that hold the lock during a fork."""


@contextmanager
def importing() -> Iterator[None]:
    """Delay forks of other threads while the block imports."""
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
