"""What the handlers need from an application: its stores, its storage, its responder.

Everything is called with ids that come from the run, and may be called again with the same ones
after a crash or a retry: the second call must leave what the first one left.
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
    """What a task has beside its entity."""

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
        """Keep an entity; one with its id that exists already stays as it is."""
        ...

    async def create_task_details(self, details: TaskDetails) -> None:
        """Keep a task's details; those that exist already stay as they are."""
        ...

    async def complete_task(self, entity_id: str, user_id: str) -> str | None:
        """Set a task to done, unless it is, and touch its entity.

        Returns:
            When it was done (RFC 3339, UTC), the first time; None if this user has no such task.
        """
        ...


class Messages(Protocol):
    """The application's conversations."""

    async def append(self, message: Message) -> None:
        """Add a message at the end; one with its id that exists already stays where it is."""
        ...

    async def history(self, conversation_id: str, user_id: str) -> Sequence[Message]:
        """This user's conversation so far, oldest first; empty if there is none."""
        ...


class Storage(Protocol):
    """Where contents are kept as files."""

    async def put(self, path: str, content: bytes, content_type: str) -> str:
        """Write a file, over one that is there; returns the address to read it at."""
        ...


class Responder(Protocol):
    """Writes the reply in a conversation: a model, usually."""

    def reply(self, history: Sequence[Message]) -> AsyncIterator[str]:
        """The next message of the assistant, in pieces as it is written (an async generator).

        May raise, also in the middle: then a stand-in is the reply.
        """
        ...


@dataclass(frozen=True, slots=True)
class Services:
    """All of it, as an application puts it together."""

    entities: Entities
    messages: Messages
    storage: Storage
    responder: Responder
