"""The app's configuration, from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

DATA = Path(os.environ.get("NOTES_DATA", ".demo")).absolute()


@dataclass(frozen=True)
class Config:
    """Configuration of the app.

    Attributes:
        database_url: for SQLAlchemy: ``sqlite+aiosqlite:///…`` or ``postgresql+psycopg://…``.
        storage_url: for obstore: ``file:///…``, ``s3://bucket/prefix`` or another scheme.
        model: for pydantic-ai, such as ``openai:gpt-5``; ``offline`` needs no network.
        store: of the embedded room server. The default file keeps the list of jobs over a restart;
            remove the folder ``.demo`` to begin anew.
        room_server: a room server that runs already; None: the embedded one.
    """

    database_url: str = field(
        default_factory=lambda: os.environ.get(
            "NOTES_DATABASE_URL", f"sqlite+aiosqlite:///{DATA / 'notes.db'}"
        )
    )
    storage_url: str = field(
        default_factory=lambda: os.environ.get("NOTES_STORAGE_URL", (DATA / "files").as_uri())
    )
    model: str = field(default_factory=lambda: os.environ.get("NOTES_MODEL", "offline"))
    store: str = field(
        default_factory=lambda: os.environ.get(
            "SYNAP_REALTIME_STORE", f"sqlite:///{DATA / 'rooms.db'}"
        )
    )
    room_server: str | None = field(
        default_factory=lambda: os.environ.get("NOTES_REALTIME_URL", "").rstrip("/") or None
    )
    app_port: int = field(default_factory=lambda: int(os.environ.get("NOTES_PORT", "8000")))
    app_url: str = "http://127.0.0.1:8000"
    realtime_url: str = "http://127.0.0.1:8787"
    inngest_url: str = "http://127.0.0.1:8288"
