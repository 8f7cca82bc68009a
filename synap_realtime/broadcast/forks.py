"""Clients in a forked child: their connections, threads and locks are the parent's."""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class _Renewable(Protocol):
    def renew(self) -> None: ...


_clients: weakref.WeakSet[_Renewable] = weakref.WeakSet()


def renew_in_child(client: _Renewable) -> None:
    """Call ``client.renew()`` in each child that this process forks, before anything else uses it.

    It runs inside of ``fork``: it connects to nothing, and takes no lock, which a thread that the
    child does not have could hold.
    """
    _clients.add(client)


def _renew() -> None:
    for client in list(_clients):
        client.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
