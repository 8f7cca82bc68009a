"""Custom stores, as ``--store tests.support.custom_stores:alone`` opens them."""

from __future__ import annotations

import os

from synap_realtime.server.stores.base import Retention
from synap_realtime.server.stores.memory import MemoryStore

NOT_CALLABLE = "a store"


def alone(retention: Retention) -> MemoryStore:
    """Open a store that workers cannot share."""
    return MemoryStore(retention)


def dying(retention: Retention) -> MemoryStore:
    """End the process: a worker never comes to accept connections."""
    os._exit(3)
