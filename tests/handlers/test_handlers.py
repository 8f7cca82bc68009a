"""The five handlers on a real database and a real storage, run without a framework."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from sqlalchemy import func, select

from examples.notes_app.database import Base, Database, EntityRow, MessageRow, TaskRow
from examples.notes_app.replies import ModelResponder
from examples.notes_app.storage import ObjectStorage
from synap_realtime import InvalidInputError
from synap_realtime.handlers import (
    Message,
    Services,
    handle_conversation_message,
    handle_note_creation,
    handle_project_creation,
    handle_task_completion,
    handle_task_creation,
)
from synap_realtime.handlers.conversation_message import FALLBACK_REPLY

T = TypeVar("T")


@dataclass
class InProcessRun:
    """A :class:`JobRun` without a framework: steps are done each time, as after a crash."""

    data: Mapping[str, Any]
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    user_id: str | None = "42"
    request_id: str | None = "r1"
    steps: list[str] = field(default_factory=list)
    events: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    async def step(self, id: str, do: Callable[[], Awaitable[T]]) -> T:
        self.steps.append(id)
        return await do()

    async def send_event(self, id: str, name: str, data: Mapping[str, Any]) -> None:
        self.steps.append(id)
        self.events.append((name, data))


@dataclass
class World:
    services: Services
    database: Database
    folder: Path

    async def count(self, table: type[Base]) -> int:
        async with self.database.engine.connect() as connection:
            return int(await connection.scalar(select(func.count()).select_from(table)) or 0)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/notes.db")
    await database.create_tables()
    storage = ObjectStorage((tmp_path / "files").as_uri(), "http://app")
    services = Services(database, database, storage, ModelResponder("offline"))
    yield World(services, database, tmp_path / "files")
    await database.close()


async def test_a_note_is_uploaded_kept_and_reported(world: World) -> None:
    run = InProcessRun({"content": "# Milk\nand bread"})
    note = await handle_note_creation(run, world.services)
    assert run.steps == ["upload-content", "create-entity", "publish-completed"]
    assert (world.folder / note.file_path).read_text() == "# Milk\nand bread"
    assert note.title == "Milk"
    assert note.file_url == f"http://app/files/{note.file_path}"
    ((name, data),) = run.events
    assert name == "note.creation.completed"
    assert data["entityId"] == note.entity_id
    assert data["userId"] == "42"


async def test_task_stores_its_details_and_completes_once(world: World) -> None:
    given = {"title": "Buy milk", "priority": "high", "dueDate": "2026-12-24", "projectId": "p1"}
    run = InProcessRun(given)
    task = await handle_task_creation(run, world.services)
    assert run.steps == ["create-entity", "create-task-details"]
    assert (task.status, task.priority) == ("todo", "high")
    assert (task.due_date, task.project_id) == ("2026-12-24", "p1")
    done = await handle_task_completion(InProcessRun({"entityId": task.entity_id}), world.services)
    again = await handle_task_completion(InProcessRun({"entityId": task.entity_id}), world.services)
    assert done.status == "done"
    assert again.completed_at == done.completed_at


async def test_project_stores_its_dates(world: World) -> None:
    given = {"title": "House", "description": "A", "startDate": "2026-01-01"}
    project = await handle_project_creation(InProcessRun(given), world.services)
    assert (project.title, project.start_date, project.end_date) == ("House", "2026-01-01", None)


async def test_a_message_is_replied_to(world: World) -> None:
    first = InProcessRun({"conversationId": "c1", "content": "Hello there"})
    answer = await handle_conversation_message(first, world.services)
    assert first.steps == [
        "append-user-message", "generate-reply", "append-reply", "publish-generated",
    ]  # fmt: skip
    assert first.events[0][0] == "conversation.response.generated"
    assert "2 words" in answer.response
    assert not answer.fallback
    await handle_conversation_message(
        InProcessRun({"threadId": "c1", "content": "Again"}), world.services
    )
    history = await world.database.history("c1", "42")
    assert [message.role for message in history] == ["user", "assistant"] * 2
    assert "message 2" in history[-1].content
    assert await world.database.history("c1", "somebody else") == []


async def test_each_of_two_messages_gets_the_reply_to_itself(world: World) -> None:
    later = Message("later", "c1", "42", "user", "beta")
    append = world.database.append

    async def append_both(message: Message) -> None:
        await append(message)
        if message.role == "user":
            await append(later)

    world.database.append = append_both  # type: ignore[method-assign]
    given = {"conversationId": None, "threadId": "c1", "content": "alpha"}
    answer = await handle_conversation_message(InProcessRun(given), world.services)
    assert "alpha" in answer.response


async def test_without_a_reply_there_is_a_stand_in(world: World) -> None:
    run = InProcessRun({"conversationId": "c1", "content": "#no-reply"})
    answer = await handle_conversation_message(run, world.services)
    assert answer.fallback
    assert answer.response == FALLBACK_REPLY
    assert (await world.database.history("c1", "42"))[-1].content == FALLBACK_REPLY


@pytest.mark.parametrize(
    ("handler", "data", "rows"),
    [
        (handle_note_creation, {"content": "Milk"}, [1, 0, 0]),
        (handle_task_creation, {"title": "Milk"}, [1, 1, 0]),
        (handle_project_creation, {"title": "House"}, [1, 0, 0]),
        (handle_conversation_message, {"conversationId": "c1", "content": "Hello"}, [0, 0, 2]),
    ],
)
async def test_running_twice_with_the_same_run_id_leaves_one(
    world: World, handler: Callable[..., Awaitable[Any]], data: dict[str, Any], rows: list[int]
) -> None:
    results = [await handler(InProcessRun(data, run_id="same"), world.services) for _ in range(2)]
    assert results[0] == results[1]
    assert [await world.count(table) for table in (EntityRow, TaskRow, MessageRow)] == rows


@pytest.mark.parametrize(
    ("handler", "data", "said"),
    [
        (handle_note_creation, {}, "The note is empty."),
        (handle_note_creation, {"content": " \n"}, "The note is empty."),
        (handle_note_creation, {"content": 7}, "The note must be text."),
        (handle_note_creation, {"content": "x" * 1_000_001}, "too long"),
        (handle_note_creation, {"content": "x", "title": "t" * 501}, "The title is too long"),
        (handle_task_creation, {"title": ""}, "The title is empty."),
        (handle_task_creation, {"title": "t", "priority": "whatever"}, "The priority must be one"),
        (handle_task_creation, {"title": "t", "dueDate": "soon"}, "The due date must be a date"),
        (handle_task_completion, {}, "The task's ID is empty."),
        (handle_task_completion, {"entityId": "nobody's"}, "Task not found."),
        (handle_project_creation, {"title": None}, "The title is empty."),
        (
            handle_project_creation,
            {"title": "t", "startDate": "2026-02-01", "endDate": "2026-01-01"},
            "ends before it starts",
        ),
        (handle_conversation_message, {"conversationId": "c"}, "The message is empty."),
        (handle_conversation_message, {"content": "x"}, "conversation's ID is empty"),
    ],
)
async def test_invalid_input_gets_a_user_facing_error_and_stores_nothing(
    world: World, handler: Callable[..., Awaitable[Any]], data: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidInputError, match=said):
        await handler(InProcessRun(data), world.services)
    assert [await world.count(table) for table in (EntityRow, TaskRow, MessageRow)] == [0, 0, 0]
    assert not list(world.folder.rglob("*.md"))


async def test_task_of_another_user_is_not_found(world: World) -> None:
    task = await handle_task_creation(InProcessRun({"title": "t"}), world.services)
    run = InProcessRun({"entityId": task.entity_id}, user_id="7")
    with pytest.raises(InvalidInputError, match="Task not found"):
        await handle_task_completion(run, world.services)


async def test_run_without_a_user_is_invalid_input(world: World) -> None:
    with pytest.raises(InvalidInputError, match="userId is missing"):
        await handle_note_creation(InProcessRun({"content": "x"}, user_id=None), world.services)


async def test_user_id_cannot_escape_its_folder(world: World) -> None:
    run = InProcessRun({"content": "x"}, user_id="../../etc")
    note = await handle_note_creation(run, world.services)
    assert (world.folder / note.file_path).resolve().is_relative_to(world.folder.resolve())


def test_messages_are_plain_data() -> None:
    assert Message("1", "c", "u", "user", "x") == Message("1", "c", "u", "user", "x")
