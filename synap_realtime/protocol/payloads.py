"""What ``data`` holds when one of the five families has ended well, and when any has failed.

The names on the wire (camelCase) are those of the mission's report.
"""

from __future__ import annotations

from .notification import WireModel


class NoteCreated(WireModel):
    """``note.creation.completed``."""

    entity_id: str
    title: str
    file_url: str
    file_path: str


class TaskCreated(WireModel):
    """``task.creation.completed``. ``due_date`` is an ISO 8601 date or time."""

    entity_id: str
    title: str
    status: str
    priority: str
    due_date: str | None = None
    project_id: str | None = None


class TaskCompleted(WireModel):
    """``task.completion.completed``. ``completed_at`` is RFC 3339, UTC."""

    entity_id: str
    status: str
    completed_at: str


class ProjectCreated(WireModel):
    """``project.creation.completed``. Dates are ISO 8601."""

    entity_id: str
    title: str
    description: str | None = None
    start_date: str | None = None
    end_date: str | None = None


class ResponseGenerated(WireModel):
    """``conversation.response.generated``.

    ``fallback`` is true when no reply could be had and ``response`` is the stand-in.
    """

    conversation_id: str
    thread_id: str
    user_message_id: str
    assistant_message_id: str
    response: str
    fallback: bool = False


class JobFailed(WireModel):
    """``….failed`` and ``….retrying``: ``error`` is written for the user."""

    error: str
    run_id: str
