"""The moment a background job moves, the user who waits for it sees it."""

from __future__ import annotations

from .broadcast import (
    AsyncBroadcaster,
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
from .protocol.notification import Notification, Status
from .protocol.payloads import (
    JobCancelled,
    JobFailed,
    JobProgress,
    JobRetrying,
    JobStarted,
    NoteCreated,
    ProjectCreated,
    ResponseDelta,
    ResponseGenerated,
    TaskCompleted,
    TaskCreated,
    Truncated,
)
from .subscriber import SubscriptionState, subscribe, subscribe_sync

__version__ = "0.1.0"

__all__ = [
    "AsyncBroadcaster",
    "BroadcastError",
    "BroadcastResult",
    "Broadcaster",
    "ConfigurationError",
    "InvalidArgumentError",
    "InvalidInputError",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobProgress",
    "JobRetrying",
    "JobStarted",
    "NoteCreated",
    "Notification",
    "ProjectCreated",
    "ResponseDelta",
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
    "subscribe",
    "subscribe_sync",
]
