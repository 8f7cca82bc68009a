"""The records of jobs that a server returns. See PROTOCOL.md, "Job state"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..protocol.job_state import STATUSES, JobStatus


@dataclass(frozen=True, slots=True)
class Job:
    """How the job of a request stands, as the server knows it.

    Attributes:
        type: the name of the job type.
        status: ``running``, ``retrying``, ``completed``, ``failed`` or ``cancelled``.
        run_id: the latest run.
        request_id, user_id: whose it is; None if unknown.
        progress: 0 to 1; None if the job has not reported it.
        label: the activity that was reported last.
        attempt, max_attempts: the current or next attempt, and their maximum, if known.
        result: the ``data`` of the notification of success.
        is_truncated: whether members of the result are missing.
        error: why the job, or its last attempt, failed.
        stall_after_s: how long the job may be silent, from ``updated_at``, before it is stalled;
            None for no limit.
        text: the text that the run has written; None if it has written none, and in lists.
        started_at, updated_at, ended_at: with a time zone; None if unknown.
        cursor: the position in the request's room from which :func:`subscribe` continues without a
            gap or a repeat; empty in lists, which have a cursor of their own.
    """

    type: str
    status: JobStatus
    run_id: str
    request_id: str | None = None
    user_id: str | None = None
    progress: float | None = None
    label: str | None = None
    attempt: int = 1
    max_attempts: int | None = None
    result: Mapping[str, Any] | None = None
    is_truncated: bool = False
    error: str | None = None
    stall_after_s: float | None = None
    text: str | None = None
    started_at: datetime | None = None
    updated_at: datetime | None = None
    ended_at: datetime | None = None
    cursor: str = ""

    @property
    def has_ended(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class JobList:
    """A page of a user's jobs.

    Attributes:
        jobs: newest first.
        cursor: the position in the user's room from which :func:`subscribe` continues.
        next: pass it as ``after`` for the next page; None: this is the last one.
    """

    jobs: tuple[Job, ...]
    cursor: str
    next: str | None


def parse_job_record(content: object, cursor: str = "") -> Job:
    """Read a record of a response. A member that is not valid counts as absent.

    Args:
        content: the decoded record.
        cursor: see :class:`Job`.

    Raises:
        ValueError: it is no record: it has no ``type``, ``status`` or ``runId``.
    """
    wire = content if isinstance(content, dict) else {}
    type, status, run_id = (_text(wire.get(name)) for name in ("type", "status", "runId"))
    if type is None or run_id is None or status not in STATUSES:
        raise ValueError("a job without type, status or runId")
    result = wire.get("result")
    return Job(
        type=type,
        status=status,  # type: ignore[arg-type]
        run_id=run_id,
        request_id=_text(wire.get("requestId")),
        user_id=_text(wire.get("userId")),
        progress=_fraction(wire.get("progress")),
        label=_text(wire.get("label")),
        attempt=_count(wire.get("attempt")) or 1,
        max_attempts=_count(wire.get("maxAttempts")),
        result=result if isinstance(result, dict) else None,
        is_truncated=wire.get("truncated") is True,
        error=_text(wire.get("error")),
        stall_after_s=_seconds(wire.get("stallAfterS")),
        text=_text(wire.get("text")),
        started_at=_time(wire.get("startedAt")),
        updated_at=_time(wire.get("updatedAt")),
        ended_at=_time(wire.get("endedAt")),
        cursor=cursor,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_count and isinstance(value, int) else None


def _time(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return moment if moment is None or moment.tzinfo is not None else None


def _fraction(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return (
        float(value) if is_number and isinstance(value, int | float) and 0 <= value <= 1 else None
    )


def _seconds(value: object) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and isinstance(value, int | float) and 0 < value <= 2**31 else None
