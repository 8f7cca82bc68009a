"""Subscribe to a room's notifications, with reconnects and replay."""

from __future__ import annotations

from .aio import subscribe
from .job import JobState, JobTracker, follow_job
from .options import SubscriptionState
from .sync import subscribe_sync

__all__ = [
    "JobState",
    "JobTracker",
    "SubscriptionState",
    "follow_job",
    "subscribe",
    "subscribe_sync",
]
