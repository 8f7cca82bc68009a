"""Subscribe to a room's notifications, with reconnects and replay."""

from __future__ import annotations

from .aio import subscribe
from .following import follow_job
from .job import JobState, JobTracker
from .options import SubscriptionState
from .records import Job, JobList
from .snapshots import get_job, get_job_sync, list_jobs, list_jobs_sync
from .sync import subscribe_sync

__all__ = [
    "Job",
    "JobList",
    "JobState",
    "JobTracker",
    "SubscriptionState",
    "follow_job",
    "get_job",
    "get_job_sync",
    "list_jobs",
    "list_jobs_sync",
    "subscribe",
    "subscribe_sync",
]
