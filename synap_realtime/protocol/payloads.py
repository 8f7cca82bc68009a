"""What ``data`` holds: of any job on its way, and of the five families when they have ended well.

The names on the wire (camelCase) are those of the mission's report.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from .notification import WireModel


def _absent_not_null(schema: dict[str, Any]) -> None:
    """A member that is None is left out on the wire: its schema says so, and knows no null."""
    for name, member in schema.get("properties", {}).items():
        if member.get("default", ...) is None and "anyOf" in member:
            del member["default"]
            options = [option for option in member.pop("anyOf") if option != {"type": "null"}]
            member.update(options[0] if len(options) == 1 else {"anyOf": options})
            if name in schema.get("required", ()):  # it is, of what is sent
                schema["required"].remove(name)


class Payload(WireModel):
    """What every payload of ours keeps to: a member is absent, never null."""

    model_config = ConfigDict(
        json_schema_extra=_absent_not_null,
        json_schema_serialization_defaults_required=True,
    )


RunId = Annotated[str, Field(description="The same on every attempt.")]
Date = Annotated[str, Field(description="ISO 8601, a date or a time.")]
Error = Annotated[str, Field(description="Written for the user.")]
Attempt = Annotated[int, Field(ge=1, description="Which attempt it is, from 1; absent if unknown.")]
MaxAttempts = Annotated[int, Field(ge=1, description="How many there are; absent if unknown.")]
StallAfterS = Annotated[
    float, Field(gt=0, description="After so many seconds without news the job counts as stalled.")
]


class NoteCreated(Payload):
    """``note.creation.completed``."""

    entity_id: str
    title: str
    file_url: str
    file_path: str


class TaskCreated(Payload):
    """``task.creation.completed``."""

    entity_id: str
    title: str
    status: str
    priority: str
    due_date: Date | None = None
    project_id: str | None = None


class TaskCompleted(Payload):
    """``task.completion.completed``."""

    entity_id: str
    status: str
    completed_at: Annotated[str, Field(description="RFC 3339, in UTC.")]


class ProjectCreated(Payload):
    """``project.creation.completed``."""

    entity_id: str
    title: str
    description: str | None = None
    start_date: Date | None = None
    end_date: Date | None = None


class ResponseGenerated(Payload):
    """``conversation.response.generated``."""

    conversation_id: str
    thread_id: str
    user_message_id: str
    assistant_message_id: str
    response: str
    fallback: Annotated[
        bool, Field(description="True if no reply could be had; ``response`` is the stand-in.")
    ] = False


class ResponseDelta(Payload):
    """``conversation.response.delta``: a piece of the reply, while it is being written.

    A new ``attempt`` begins the reply anew.
    """

    run_id: RunId
    conversation_id: str
    index: Annotated[int, Field(ge=0, description="Counts this attempt's pieces, from 0.")]
    delta: Annotated[str, Field(description="The text that comes next.")]
    attempt: Attempt | None = None


class JobStarted(Payload):
    """``….started``: the first attempt begins."""

    run_id: RunId
    stall_after_s: StallAfterS


class JobProgress(Payload):
    """``….progress``: how far the job has come."""

    run_id: RunId
    progress: Annotated[float, Field(ge=0, le=1, description="From 0 to 1.")]
    label: Annotated[str, Field(description="What it does now, in the user's words.")] | None = None
    attempt: Attempt | None = None
    max_attempts: MaxAttempts | None = None
    stall_after_s: StallAfterS


class JobRetrying(Payload):
    """``….retrying``: an attempt failed and another will come."""

    run_id: RunId
    error: Error
    attempt: Attempt | None = None
    max_attempts: MaxAttempts | None = None
    retry_in_s: (
        Annotated[float, Field(ge=0, description="Seconds until the next attempt, if known.")]
        | None
    ) = None
    stall_after_s: StallAfterS


class JobFailed(Payload):
    """``….failed``: no attempt will follow."""

    error: Error
    run_id: RunId
    attempt: Attempt | None = None


class JobCancelled(Payload):
    """``….cancelled``: the run was ended from outside."""

    error: Error
    run_id: RunId


class Truncated(Payload):
    """A result that was too large for a notification: the news came without it."""

    truncated: Literal[True]
