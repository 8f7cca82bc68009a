"""The room server: rooms, their logs, and who listens."""

from __future__ import annotations

try:
    from .asgi import RoomServer, create_app
    from .stores import open_store
    from .stores.base import Retention
except ModuleNotFoundError as error:
    if (error.name or "").startswith("synap_realtime"):
        raise
    raise ImportError(
        f"the room server needs {error.name}: pip install 'synap-realtime[server]'",
        name=error.name,
    ) from error

__all__ = ["Retention", "RoomServer", "create_app", "open_store"]
