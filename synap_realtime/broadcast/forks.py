"""Reset clients in a forked child: their connections, threads and locks belong to the parent."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class _Renewable(Protocol):
    def renew(self) -> None: ...


_clients: weakref.WeakSet[_Renewable] = weakref.WeakSet()


def renew_in_child(client: _Renewable) -> None:
    """Call ``client.renew()`` in each child that this process forks, before any other use.

    ``renew()`` runs inside ``fork``. It must not connect or take a lock, because a thread that does
    not exist in the child could hold the lock.
    """
    _clients.add(client)


def _renew() -> None:
    for client in list(_clients):
        client.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
