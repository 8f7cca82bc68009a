"""The framework-independent model of a job: its type, its run and its notifications."""

from __future__ import annotations

from .accepted import accepted_response, new_request_id
from .context import bind_reporter, delta, progress, report_run
from .job_types import JobType
from .notifications import RunNotifications
from .recipients import Recipient
from .reporter import Reporter
from .run import InProcessRun, JobRun

__all__ = [
    "InProcessRun",
    "JobRun",
    "JobType",
    "Recipient",
    "Reporter",
    "RunNotifications",
    "accepted_response",
    "bind_reporter",
    "delta",
    "new_request_id",
    "progress",
    "report_run",
]
