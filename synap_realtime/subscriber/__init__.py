"""The listener: hear a room's notifications, over as many connections as it takes."""

from __future__ import annotations

from .aio import subscribe
from .options import SubscriptionState
from .sync import subscribe_sync

__all__ = ["SubscriptionState", "subscribe", "subscribe_sync"]
