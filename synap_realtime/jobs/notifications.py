"""Build the notifications of a run. Their ids are stable, so repeats are deduplicated.

See PROTOCOL.md, "Jobs".
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import JobError, deciding_error
from ..protocol.folding import MAX_ATTEMPT, is_key
from ..protocol.notification import Notification, Status
from .arguments import check_stall_after_s
from .job_types import JobType
from .truncation import truncate_result

MAX_ID = 128
"""Maximum length of a notification id, in characters. A longer id is replaced by its hash."""

MAX_TEXT = 2000
"""Maximum length of an error or a label, in characters."""

MAX_RUN_ID = 128
"""Maximum length of a run's id in the member ``job``, in characters."""

FENCES_PER_ATTEMPT = 1000
"""How many executions of one attempt can be told apart: each takes the text over from the last."""

_ATTEMPTS_PER_STEP = 32  # on Inngest, which allows 20 retries

STALL_AFTER_S = 60.0


def user_facing_error(error: BaseException | str, run_id: str) -> str:
    """Return the text of an exception for the user: a :class:`JobError`'s message, or a generic
    text.

    For an exception group, the text of its deciding exception
    (:func:`~synap_realtime.errors.deciding_error`) is used.
    """
    if isinstance(error, str):
        return error
    error = deciding_error(error)
    if isinstance(error, JobError):
        with suppress(Exception):  # the application's __str__ may raise
            return str(error) or generic_error(run_id)
    return generic_error(run_id)


def generic_error(run_id: str) -> str:
    return f"Something went wrong (run {run_id})."


