"""The member ``job`` of a notification, and the record of a job that such notifications change.

See PROTOCOL.md, "Job state". Pure: the order of the log decides, and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic.alias_generators import to_camel

from ..errors import InvalidArgumentError
from .folding import parse_number

JobStatus = Literal["running", "retrying", "completed", "failed", "cancelled"]

MAX_PAST_RUNS = 16
"""How many earlier runs of a request are remembered, so that their events stay without effect."""

MAX_NAME_LENGTH = 128
"""The longest name of a job type, and the longest id of a run, in characters."""

MAX_ID_LENGTH = 200
"""The longest id of a user, and of a request that names a job, in characters. Keys of rooms have
the same limit."""

_ENDINGS: Mapping[str, JobStatus] = {
    "completed": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
}
_STATUSES: Mapping[str, JobStatus] = {
    "started": "running",
    "progress": "running",
    "retrying": "retrying",
    **_ENDINGS,
}

EVENTS = tuple(_STATUSES)
"""All values of ``job.event``."""

STATUSES: frozenset[str] = frozenset(_STATUSES.values())
"""All values of :data:`JobStatus`."""

T = TypeVar("T")


class JobEvent(NamedTuple):
    """What a notification with ``job`` says about a job.

    Attributes:
        event: ``started``, ``progress``, ``retrying``, or an ending: ``completed``, ``failed``,
            ``cancelled``.
        name: the name of the job type.
        run_id: the run.
        user_id: the member ``job.userId``; None if there is none.
        request_id: the notification's ``requestId``; None if there is none.
        at: the notification's ``timestamp``; None if there is none.
        data: the notification's ``data``, which is not validated.
        attempt: the member ``job.attempt``, a fencing number as ``fold.attempt``; None if there is
            none.
    """

    event: str
    name: str
    run_id: str
    user_id: str | None = None
    request_id: str | None = None
    at: str | None = None
    data: Mapping[str, Any] = {}
    attempt: int | None = None

    @property
    def job_id(self) -> str:
        """The id of the job's record in a room."""
        return _job_id(self.request_id, self.run_id)

    @property
    def is_ending(self) -> bool:
        """Whether it is the last event of its run."""
        return self.event in _ENDINGS

    @property
    def run_keys(self) -> tuple[str, str]:
        """The fold keys of the run, which end with it: its text, and its progress."""
        return f"{self.run_id}:text", f"{self.run_id}:progress"


def run_of_key(key: str) -> str | None:
    """Return the id of the run that a fold key belongs to; None if it belongs to none."""
    run_id, colon, kind = key.rpartition(":")
    return run_id if colon and kind in ("text", "progress") else None


def text_key(run_id: str) -> str:
    """Return the fold key of the text of a run."""
    return f"{run_id}:text"


