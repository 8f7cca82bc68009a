"""The moment a background job moves, the user who waits for it sees it."""

from __future__ import annotations

from .broadcast import (
    AsyncBroadcaster,
    BackgroundBroadcaster,
    Broadcaster,
    BroadcastResult,
    broadcast_error,
    broadcast_error_sync,
    broadcast_notification,
    broadcast_notification_sync,
    broadcast_success,
    broadcast_success_sync,
)
from .errors import (
    BroadcastError,
    ConfigurationError,
    InvalidArgumentError,
    InvalidInputError,
    JobError,
    SubscriptionError,
    SynapRealtimeError,
)
from .jobs import delta, progress
from .protocol.notification import Notification, Status
from .protocol.payloads import (
    JobCancelled,
    JobDelta,
    JobFailed,
    JobProgress,
    JobRetrying,
    JobStarted,
    NoteCreated,
    ProjectCreated,
    ResponseGenerated,
    TaskCompleted,
    TaskCreated,
    Truncated,
)
from .subscriber import JobState, SubscriptionState, follow_job, subscribe, subscribe_sync
from .tokens import mint_token

__version__ = "0.1.0"

__all__ = [
    "AsyncBroadcaster",
    "BackgroundBroadcaster",
    "BroadcastError",
    "BroadcastResult",
    "Broadcaster",
    "ConfigurationError",
    "InvalidArgumentError",
    "InvalidInputError",
    "JobCancelled",
    "JobDelta",
    "JobError",
    "JobFailed",
    "JobProgress",
    "JobRetrying",
    "JobStarted",
    "JobState",
    "NoteCreated",
    "Notification",
    "ProjectCreated",
    "ResponseGenerated",
    "Status",
    "SubscriptionError",
    "SubscriptionState",
    "SynapRealtimeError",
    "TaskCompleted",
    "TaskCreated",
    "Truncated",
    "__version__",
    "broadcast_error",
    "broadcast_error_sync",
    "broadcast_notification",
    "broadcast_notification_sync",
    "broadcast_success",
    "broadcast_success_sync",
    "delta",
    "follow_job",
    "mint_token",
    "progress",
    "subscribe",
    "subscribe_sync",
]
