"""What a job is, on any framework: its family, its run, and what the user hears of it."""

from __future__ import annotations

from .accepted import accepted_body, new_request_id
from .current import bind_reporter, delta, progress, running
from .family import Family
from .lifecycle import Lifecycle
from .people import Person
from .plain import PlainRun
from .reporter import Reporter
from .run import JobRun

__all__ = [
    "Family",
    "JobRun",
    "Lifecycle",
    "Person",
    "PlainRun",
    "Reporter",
    "accepted_body",
    "bind_reporter",
    "delta",
    "new_request_id",
    "progress",
    "running",
]
