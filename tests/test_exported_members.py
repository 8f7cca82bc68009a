"""The public names are a promise: changing them requires changing this test."""

from __future__ import annotations

import json
from pathlib import Path

import synap_realtime


def test_the_public_names_are_these() -> None:
    assert set(synap_realtime.__all__) == {
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
        "JobList",
        "JobError",
        "JobFailed",
        "JobProgress",
        "JobRetrying",
        "JobStarted",
        "JobState",
        "NoteCreated",
        "Notification",
        "ProjectCreated",
        "JobDelta",
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
        "mint_token",
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
        "progress",
        "subscribe",
        "subscribe_sync",
    }
    for name in synap_realtime.__all__:
        assert hasattr(synap_realtime, name)


def test_the_npm_package_has_the_same_version() -> None:
    browser = Path(__file__).parents[1] / "browser"
    for name in ("package.json", "package-lock.json"):
        assert json.loads((browser / name).read_text())["version"] == synap_realtime.__version__