@dataclass(frozen=True, slots=True)
class RunNotifications:
    """Build the notifications of one attempt of a run. Pure: the caller sends them.

    Attributes:
        run_id: the same on every attempt.
        attempt: counted from 1.
        max_attempts: None if the framework does not provide it.
        stall_after_s: how long the job may stay silent before it counts as stalled.
        step: how many steps of the run have completed, on a framework that counts the attempts of
            each step from 1.

    Raises:
        InvalidArgumentError: ``stall_after_s`` is not a positive, finite number of seconds.
    """

    job_type: JobType
    run_id: str
    attempt: int = 1
    max_attempts: int | None = None
    stall_after_s: float = STALL_AFTER_S
    step: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_id", str(self.run_id))
        object.__setattr__(self, "stall_after_s", check_stall_after_s(self.stall_after_s))

    @property
    def fence(self) -> int:
        """The ``fold.attempt`` of this attempt: 1000, 2000, …

        An execution that finds a text of another execution of the same attempt takes it over with
        the next number.
        """
        return self._fence_of(self.attempt)

    def _fence_of(self, attempt: int) -> int:
        number = self.step * _ATTEMPTS_PER_STEP + attempt
        return min(number, MAX_ATTEMPT // FENCES_PER_ATTEMPT - 1) * FENCES_PER_ATTEMPT

    @property
    def text_key(self) -> str | None:
        """The fold key of the run's text; None if the run's id cannot be part of a key."""
        return self._key("text")

    def _key(self, kind: str) -> str | None:
        key = f"{self.run_id}:{kind}"
        return key if is_key(key) else None

    def started(self) -> Notification:
        """Return the notification that the run has started."""
        data = {**self._attempts(self.attempt), "stallAfterS": self.stall_after_s}
        return self._event("started", self.job_type.started, data)

    def progress(
        self, n: str, fraction: float | None, label: str | None, stall_after_s: float | None
    ) -> Notification:
        """Return a progress notification. ``n`` identifies it within the run and must be
        repeatable.
        """
        data: dict[str, Any] = self._attempts(self.attempt)
        if fraction is not None:
            data["progress"] = fraction
        if label is not None:
            data["label"] = _short(label)
        data["stallAfterS"] = stall_after_s or self.stall_after_s
        return self._progress(data, n)

    def suspended(self, what: str) -> Notification:
        """Return the notification that the run waits for an event, which may take any time. It has
        no ``stallAfterS``.
        """
        return self._progress(self._attempts(self.attempt), f"waits:{what}")

    def delta(self, stream: str, index: int, text: str) -> Notification:
        """Return a notification with a piece of text. Index 0 replaces all text shown before."""
        data = {**self._attempts(self.attempt), "index": index, "delta": text}
        id = _bounded_id(f"{self.run_id}:{self.job_type.delta}:{stream}:{index}")
        return Notification(id=id, type=self.job_type.delta, data=data, status="pending")

    def retrying(
        self, error: BaseException | str, *, step: str = "run", retry_in_s: float | None = None
    ) -> Notification:
        """Return the notification that this attempt failed and another will follow.

        Args:
            error: the cause; a string must be written for the user.
            step: the step of the job that is retried.
            retry_in_s: seconds until the next attempt, if known.
        """
        data = self._attempts(self.attempt + 1)
        data["error"] = _short(user_facing_error(error, self.run_id))
        if retry_in_s is not None and not 0 <= retry_in_s < math.inf:
            retry_in_s = None
        if retry_in_s is not None:
            data["retryInS"] = retry_in_s
        data["stallAfterS"] = self.stall_after_s + (retry_in_s or 0)
        n = f"{step}:{self.attempt + 1}"
        return self._event("retrying", self.job_type.retrying, data, n)

    def completed(self, result: object) -> Notification:
        """Return the success notification. A result that is too large or not JSON is truncated."""
        data = truncate_result(result)
        return self._end("completed", self.job_type.completed, data, "success")

    def failed(self, error: BaseException | str) -> Notification:
        """Return the notification that the run has failed and no attempt follows."""
        data = {"error": _short(user_facing_error(error, self.run_id)), "runId": self.run_id}
        return self._end("failed", self.job_type.failed, data, "error")

    def cancelled(self, reason: str = "It was cancelled.") -> Notification:
        """Return the notification that the run was cancelled."""
        data = {"error": _short(reason), "runId": self.run_id}
        return self._end("cancelled", self.job_type.cancelled, data, "error")

    def _attempts(self, attempt: int) -> dict[str, Any]:
        data: dict[str, Any] = {"runId": self.run_id, "attempt": attempt}
        if self.max_attempts is not None:
            data["maxAttempts"] = max(attempt, self.max_attempts)
        return data

    def _progress(self, data: dict[str, Any], n: str) -> Notification:
        """Build a notification that replaces the run's last progress in the log."""
        key = self._key("progress")
        fold = None if key is None else {"key": key, "mode": "replace", "attempt": self.fence}
        return self._event("progress", self.job_type.progress, data, n, fold=fold)

    def _end(self, event: str, type: str, data: dict[str, Any], status: Status) -> Notification:
        """Build a terminal notification. All share one id, so that only the first is delivered."""
        id = _bounded_id(f"{self.run_id}:ended")
        return Notification(id=id, type=type, data=data, status=status, **self._members(event))

    def _event(
        self,
        event: str,
        type: str,
        data: dict[str, Any],
        n: str | None = None,
        *,
        fold: Mapping[str, Any] | None = None,
    ) -> Notification:
        id = f"{self.run_id}:{type}" if n is None else f"{self.run_id}:{type}:{n}"
        members = self._members(event, data.get("attempt"))
        if fold is not None:
            members["fold"] = fold
        return Notification(id=_bounded_id(id), type=type, data=data, status="pending", **members)

    def _members(self, event: str, attempt: int | None = None) -> dict[str, Any]:
        """Return the member ``job``, without the user, who depends on the recipient."""
        if not 0 < len(self.run_id) <= MAX_RUN_ID:
            return {}
        job = {"event": event, "name": self.job_type.name, "runId": self.run_id}
        return {"job": job if attempt is None else {**job, "attempt": self._fence_of(attempt)}}


def _bounded_id(id: str) -> str:
    return id if len(id) <= MAX_ID else hashlib.sha256(id.encode()).hexdigest()


def _short(text: str) -> str:
    text = text.encode(errors="replace").decode()  # UTF-8 cannot encode a lone surrogate
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
