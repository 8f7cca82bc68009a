"""The SDK: publish notifications to a room server over HTTP."""

from __future__ import annotations

from .aio import AsyncBroadcaster
from .background import BackgroundBroadcaster
from .functions import (
    background_broadcaster,
    broadcast_error,
    broadcast_error_sync,
    broadcast_notification,
    broadcast_notification_sync,
    broadcast_success,
    broadcast_success_sync,
)
from .result import BroadcastResult
from .sync import Broadcaster

__all__ = [
    "AsyncBroadcaster",
    "BackgroundBroadcaster",
    "BroadcastResult",
    "Broadcaster",
    "background_broadcaster",
    "broadcast_error",
    "broadcast_error_sync",
    "broadcast_notification",
    "broadcast_notification_sync",
    "broadcast_success",
    "broadcast_success_sync",
]