def parse_job(value: object, wire: Mapping[str, Any]) -> JobEvent:
    """Validate the decoded member ``job`` of a notification.

    Members that are not known have no effect.

    Args:
        value: the member.
        wire: the notification, of which the other members are valid.

    Raises:
        InvalidArgumentError: names the first invalid member, as ``job.event``.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgumentError("job", "expected a JSON object with event, name and runId")
    event = value.get("event")
    if not isinstance(event, str) or event not in EVENTS:
        raise InvalidArgumentError("job.event", f"expected one of {', '.join(EVENTS)}")
    name = _text("job.name", value.get("name"), MAX_NAME_LENGTH)
    run_id = _text("job.runId", value.get("runId"), MAX_NAME_LENGTH)
    user_id = value.get("userId")
    if user_id is not None:
        user_id = _text("job.userId", user_id, MAX_ID_LENGTH)
    attempt = parse_number("job.attempt", value.get("attempt"))
    at, data = wire.get("timestamp"), wire["data"]
    return JobEvent(event, name, run_id, user_id, wire.get("requestId"), at, data, attempt)


def _text(field: str, value: object, most: int) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= most:
        raise InvalidArgumentError(field, f"expected a string of 1 to {most} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(
            field, "contains a lone surrogate, which is not Unicode text"
        ) from None
    return value


def _job_id(request_id: str | None, run_id: str) -> str:
    return request_id if request_id and len(request_id) <= MAX_ID_LENGTH else run_id


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
        text: the text that the run has written, in :data:`its key <text_key>`; in a store, only
            once the run has ended.
        truncated: whether a part of the result is missing.
        stall_after_s: how long the run may be silent after its last event; None for no limit.
        started_at, updated_at, ended_at: RFC 3339.
        past_runs: the ids of earlier runs, oldest first.
        fence: the highest fencing number: an event with a lower one is late.
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
    stall_after_s: float | None = None
    started_at: str | None = None
    updated_at: str | None = None
    ended_at: str | None = None
    past_runs: tuple[str, ...] = ()
    fence: int = 0

    @property
    def job_id(self) -> str:
        """The id of the record in its room: that of the request, else that of the run."""
        return _job_id(self.request_id, self.run_id)

    @property
    def has_ended(self) -> bool:
        return self.status in _ENDINGS

    def to_wire(self, *, has_text: bool = True) -> dict[str, Any]:
        """Return the JSON object for clients: camelCase, without what is not known.

        Args:
            has_text: include the text; lists of jobs do not.
        """
        wire = self.to_stored()
        del wire["pastRuns"], wire["fence"]
        if not has_text:
            wire.pop("text", None)
        return wire

    def to_stored(self) -> dict[str, Any]:
        """Return the JSON object for :func:`parse_record`."""
        known = {
            wire: value for name, wire in _WIRE_NAMES if (value := getattr(self, name)) is not None
        }
        return {**known, "pastRuns": list(self.past_runs)}

    def with_text(self, text: str | None) -> JobRecord:
        """Return the record with the text of its run."""
        return replace(self, text=text)


_WIRE_NAMES = [(field.name, to_camel(field.name)) for field in fields(JobRecord)]


def parse_record(stored: Mapping[str, Any]) -> JobRecord:
    """Return the record that :meth:`JobRecord.to_stored` returned."""
    given = {name: value for name, wire in _WIRE_NAMES if (value := stored.get(wire)) is not None}
    return JobRecord(**{**given, "past_runs": tuple(given.get("past_runs", ()))})


def fold_job(record: JobRecord | None, event: JobEvent) -> JobRecord:
    """Return the record after an event. It never raises.

    - A run that is not known begins the record anew. From then on, events of the run before it
      have no effect.
    - After its ending, no event of a run has an effect. So the first ending counts.
    - An event of an earlier attempt has no effect, unless it is an ending. ``job.attempt`` decides;
      ``data.attempt`` if there is none.
    - An attempt that is announced (``retrying``) or begins has neither progress nor label.
    - Each member of ``data`` that is not valid counts as absent.

    Args:
        record: the present record of :attr:`JobEvent.job_id`; None if there is none.
        event: the event.

    Returns:
        The same object if the event has no effect.
    """
    is_first = record is None or record.run_id != event.run_id
    if record is None or is_first:
        past_runs: tuple[str, ...] = ()
        if record is not None:
            if event.run_id in record.past_runs:
                return record
            past_runs = (*record.past_runs, record.run_id)[-MAX_PAST_RUNS:]
        record = JobRecord(
            event.name,
            "running",
            event.run_id,
            event.user_id,
            event.request_id,
            started_at=event.at,
            past_runs=past_runs,
        )
    elif record.has_ended:
        return record
    known = record
    user_id, request_id = event.user_id or record.user_id, event.request_id or record.request_id
    if (user_id, request_id) != (record.user_id, record.request_id):
        known = replace(record, user_id=user_id, request_id=request_id)
    changed = _apply(known, event, is_first=is_first)
    return record if changed is known else changed


def _apply(record: JobRecord, event: JobEvent, *, is_first: bool) -> JobRecord:
    data, at, status = event.data, event.at, _STATUSES[event.event]
    if event.is_ending:
        ended = replace(record, status=status, updated_at=at, ended_at=at, stall_after_s=None)
        if status != "completed":
            return replace(ended, error=_of(str, data.get("error")))
        truncated = data.get("truncated") is True
        return replace(ended, progress=1.0, result=data, error=None, truncated=truncated)
    attempt = _count(data.get("attempt"))
    fence = event.attempt if event.attempt is not None else attempt or record.fence
    if fence < record.fence:
        return record
    runs_already = fence == record.fence and record.status == "running" and not is_first
    if status == "retrying" and runs_already:
        return record  # the attempt that it announces has begun
    if status == "retrying" or (event.event == "started" and fence > record.fence):
        record = replace(record, progress=None, label=None)
    return replace(
        record,
        status=status,
        fence=fence,
        attempt=attempt or record.attempt,
        max_attempts=_count(data.get("maxAttempts")) or record.max_attempts,
        progress=_fraction(data.get("progress"), record.progress),
        label=_of(str, data.get("label")) or record.label,
        error=_of(str, data.get("error")) or record.error,
        stall_after_s=_seconds(data.get("stallAfterS")),
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


def _seconds(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**31:
        return value
    return None
