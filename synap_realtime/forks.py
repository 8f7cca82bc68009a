"""Keep clients and imports usable in a forked child.

A child of ``fork`` has only the thread that forked.

- The connections, threads and locks of a client belong to the parent. :func:`renew_in_child` resets
  the client in the child.
- A module that another thread was importing remains half imported in the child, and its lock
  remains held, so that an import of it blocks forever. So each import of this package that is not
  made at import time runs inside of :func:`importing`, and a fork waits for the end of that block.
- OpenSSL's locks remain held, too, if another thread was using TLS. So a child neither creates nor
  releases an object of OpenSSL unless it publishes to an ``https`` URL: :func:`keep` holds the
  objects of the parent. A child that does publish to one cannot avoid these locks, and may block:
  start such children before the threads that use TLS, or with the start method ``spawn``.
"""

from __future__ import annotations

# These two modules of the standard library acquire a lock before a fork. Hooks run in the reverse
# order of their registration. Importing the modules here makes their hooks run after the one below,
# so that a fork never holds a lock that the importing thread needs while it waits for that thread.
import concurrent.futures.thread  # noqa: F401
import logging  # noqa: F401
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

WAIT_S = 5.0
"""The longest time that a fork waits. Without the limit it could deadlock, when the importing
thread waits for a module lock that the forking thread holds."""

_lock = threading.RLock()
_forking: set[int] = set()
"""The threads that hold the lock during a fork."""


class _Renewable(Protocol):
    def renew(self) -> None: ...


_kept: list[object] = []

_clients: weakref.WeakSet[_Renewable] = weakref.WeakSet()


def renew_in_child(client: _Renewable) -> None:
    """Call ``client.renew()`` in each child that this process forks, before any other use.

    ``renew()`` runs inside ``fork``. It must not connect or take a lock, because a thread that does
    not exist in the child could hold the lock.
    """
    _clients.add(client)


def keep(parents: object) -> None:
    """Never release an object of the parent in this child: that could acquire a lock of OpenSSL."""
    _kept.append(parents)


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
    for client in list(_clients):
        client.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child
    )
