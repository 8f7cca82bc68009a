"""Entities, tasks and conversations in a database: SQLite by default, Postgres by URL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import ForeignKey, String, Text, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from synap_realtime.handlers import Entity, Message, TaskDetails


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Base(DeclarativeBase):
    pass


class EntityRow(Base):
    __tablename__ = "entities"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    user_id: Mapped[str] = mapped_column(String(200), index=True)
    title: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    file_url: Mapped[str | None] = mapped_column(Text)
    file_path: Mapped[str | None] = mapped_column(Text)
    start_date: Mapped[str | None] = mapped_column(String(40))
    end_date: Mapped[str | None] = mapped_column(String(40))
    created_at: Mapped[str] = mapped_column(String(40), default=_now)
    updated_at: Mapped[str] = mapped_column(String(40), default=_now)


class TaskRow(Base):
    __tablename__ = "task_details"
    entity_id: Mapped[str] = mapped_column(ForeignKey("entities.id"), primary_key=True)
    status: Mapped[str] = mapped_column(String(32))
    priority: Mapped[str] = mapped_column(String(32))
    due_date: Mapped[str | None] = mapped_column(String(40))
    project_id: Mapped[str | None] = mapped_column(String(200))
    completed_at: Mapped[str | None] = mapped_column(String(40))


class MessageRow(Base):
    __tablename__ = "messages"
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    conversation_id: Mapped[str] = mapped_column(String(200), index=True)
    user_id: Mapped[str] = mapped_column(String(200))
    role: Mapped[str] = mapped_column(String(16))
    content: Mapped[str] = mapped_column(Text)
    created_at: Mapped[str] = mapped_column(String(40), default=_now)


class Database:
    """The two stores that the handlers need: :class:`Entities` and :class:`Messages`."""

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        self.engine: AsyncEngine = create_async_engine(url)
        self._session = async_sessionmaker(self.engine, expire_on_commit=False)

    async def create_tables(self) -> None:
        async with self.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)

    async def close(self) -> None:
        await self.engine.dispose()

    async def create(self, entity: Entity) -> None:
        await self._insert_once(EntityRow, asdict(entity))

    async def create_task_details(self, details: TaskDetails) -> None:
        await self._insert_once(TaskRow, asdict(details))

    async def complete_task(self, entity_id: str, user_id: str) -> str | None:
        async with self._session.begin() as session:
            entity = await session.get(EntityRow, entity_id, with_for_update=True)
            task = await session.get(TaskRow, entity_id)
            if entity is None or task is None or entity.user_id != user_id:
                return None
            if task.completed_at is None:
                task.status, task.completed_at = "done", _now()
                entity.updated_at = task.completed_at
            return task.completed_at

    async def append(self, message: Message) -> None:
        await self._insert_once(MessageRow, asdict(message))

    async def history(self, conversation_id: str, user_id: str) -> Sequence[Message]:
        query = (
            select(MessageRow)
            .where(MessageRow.conversation_id == conversation_id, MessageRow.user_id == user_id)
            .order_by(MessageRow.position)
        )
        async with self._session() as session:
            rows = await session.scalars(query)
            return [
                Message(
                    id=row.id,
                    conversation_id=row.conversation_id,
                    user_id=row.user_id,
                    role="user" if row.role == "user" else "assistant",
                    content=row.content,
                )
                for row in rows
            ]

    async def _insert_once(self, table: type[Base], values: dict[str, Any]) -> None:
        """Insert a row; do not change an existing one with its key."""
        insert = postgresql.insert if self.engine.dialect.name == "postgresql" else sqlite.insert
        async with self._session.begin() as session:
            await session.execute(insert(table).values(**values).on_conflict_do_nothing())
