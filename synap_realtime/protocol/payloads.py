"""What ``data`` holds: of any job on its way, and of the five families when they have ended well.

The names on the wire (camelCase) are those of the mission's report. See PROTOCOL.md, "Jobs".
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
Attempt = Annotated[int, Field(ge=1, description="Counted from 1.")]
MaxAttempts = Annotated[int, Field(ge=1, description="How many there are; absent if unknown.")]
StallAfterS = Annotated[
    float, Field(gt=0, description="Seconds of silence that are normal; after them it is stalled.")
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


class JobStarted(Payload):
    """``….started``: the run begins."""

    run_id: RunId
    attempt: Attempt
    max_attempts: MaxAttempts | None = None
    stall_after_s: StallAfterS


class JobProgress(Payload):
    """``….progress``: how far the job has come, or that it waits."""

    run_id: RunId
    attempt: Attempt
    max_attempts: MaxAttempts | None = None
    progress: Annotated[float, Field(ge=0, le=1, description="From 0 to 1.")] | None = None
    label: Annotated[str, Field(description="What it does now, in the user's words.")] | None = None
    stall_after_s: (
        Annotated[
            float,
            Field(gt=0, description="As when it started; absent if it may wait for any time."),
        ]
        | None
    ) = None


class JobDelta(Payload):
    """``….delta``: a piece of a text, while the job writes it."""

    run_id: RunId
    attempt: Attempt
    max_attempts: MaxAttempts | None = None
    index: Annotated[int, Field(ge=0, description="Counts the pieces. 0 begins the text anew.")]
    delta: Annotated[str, Field(description="The text that comes next.")]


class JobRetrying(Payload):
    """``….retrying``: an attempt failed, and ``attempt`` is the one that will come."""

    run_id: RunId
    attempt: Attempt
    max_attempts: MaxAttempts | None = None
    error: Error
    retry_in_s: (
        Annotated[float, Field(ge=0, description="Seconds until it comes, if known.")] | None
    ) = None
    stall_after_s: StallAfterS


class JobFailed(Payload):
    """``….failed``: it ended badly, and no attempt will follow."""

    error: Error
    run_id: RunId


class JobCancelled(Payload):
    """``….cancelled``: it was ended from outside."""

    error: Error
    run_id: RunId


class Truncated(Payload):
    """Of a result that did not fit into a notification as a whole."""

    truncated: Literal[True]
    omitted: Annotated[list[str], Field(description="The members that were left out.")]
