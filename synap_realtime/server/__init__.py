"""The room server: rooms, their logs, and their subscribers.

``create_app`` returns an ASGI application to mount, and ``open_store`` opens a store by its URL.
The other names are for writing your own store or authorizer.
"""

from __future__ import annotations

from ..extras import needed_by

with needed_by("the room server", "server"):
    from .asgi.adapter import RoomServer, create_app
    from .auth.authorization import Authorizer
    from .errors import StoreUnavailableError
    from .stores import open_store
    from .stores.base import (
        AckStore,
        Broker,
        ClusterStore,
        DeliveryHandler,
        Entry,
        LogStore,
        Page,
        Publication,
        PublishResult,
        Retention,
        Store,
        StoreStats,
        make_entry,
    )

__all__ = [
    "AckStore",
    "Authorizer",
    "Broker",
    "ClusterStore",
    "DeliveryHandler",
    "Entry",
    "LogStore",
    "Page",
    "Publication",
    "PublishResult",
    "Retention",
    "RoomServer",
    "Store",
    "StoreStats",
    "StoreUnavailableError",
    "create_app",
    "make_entry",
    "open_store",
]
