"""What the user hears of a run: notifications with stable ids, so that a repeat is no second one.

See the README, "What the user sees".
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..errors import JobError
from ..protocol.notification import Notification, Status, to_json_object
from ..protocol.payloads import JobFailed
from .family import Family

MAX_ID = 128
"""Characters of a notification's id; a longer one is sent as its hash, which is as stable."""


def readable_error(error: BaseException, run_id: str) -> str:
    """What a user may read of an exception: a :class:`JobError`'s message, else a neutral text."""
    if isinstance(error, JobError) and str(error):
        return str(error)
    return neutral_error(run_id)


def neutral_error(run_id: str) -> str:
    return f"Something went wrong (run {run_id})."


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """The notifications of one run: pure, somebody else sends them."""

    family: Family
    run_id: str

    def started(self) -> Notification:
        """The first attempt has begun."""
        return self._notification(self.family.started, {"runId": self.run_id}, "pending")

    def retrying(self, attempt: int, max_attempts: int, error: str, part: str) -> Notification:
        """An attempt failed and another will come.

        Args:
            attempt: the attempt that will come, from 2.
            max_attempts: how many there are in all.
            error: why the last one failed, in the user's words.
            part: which part of the job is tried again.
        """
        data = {
            "attempt": attempt,
            "maxAttempts": max_attempts,
            "error": error,
            "runId": self.run_id,
        }
        return self._notification(self.family.retrying, data, "pending", f"{part}:{attempt}")

    def completed(self, result: Mapping[str, Any] | BaseModel) -> Notification:
        """The run ended well.

        Raises:
            InvalidArgumentError: the result has no JSON form.
        """
        data = to_json_object("result", result)
        return self._notification(self.family.completed, data, "success")

    def failed(self, error: str) -> Notification:
        """The run is over and did not end well: no attempt will follow."""
        payload = JobFailed(error=error, run_id=self.run_id)
        return self._notification(self.family.failed, to_json_object("error", payload), "error")

    def _notification(
        self, type: str, data: dict[str, Any], status: Status, n: str | None = None
    ) -> Notification:
        id = f"{self.run_id}:{type}" if n is None else f"{self.run_id}:{type}:{n}"
        if len(id) > MAX_ID:
            id = hashlib.sha256(id.encode()).hexdigest()
        return Notification(id=id, type=type, data=data, status=status)
