"""Custom stores, as ``--store tests.support.custom_stores:alone`` opens them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from synap_realtime.server.stores.base import Publication, PublishResult, Retention
from synap_realtime.server.stores.memory import MemoryStore

NOT_CALLABLE = "a store"


def alone(retention: Retention) -> MemoryStore:
    """Open a store that workers cannot share."""
    return MemoryStore(retention)


def dying(retention: Retention) -> MemoryStore:
    """End the process: a worker never comes to accept connections."""
    os._exit(3)


class _UnfoldedStore(MemoryStore):
    async def publish(self, publications: Sequence[Publication]) -> Sequence[PublishResult]:
        return await super().publish([each._replace(fold=None) for each in publications])


def unfolded(retention: Retention) -> MemoryStore:
    """Open a store that folds nothing: a log has everything that was published to its room."""
    return _UnfoldedStore(retention)
