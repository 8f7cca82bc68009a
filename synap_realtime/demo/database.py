"""Entities, tasks and conversations in a SQLite file."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from ..handlers import Entity, Message, TaskDetails

_T = TypeVar("_T")

_TABLES = """
CREATE TABLE IF NOT EXISTS entities (
    id TEXT PRIMARY KEY, kind TEXT, user_id TEXT, title TEXT, description TEXT, file_url TEXT,
    file_path TEXT, start_date TEXT, end_date TEXT
);
CREATE TABLE IF NOT EXISTS task_details (
    entity_id TEXT PRIMARY KEY, status TEXT, priority TEXT, due_date TEXT, project_id TEXT,
    completed_at TEXT
);
CREATE TABLE IF NOT EXISTS messages (
    position INTEGER PRIMARY KEY, id TEXT UNIQUE, conversation_id TEXT, user_id TEXT, role TEXT,
    content TEXT
);
"""


class NotesDatabase:
    """The stores that the handlers need: :class:`Entities` and :class:`Messages`."""

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(file, check_same_thread=False)
        self._connection.executescript(_TABLES)
        self._lock = threading.Lock()

    async def close(self) -> None:
        """Close the file."""
        await self._run(lambda: self._connection.close())

    async def create(self, entity: Entity) -> None:
        """See :class:`Entities`."""
        await self._insert_once("entities", asdict(entity))

    async def create_task_details(self, details: TaskDetails) -> None:
        """See :class:`Entities`."""
        await self._insert_once("task_details", asdict(details))

    async def complete_task(self, entity_id: str, user_id: str) -> str | None:
        """See :class:`Entities`."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        values = {"id": entity_id, "user": user_id, "now": now}

        def complete() -> str | None:
            with self._connection as connection:
                row = connection.execute(
                    "UPDATE task_details SET status = 'done',"
                    " completed_at = coalesce(completed_at, :now) WHERE entity_id = :id"
                    " AND EXISTS (SELECT 1 FROM entities WHERE id = :id AND user_id = :user)"
                    " RETURNING completed_at",
                    values,
                ).fetchone()
            return None if row is None else str(row[0])

        return await self._run(complete)

    async def append(self, message: Message) -> None:
        """See :class:`Messages`."""
        await self._insert_once("messages", asdict(message))

    async def history(self, conversation_id: str, user_id: str) -> Sequence[Message]:
        """See :class:`Messages`."""
        query = (
            "SELECT id, conversation_id, user_id, role, content FROM messages"
            " WHERE conversation_id = ? AND user_id = ? ORDER BY position"
        )
        rows = await self._run(
            lambda: self._connection.execute(query, (conversation_id, user_id)).fetchall()
        )
        return [Message(*row) for row in rows]

    async def _insert_once(self, table: str, values: dict[str, Any]) -> None:
        """Insert a row; do not change an existing one with its key."""
        names = ", ".join(values)
        marks = ", ".join(f":{name}" for name in values)
        statement = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})"  # noqa: S608 - names of our own

        def insert() -> None:
            with self._connection as connection:
                connection.execute(statement, values)

        await self._run(insert)

    async def _run(self, step: Callable[[], _T]) -> _T:
        """Run a step in a thread: SQLite waits for the disk. Only one step runs at a time."""

        def locked() -> _T:
            with self._lock:
                return step()

        return await asyncio.to_thread(locked)
