"""Track the state of a job from its notifications. See PROTOCOL.md, "Jobs"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..protocol.job_state import JobStatus, text_key
from ..protocol.notification import Notification
from .records import Job

Status = Literal["idle", "pending", "retrying", "stalled", "success", "error"]

_STATUSES: Mapping[JobStatus, Status] = {
    "running": "pending",
    "retrying": "retrying",
    "completed": "success",
    "failed": "error",
    "cancelled": "error",
}


@dataclass(frozen=True, slots=True)
class JobState:
    """The state of a job.

    Attributes:
        status: ``idle`` before the first notification; ``stalled`` after a silence longer than the
            job announced; ``success`` and ``error`` are final.
        progress: 0 to 1, if the job reports it.
        label: the current activity.
        attempt, max_attempts: the current or next attempt, and their maximum.
        error: why the last attempt, or the job, failed.
        result: the ``data`` of the terminal notification.
        text: the generated text so far, up to the first missing piece.
        is_text_complete: false when a piece of the text is missing, because this client subscribed
            late or was disconnected for longer than the server retains them. The result contains
            the whole text.
        type: the type of the last notification; None if the state comes from the server's record.
    """

    status: Status = "idle"
    progress: float | None = None
    label: str | None = None
    attempt: int = 1
    max_attempts: int | None = None
    error: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    is_text_complete: bool = True
    type: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.status in ("success", "error")


class JobTracker:
    """Derive a job's state from its notifications. Pure, without a clock.

    Attributes:
        state: the state of the job.
        stall_after_s: how long the job may be silent after the last notification; None for no
            limit.
        misses_text: whether the last piece follows a part of the text that never came. The server
            may still have it.
    """

    def __init__(self) -> None:
        self.state = JobState()
        self.stall_after_s: float | None = None
        self.misses_text = False
        self._key: object = None  # the fold key of the text, and the last attempt in it
        self._fence = 0.0
        self._run: object = None  # the run and its attempt, for pieces that are not folded
        self._attempt = 0.0
        self._next_index: float | None = 0  # None: no further piece can be appended

    def restore(self, job: Job) -> JobState:
        """Replace the state by the server's record. The notifications after its cursor follow.

        A state that is final stays.
        """
        if self.state.is_finished:
            return self.state
        result = job.result
        if job.status in ("failed", "cancelled"):
            result = {"error": job.error, "runId": job.run_id}
        self.state = JobState(
            status=_STATUSES[job.status],
            progress=job.progress,
            label=job.label,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            error=job.error,
            result=result or {},
            text=job.text or "",
        )
        self.stall_after_s = None if job.has_ended else job.stall_after_s
        self.misses_text = False
        self._key, self._fence = text_key(job.run_id), 0.0
        self._run, self._attempt, self._next_index = job.run_id, float(job.attempt), None
        return self.state

    def apply(self, notification: Notification) -> JobState:
        """Apply the next notification. Notifications after the terminal one are ignored."""
        state = self.state
        if state.is_finished:
            return state
        data = notification.data
        word = notification.type.rpartition(".")[2]
        state = replace(state, type=notification.type)
        if notification.status in ("success", "error"):
            self.stall_after_s = None
            error = _text(data.get("error")) if notification.status == "error" else None
            state = replace(state, status=notification.status, result=data, error=error)
            if notification.status == "success":
                state = _completed(state)
        elif word == "delta":
            state = replace(self._write(state, notification), status="pending")
            self.misses_text = not state.is_text_complete
        else:
            self.stall_after_s = _number(data.get("stallAfterS")) or None
            most = _number(data.get("maxAttempts"))
            state = replace(
                state,
                status="retrying" if word == "retrying" else "pending",
                attempt=int(_number(data.get("attempt")) or state.attempt),
                max_attempts=state.max_attempts if most is None else int(most),
                progress=_number(data.get("progress"), state.progress),
                label=_text(data.get("label")) or state.label,
                error=_text(data.get("error")) or state.error,
            )
            if word == "retrying":  # discard the text of the failed attempt
                state = replace(state, progress=None, label=None)
        self.state = state
        return state

    def gap(self) -> JobState:
        """Record a gap: pieces of the text may be missing."""
        if not self.state.is_finished:
            self.state = replace(self.state, is_text_complete=False)
        return self.state

    def _write(self, state: JobState, notification: Notification) -> JobState:
        """Add a piece. The text ends before the first missing piece; without its beginning, it is
        empty.
        """
        data, fold = notification.data, notification.fold or {}
        piece = _text(data.get("delta")) or ""
        offset = _number(fold.get("offset")) if fold.get("mode") == "append" else None
        if offset is not None:
            self._run, self._attempt = data.get("runId"), _number(data.get("attempt"), 1.0) or 1.0
            self._next_index = None
            return self._write_folded(state, piece, fold, int(offset))
        return self._write_next(state, piece, data)

    def _write_folded(
        self, state: JobState, piece: str, fold: Mapping[str, Any], offset: int
    ) -> JobState:
        """Add a piece by its offset: see PROTOCOL.md, "Folding"."""
        attempt = _number(fold.get("attempt"), 0.0) or 0.0
        is_other = fold.get("key") != self._key
        if not is_other and attempt < self._fence:
            return state
        self._key, self._fence = fold.get("key"), attempt
        text = "" if is_other else state.text
        if offset > len(text):
            return replace(state, text=text, is_text_complete=False)
        return replace(state, text=text[:offset] + piece, is_text_complete=True)

    def _write_next(self, state: JobState, piece: str, data: Mapping[str, Any]) -> JobState:
        """Add a piece that is not folded, by its offset if it has one, else by its index."""
        index, attempt = _number(data.get("index")), _number(data.get("attempt"), 1.0) or 1.0
        offset = _number(data.get("offset"))
        is_same_run = data.get("runId") == self._run
        if is_same_run and attempt < self._attempt:
            return state  # discard the text of an earlier attempt
        is_other = not is_same_run or attempt != self._attempt
        self._run, self._attempt = data.get("runId"), attempt
        if offset is not None and index != 0 and not is_other:
            if offset > len(state.text):
                return replace(state, is_text_complete=False)
            is_repeated = offset + len(piece) <= len(state.text)
            text = state.text if is_repeated else state.text[: int(offset)] + piece
            return replace(state, text=text, is_text_complete=True)
        if index == 0:  # each attempt starts its text anew
            self._next_index = 1
            return replace(state, text=piece, is_text_complete=True)
        if not is_other and index is not None and self._next_index is not None:
            if index == self._next_index:
                self._next_index = index + 1
                return replace(state, text=state.text + piece, is_text_complete=True)
            if index < self._next_index:
                return state  # a duplicate
        self._next_index = None
        return replace(state, text="" if is_other else state.text, is_text_complete=False)

    def mark_stalled(self) -> JobState:
        """Mark the job as stalled. A later notification reverts that."""
        if self.state.status in ("pending", "retrying"):
            self.state = replace(self.state, status="stalled")
        return self.state


def _completed(state: JobState) -> JobState:
    """Apply the success. Missing text is taken from the result: a string, or the member that
    contains the text.
    """
    state = replace(state, progress=1.0)
    if state.is_text_complete:
        return state
    for name in ("response", "text", "result"):
        if (whole := _text(state.result.get(name))) is not None:
            return replace(state, text=whole, is_text_complete=True)
    return state


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object, default: float | None = None) -> float | None:
    """Return a count or a duration. What cannot be one, such as NaN or 1e999, is the default."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2**53:
        return default
    return value
