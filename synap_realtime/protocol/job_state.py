"""Fold the lifecycle notifications of a request's job into a record of how it stands.

A lifecycle notification has the member ``job`` with the event, the name of the job type and the
ids of the run and of the user; its ``data`` is that of PROTOCOL.md, "Jobs". Pure: the order of the
log decides, and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, TypeVar

from pydantic.alias_generators import to_camel

JobStatus = Literal["running", "retrying", "completed", "failed", "cancelled"]

MAX_PAST_RUNS = 16
"""How many earlier runs of a request are remembered, so that their events stay without effect."""

_ENDINGS: Mapping[str, JobStatus] = {
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
_STATUSES: Mapping[str, JobStatus] = {
    **_ENDINGS,
    "started": "running",
    "progress": "running",
    "delta": "running",
    "retrying": "retrying",
}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """How the job of a request stands: its latest run.

    Attributes:
        type: the name of the job type.
        status: the last three values are endings, of which a run has exactly one.
        run_id: the run.
        user_id, request_id: whose it is; None if that is not known.
        progress: from 0 to 1, of the present attempt.
        label: the activity that was reported last.
        attempt: the present attempt, or the next one while the status is ``retrying``.
        max_attempts: None if unknown.
        result: what a completed run has returned.
        error: the error of a failed or cancelled run, or of the last attempt.
        text: the text that the run has written, once it has ended.
        truncated: whether a part of the result is missing.
        started_at, updated_at, ended_at: RFC 3339.
        past_runs: the ids of earlier runs, oldest first.
    """

    type: str
    status: JobStatus
    run_id: str
    user_id: str | None = None
    request_id: str | None = None
    progress: float | None = None
    label: str | None = None
    attempt: int = 1
    max_attempts: int | None = None
    result: Mapping[str, Any] | None = None
    error: str | None = None
    text: str | None = None
    truncated: bool = False
    started_at: str | None = None
    updated_at: str | None = None
    ended_at: str | None = None
    past_runs: tuple[str, ...] = ()

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDINGS

    def to_wire(self, *, has_text: bool = True) -> dict[str, Any]:
        """Return the JSON object for clients: camelCase, without what is not known.

        Args:
            has_text: include the text; lists of jobs do not.
        """
        wire = self.to_stored()
        del wire["pastRuns"]
        if not has_text:
            wire.pop("text", None)
        return wire

    def to_stored(self) -> dict[str, Any]:
        """Return the JSON object for :func:`parse_record`."""
        known = {to_camel(name): value for name, value in asdict(self).items() if value is not None}
        return {**known, "pastRuns": list(self.past_runs)}

    def with_text(self, text: str) -> JobRecord:
        """Return the record of a run that has ended, with its text."""
        return replace(self, text=text)


def parse_record(stored: Mapping[str, Any]) -> JobRecord:
    """Return the record that :meth:`JobRecord.to_stored` returned."""
    known = {field.name: stored.get(to_camel(field.name)) for field in fields(JobRecord)}
    given = {name: value for name, value in known.items() if value is not None}
    return JobRecord(**{**given, "past_runs": tuple(given.get("past_runs", ()))})


def fold_job(record: JobRecord | None, notification: Mapping[str, Any]) -> JobRecord | None:
    """Return the record after a notification. It never raises.

    - A notification without ``job``, or with one that is not valid, has no effect. Of its ``data``,
      each member that is not valid counts as absent.
    - A run that is not known begins the record anew. From then on, events of the run before it
      have no effect.
    - After its ending, no event of a run has an effect. So the first ending counts.
    - An event of an earlier attempt has no effect, unless it is an ending. A later attempt begins
      with neither progress nor label.

    Args:
        record: the present record; None if there is none.
        notification: as JSON, after it was validated.
    """
    job = notification.get("job")
    if not isinstance(job, Mapping):
        return record
    event, name, run_id = job.get("event"), job.get("name"), job.get("runId")
    if not (isinstance(event, str) and isinstance(name, str) and isinstance(run_id, str)):
        return record
    status = _STATUSES.get(event)
    if status is None or not name or not run_id:
        return record
    at = _of(str, notification.get("timestamp"))
    is_first = record is None or record.run_id != run_id
    if record is None or is_first:
        past_runs: tuple[str, ...] = ()
        if record is not None:
            if run_id in record.past_runs:
                return record
            past_runs = (*record.past_runs, record.run_id)[-MAX_PAST_RUNS:]
        record = JobRecord(name, "running", run_id, started_at=at, past_runs=past_runs)
    elif record.has_ended:
        return record
    known = replace(
        record,
        user_id=_of(str, job.get("userId")) or record.user_id,
        request_id=_of(str, notification.get("requestId")) or record.request_id,
    )
    data = notification.get("data")
    content = data if isinstance(data, Mapping) else {}
    return _apply(known, status, content, at, is_first=is_first)


def _apply(
    record: JobRecord,
    status: JobStatus,
    data: Mapping[str, Any],
    at: str | None,
    *,
    is_first: bool,
) -> JobRecord:
    if status in _ENDINGS:
        ended = replace(record, status=status, updated_at=at, ended_at=at)
        if status != "completed":
            return replace(ended, error=_of(str, data.get("error")))
        truncated = data.get("truncated") is True
        return replace(ended, progress=1.0, result=data, error=None, truncated=truncated)
    attempt = _count(data.get("attempt")) or record.attempt
    if attempt < record.attempt:
        return record
    runs_already = attempt == record.attempt and record.status == "running" and not is_first
    if status == "retrying" and runs_already:
        return record  # the attempt that it announces has begun
    if attempt > record.attempt or status == "retrying":
        record = replace(record, progress=None, label=None)
    return replace(
        record,
        status=status,
        attempt=attempt,
        max_attempts=_count(data.get("maxAttempts")) or record.max_attempts,
        progress=_fraction(data.get("progress"), record.progress),
        label=_of(str, data.get("label")) or record.label,
        error=_of(str, data.get("error")) or record.error,
        updated_at=at,
    )


def _of(kind: type[T], value: object) -> T | None:
    return value if isinstance(value, kind) else None


def _count(value: object) -> int | None:
    """Return a number from 1, as attempts are; None for anything else."""
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
    return value if is_count and isinstance(value, int) else None


def _fraction(value: object, default: float | None) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    return default
