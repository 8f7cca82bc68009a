"""Job types: the names of a job's events and notifications, and its result type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import InvalidArgumentError
from ..protocol.notification import Notification
from ..protocol.payloads import (
    NoteCreated,
    ProjectCreated,
    ResponseGenerated,
    TaskCompleted,
    TaskCreated,
)

_PARTS = ("started", "progress", "retrying", "failed", "cancelled", "completed", "delta")


@dataclass(frozen=True, slots=True)
class JobType:
    """A kind of job, such as ``note.creation``, and the names derived from it.

    Attributes:
        name: dotted, ``note.creation``.
        trigger_event: the event that starts a job.
        completed: the type of the success notification, and of the event sent to other jobs.
        delta: the type of a notification with a piece of generated text.
        payload: the type of the ``completed`` data, for ``synap-realtime generate-types``: a
            pydantic model, a TypedDict or a dataclass. None: any JSON object. Data is not validated
            against it.

    Raises:
        InvalidArgumentError: the payload is not a class; or a name is not text, is reserved, or
            exceeds the maximum length of a notification type.
    """

    name: str
    trigger_event: str = ""
    completed: str = ""
    delta: str = ""
    payload: type[Any] | None = None

    def __post_init__(self) -> None:
        if not self.trigger_event:
            object.__setattr__(self, "trigger_event", f"{self.name}.requested")
        if not self.completed:
            object.__setattr__(self, "completed", f"{self.name}.completed")
        if not self.delta:
            object.__setattr__(self, "delta", f"{self.name}.delta")
        if self.payload is not None and not isinstance(self.payload, type):
            raise InvalidArgumentError("payload", f"expected a class, got {self.payload!r}")
        self._check_names()

    def _check_names(self) -> None:
        """Reject invalid names now rather than when the server rejects them at the end of a run."""
        name: object = self.name
        if not isinstance(name, str) or not name:
            raise InvalidArgumentError("name", f"expected text, got {name!r}")
        for part in _PARTS:
            type = getattr(self, part)
            try:
                Notification(type=type, data={})
            except ValueError:
                is_derived = isinstance(type, str) and type == f"{self.name}.{part}"
                raise InvalidArgumentError(
                    "name" if is_derived else part,
                    f"{str(type)[:40]!r}… cannot be a notification's type: that is 1 to 128 "
                    "characters of Unicode text and does not begin with 'synap.'",
                ) from None

    @property
    def started(self) -> str:
        return f"{self.name}.started"

    @property
    def progress(self) -> str:
        return f"{self.name}.progress"

    @property
    def retrying(self) -> str:
        return f"{self.name}.retrying"

    @property
    def failed(self) -> str:
        return f"{self.name}.failed"

    @property
    def cancelled(self) -> str:
        return f"{self.name}.cancelled"


NOTE_CREATION = JobType("note.creation", payload=NoteCreated)
TASK_CREATION = JobType("task.creation", payload=TaskCreated)
TASK_COMPLETION = JobType("task.completion", payload=TaskCompleted)
PROJECT_CREATION = JobType("project.creation", payload=ProjectCreated)
CONVERSATION_MESSAGE = JobType(
    "conversation.message",
    trigger_event="conversation.message.sent",
    completed="conversation.response.generated",
    delta="conversation.response.delta",
    payload=ResponseGenerated,
)
"""Named by the mission: a sent message leads to a generated response."""

BUILTIN_JOB_TYPES = (
    NOTE_CREATION,
    TASK_CREATION,
    TASK_COMPLETION,
    PROJECT_CREATION,
    CONVERSATION_MESSAGE,
)
"""The job types with a handler in :mod:`synap_realtime.handlers`."""
