"""Define the payloads of lifecycle notifications, and the results of the built-in job types.

See PROTOCOL.md, "Jobs". The names on the wire are camelCase.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from .notification import WireModel


def _absent_not_null(schema: dict[str, Any]) -> None:
    """Describe optional members in the schema as absent, not null, as they are on the wire."""
    for name, member in schema.get("properties", {}).items():
        if member.get("default", ...) is None and "anyOf" in member:
            del member["default"]
            options = [option for option in member.pop("anyOf") if option != {"type": "null"}]
            member.update(options[0] if len(options) == 1 else {"anyOf": options})
            if name in schema.get("required", ()):  # pydantic lists members with defaults, too
                schema["required"].remove(name)


class Payload(WireModel):
    """The base class of payloads. An unset member is absent on the wire, never null."""

    model_config = ConfigDict(
        json_schema_extra=_absent_not_null,
        json_schema_serialization_defaults_required=True,
    )


RunId = Annotated[str, Field(description="The same on every attempt.")]
Date = Annotated[str, Field(description="ISO 8601, a date or a time.")]
Error = Annotated[str, Field(description="An error message for the user.")]
Attempt = Annotated[int, Field(ge=1, description="Counted from 1.")]
MaxAttempts = Annotated[
    int, Field(ge=1, description="The maximum number of attempts; absent if unknown.")
]
StallAfterS = Annotated[
    float,
    Field(
        gt=0, description="Seconds without a notification after which the run counts as stalled."
    ),
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
        bool, Field(description="True if no reply was available; ``response`` is the fallback.")
    ] = False


class JobStarted(Payload):
    """``….started``: the run has started."""

    run_id: RunId
    attempt: Attempt
    max_attempts: MaxAttempts | None = None
    stall_after_s: StallAfterS


class JobProgress(Payload):
    """``….progress``: the progress of the run, or that it is suspended."""

    run_id: RunId
    attempt: Attempt
    max_attempts: MaxAttempts | None = None
    progress: Annotated[float, Field(ge=0, le=1, description="From 0 to 1.")] | None = None
    label: (
        Annotated[str, Field(description="The current activity, written for the user.")] | None
    ) = None
    stall_after_s: (
        Annotated[
            float,
            Field(
                gt=0, description="As in started; absent if the run may be suspended for any time."
            ),
        ]
        | None
    ) = None


class JobDelta(Payload):
    """``….delta``: a part of a text that the job is generating."""

    run_id: RunId
    attempt: Attempt
    max_attempts: MaxAttempts | None = None
    index: Annotated[int, Field(ge=0, description="Counts the parts. 0 restarts the text.")]
    delta: Annotated[str, Field(description="The next part of the text.")]
    offset: (
        Annotated[
            int,
            Field(
                ge=0,
                description="Code points of the text before this part, if it is not folded "
                "(fold.offset).",
            ),
        ]
        | None
    ) = None


class JobRetrying(Payload):
    """``….retrying``: an attempt failed, and ``attempt`` is the number of the next one."""

    run_id: RunId
    attempt: Attempt
    max_attempts: MaxAttempts | None = None
    error: Error
    retry_in_s: (
        Annotated[float, Field(ge=0, description="Seconds until the next attempt, if known.")]
        | None
    ) = None
    stall_after_s: StallAfterS


class JobFailed(Payload):
    """``….failed``: the run failed, and no attempt will follow."""

    error: Error
    run_id: RunId


class JobCancelled(Payload):
    """``….cancelled``: the run was cancelled."""

    error: Error
    run_id: RunId


class Truncated(Payload):
    """The markers in a result that was truncated to fit into a notification."""

    truncated: Literal[True]
    omitted: Annotated[list[str], Field(description="The members that were left out.")]
