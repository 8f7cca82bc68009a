"""The room server: rooms, their logs, and who listens."""

from __future__ import annotations

from ..extras import needed_by

with needed_by("the room server", "server"):
    from .asgi import RoomServer, create_app
    from .stores import open_store
    from .stores.base import Retention

__all__ = ["Retention", "RoomServer", "create_app", "open_store"]
