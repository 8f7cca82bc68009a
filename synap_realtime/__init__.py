"""Push realtime notifications of background jobs to the users who requested them."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # importing typing costs more than this module; type checkers know the name
if TYPE_CHECKING:
    from typing import Any

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
        ReadError,
        SubscriptionError,
        SynapRealtimeError,
    )
    from .jobs import bind_reporter, delta, progress
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
    from .subscriber import (
        Job,
        JobList,
        JobState,
        SubscriptionState,
        follow_job,
        get_job,
        get_job_sync,
        list_jobs,
        list_jobs_sync,
        subscribe,
        subscribe_sync,
    )
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
    "Job",
    "JobCancelled",
    "JobDelta",
    "JobError",
    "JobFailed",
    "JobList",
    "JobProgress",
    "JobRetrying",
    "JobStarted",
    "JobState",
    "NoteCreated",
    "Notification",
    "ProjectCreated",
    "ReadError",
    "ResponseGenerated",
    "Status",
    "SubscriptionError",
    "SubscriptionState",
    "SynapRealtimeError",
    "TaskCompleted",
    "TaskCreated",
    "Truncated",
    "__version__",
    "bind_reporter",
    "broadcast_error",
    "broadcast_error_sync",
    "broadcast_notification",
    "broadcast_notification_sync",
    "broadcast_success",
    "broadcast_success_sync",
    "delta",
    "follow_job",
    "get_job",
    "get_job_sync",
    "list_jobs",
    "list_jobs_sync",
    "mint_token",
    "progress",
    "subscribe",
    "subscribe_sync",
]

_LAZY_IMPORTS = {
    ".broadcast": [
        "AsyncBroadcaster",
        "BackgroundBroadcaster",
        "BroadcastResult",
        "Broadcaster",
        "broadcast_error",
        "broadcast_error_sync",
        "broadcast_notification",
        "broadcast_notification_sync",
        "broadcast_success",
        "broadcast_success_sync",
    ],
    ".errors": [
        "BroadcastError",
        "ConfigurationError",
        "InvalidArgumentError",
        "InvalidInputError",
        "JobError",
        "ReadError",
        "SubscriptionError",
        "SynapRealtimeError",
    ],
    ".jobs": ["bind_reporter", "delta", "progress"],
    ".protocol.notification": ["Notification", "Status"],
    ".protocol.payloads": [
        "JobCancelled",
        "JobDelta",
        "JobFailed",
        "JobProgress",
        "JobRetrying",
        "JobStarted",
        "NoteCreated",
        "ProjectCreated",
        "ResponseGenerated",
        "TaskCompleted",
        "TaskCreated",
        "Truncated",
    ],
    ".subscriber": [
        "Job",
        "JobList",
        "JobState",
        "SubscriptionState",
        "follow_job",
        "get_job",
        "get_job_sync",
        "list_jobs",
        "list_jobs_sync",
        "subscribe",
        "subscribe_sync",
    ],
    ".tokens": ["mint_token"],
}
"""The public names by module. A module is imported when one of its names is first used (PEP 562),
because every pytest run of an environment imports this package for the plugin."""


def __getattr__(name: str) -> Any:
    from .forks import importing

    for module, names in _LAZY_IMPORTS.items():
        if name in names:
            with importing():
                value = globals()[name] = getattr(importlib.import_module(module, __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
