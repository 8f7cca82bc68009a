"""The room server: rooms, their logs, and their subscribers.

``create_app`` makes an ASGI application to mount; ``open_store`` opens a store by its URL. The
other names are what a store or an authorizer of your own is written with.
"""

from __future__ import annotations

from ..extras import needed_by

with needed_by("the room server", "server"):
    from .access import May
    from .asgi import RoomServer, create_app
    from .stores import open_store
    from .stores.base import (
        Deliver,
        Entry,
        Page,
        Publication,
        Receipt,
        Retention,
        SharedStore,
        Store,
        StoreUnavailableError,
        Usage,
        entry_of,
    )

__all__ = [
    "Deliver",
    "Entry",
    "May",
    "Page",
    "Publication",
    "Receipt",
    "Retention",
    "RoomServer",
    "SharedStore",
    "Store",
    "StoreUnavailableError",
    "Usage",
    "create_app",
    "entry_of",
    "open_store",
]
