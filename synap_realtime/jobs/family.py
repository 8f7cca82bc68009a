"""A family of jobs: the names of its events and notifications."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Family:
    """``note.creation`` and all that is named after it.

    Attributes:
        name: dotted, ``note.creation``.
        requested: the event that starts a job.
        completed: how it ends well, as a notification and as an event for other jobs.
        delta: a piece of the text that it writes.
    """

    name: str
    requested: str = ""
    completed: str = ""
    delta: str = ""

    def __post_init__(self) -> None:
        if not self.requested:
            object.__setattr__(self, "requested", f"{self.name}.requested")
        if not self.completed:
            object.__setattr__(self, "completed", f"{self.name}.completed")
        if not self.delta:
            object.__setattr__(self, "delta", f"{self.name}.delta")

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


NOTE_CREATION = Family("note.creation")
TASK_CREATION = Family("task.creation")
TASK_COMPLETION = Family("task.completion")
PROJECT_CREATION = Family("project.creation")
CONVERSATION_MESSAGE = Family(
    "conversation.message",
    requested="conversation.message.sent",
    completed="conversation.response.generated",
    delta="conversation.response.delta",
)
"""The mission's names: a message that was sent leads to a response that was generated."""
