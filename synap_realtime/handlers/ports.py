"""Interfaces that the application implements for the handlers: database, storage, responder.

All ids derive from the run. After a crash or a retry, a method may be called again with the same
ids: the second call must have no further effect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Entity:
    """A note, a task or a project. Dates are ISO 8601."""

    id: str
    kind: Literal["note", "task", "project"]
    user_id: str
    title: str
    description: str | None = None
    file_url: str | None = None
    file_path: str | None = None
    start_date: str | None = None
    end_date: str | None = None


@dataclass(frozen=True, slots=True)
class TaskDetails:
    """The details of a task, in addition to its entity."""

    entity_id: str
    status: str
    priority: str
    due_date: str | None
    project_id: str | None


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    id: str
    conversation_id: str
    user_id: str
    role: Literal["user", "assistant"]
    content: str


class Entities(Protocol):
    """The application's database of entities."""

    async def create(self, entity: Entity) -> None:
        """Store an entity; do not change an existing one with its id."""
        ...

    async def create_task_details(self, details: TaskDetails) -> None:
        """Store a task's details; do not change existing ones."""
        ...

    async def complete_task(self, entity_id: str, user_id: str) -> str | None:
        """Mark a task as done if it is not, and update its entity.

        Returns:
            when it was first done (RFC 3339, UTC); None if this user has no such task.
        """
        ...


class Messages(Protocol):
    """The application's conversations."""

    async def append(self, message: Message) -> None:
        """Append a message; do not change or move an existing one with its id."""
        ...

    async def history(self, conversation_id: str, user_id: str) -> Sequence[Message]:
        """Return this user's conversation, oldest message first; empty if there is none."""
        ...


class Storage(Protocol):
    """Stores contents as files."""

    async def put(self, path: str, content: bytes, content_type: str) -> str:
        """Write a file, replacing an existing one; return its address for reading."""
        ...


class Responder(Protocol):
    """Generates the reply in a conversation, usually with a model."""

    def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        """Return the assistant's next message in pieces (an async generator).

        An exception, even after some pieces, makes the handler use a fallback reply.
        """
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """The dependencies of all handlers, provided by the application."""

    entities: Entities
    messages: Messages
    storage: Storage
    responder: Responder
