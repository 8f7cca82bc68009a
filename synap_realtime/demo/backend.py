"""What the app needs to keep its data and to reply. The default needs Python alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from ..handlers import Entities, Messages, Responder, Storage
from .config import Config
from .database import NotesDatabase
from .replies import OfflineResponder
from .storage import Folder


class Files(Storage, Protocol):
    """A storage whose files the app serves at ``{app_url}/files/{path}``."""

    async def get(self, path: str) -> bytes | None:
        """Return the content of a file; None if there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Backend:
    """The adapters of the app."""

    entities: Entities
    messages: Messages
    files: Files
    responder: Responder


OpenBackend = Callable[[Config], AbstractAsyncContextManager[Backend]]


@asynccontextmanager
async def open_backend(config: Config) -> AsyncGenerator[Backend]:
    """Open the default: SQLite, a folder, and replies without a model."""
    database = NotesDatabase(config.data / "notes.sqlite")
    try:
        yield Backend(
            entities=database,
            messages=database,
            files=Folder(config.data / "files", config.app_url),
            responder=OfflineResponder(),
        )
    finally:
        await database.close()
