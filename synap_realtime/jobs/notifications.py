"""What the user hears of a run: notifications with stable ids, so that a repeat is no second one.

See PROTOCOL.md, "Jobs".
"""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ..errors import JobError, deciding_error
from ..protocol.notification import Notification, Status
from .arguments import check_stall_after_s
from .job_types import JobType
from .truncation import truncate_result

MAX_ID = 128
"""Characters of a notification's id; a longer one is sent as its hash, which is as stable."""

MAX_TEXT = 2000
"""Characters of an error or a label."""

STALL_AFTER_S = 60.0


def user_facing_error(error: BaseException | str, run_id: str) -> str:
    """What a user may read of an exception: a :class:`JobError`'s message, else a neutral text.

    An exception group has the message of the exception that decides
    (:func:`~synap_realtime.errors.deciding_error`).
    """
    if isinstance(error, str):
        return error
    error = deciding_error(error)
    if isinstance(error, JobError):
        with suppress(Exception):  # its __str__ may be of the application, and fail
            return str(error) or generic_error(run_id)
    return generic_error(run_id)


def generic_error(run_id: str) -> str:
    return f"Something went wrong (run {run_id})."


@dataclass(frozen=True, slots=True)
class RunNotifications:
    """The notifications of one attempt of a run: pure, somebody else sends them.

    Attributes:
        run_id: the same on every attempt.
        attempt: counted from 1.
        max_attempts: None if the framework does not tell.
        stall_after_s: how long silence is normal.

    Raises:
        InvalidArgumentError: ``stall_after_s`` is no positive, finite number of seconds.
    """

    job_type: JobType
    run_id: str
    attempt: int = 1
    max_attempts: int | None = None
    stall_after_s: float = STALL_AFTER_S

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_id", str(self.run_id))
        object.__setattr__(self, "stall_after_s", check_stall_after_s(self.stall_after_s))

    def started(self) -> Notification:
        """The run has begun."""
        data = {**self._attempts(self.attempt), "stallAfterS": self.stall_after_s}
        return self._notification(self.job_type.started, data, "pending")

    def progress(
        self, n: str, fraction: float | None, label: str | None, stall_after_s: float | None
    ) -> Notification:
        """How far it is. ``n`` tells it from others of the run, and is the same in a repeat."""
        data: dict[str, Any] = self._attempts(self.attempt)
        if fraction is not None:
            data["progress"] = fraction
        if label is not None:
            data["label"] = _short(label)
        data["stallAfterS"] = stall_after_s or self.stall_after_s
        return self._notification(self.job_type.progress, data, "pending", n)

    def suspended(self, what: str) -> Notification:
        """It waits for something that may take any time: without ``stallAfterS``."""
        data = self._attempts(self.attempt)
        return self._notification(self.job_type.progress, data, "pending", f"waits:{what}")

    def delta(self, stream: str, index: int, text: str) -> Notification:
        """A piece of a text. Index 0 begins anew, whatever was shown before."""
        data = {**self._attempts(self.attempt), "index": index, "delta": text}
        return self._notification(self.job_type.delta, data, "pending", f"{stream}:{index}")

    def retrying(
        self, error: BaseException | str, *, step: str = "run", retry_in_s: float | None = None
    ) -> Notification:
        """This attempt failed and another will come.

        Args:
            error: why; a text must be written for the user.
            part: which part of the job is tried again.
            in_s: when, if that is known.
        """
        data = self._attempts(self.attempt + 1)
        data["error"] = _short(user_facing_error(error, self.run_id))
        if retry_in_s is not None and not 0 <= retry_in_s < math.inf:
            retry_in_s = None
        if retry_in_s is not None:
            data["retryInS"] = retry_in_s
        data["stallAfterS"] = self.stall_after_s + (retry_in_s or 0)
        n = f"{step}:{self.attempt + 1}"
        return self._notification(self.job_type.retrying, data, "pending", n)

    def completed(self, result: object) -> Notification:
        """The run ended well. A result that is too large, or no JSON, is told in part."""
        return self._end(self.job_type.completed, truncate_result(result), "success")

    def failed(self, error: BaseException | str) -> Notification:
        """The run is over and did not end well: no attempt will follow."""
        text = _short(user_facing_error(error, self.run_id))
        return self._end(self.job_type.failed, {"error": text, "runId": self.run_id}, "error")

    def cancelled(self, reason: str = "It was cancelled.") -> Notification:
        """The run was ended from outside before it was done."""
        data = {"error": _short(reason), "runId": self.run_id}
        return self._end(self.job_type.cancelled, data, "error")

    def _attempts(self, attempt: int) -> dict[str, Any]:
        data: dict[str, Any] = {"runId": self.run_id, "attempt": attempt}
        if self.max_attempts is not None:
            data["maxAttempts"] = max(attempt, self.max_attempts)
        return data

    def _end(self, type: str, data: dict[str, Any], status: Status) -> Notification:
        """All ends of a run have one id, so that whatever happens only the first is one."""
        id = _bounded_id(f"{self.run_id}:ended")
        return Notification(id=id, type=type, data=data, status=status)

    def _notification(
        self, type: str, data: dict[str, Any], status: Status, n: str | None = None
    ) -> Notification:
        id = f"{self.run_id}:{type}" if n is None else f"{self.run_id}:{type}:{n}"
        return Notification(id=_bounded_id(id), type=type, data=data, status=status)


def _bounded_id(id: str) -> str:
    return id if len(id) <= MAX_ID else hashlib.sha256(id.encode()).hexdigest()


def _short(text: str) -> str:
    text = text.encode(errors="replace").decode()  # a lone surrogate would not get through
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
