"""The room server: rooms, their logs, and their subscribers.

``create_app`` makes an ASGI application to mount; ``open_store`` opens a store by its URL. The
other names are what a store or an authorizer of your own is written with.
"""

from __future__ import annotations

from ..extras import needed_by

with needed_by("the room server", "server"):
    from .asgi import RoomServer, create_app
    from .authorization import Authorizer
    from .stores import open_store
    from .stores.base import (
        ClusterStore,
        DeliveryHandler,
        Entry,
        Page,
        Publication,
        PublishResult,
        Retention,
        Store,
        StoreStats,
        StoreUnavailableError,
        make_entry,
    )

__all__ = [
    "Authorizer",
    "ClusterStore",
    "DeliveryHandler",
    "Entry",
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
