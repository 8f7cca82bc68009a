"""The room server: rooms, their logs, and who listens."""

from __future__ import annotations

from .asgi import RoomServer, create_app

__all__ = ["RoomServer", "create_app"]
