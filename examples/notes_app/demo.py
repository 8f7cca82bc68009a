"""The app of ``synap-realtime demo`` with adapters for real services.

::

    $ .venv/bin/python -m examples.notes_app.demo
    room server   http://127.0.0.1:8787
    inngest       http://127.0.0.1:8288 (embedded: not durable, for one machine)
    notes app     http://127.0.0.1:8000

    Open http://127.0.0.1:8000. Ctrl-C stops it.

=================== ==================================================== ========================
variable            meaning                                              default
=================== ==================================================== ========================
NOTES_DATA          the folder of everything that is kept                ``.demo``
NOTES_DATABASE_URL  for SQLAlchemy, such as ``postgresql+psycopg://…``   SQLite in that folder
NOTES_STORAGE_URL   for obstore, such as ``s3://bucket/prefix``          that folder
NOTES_MODEL         for pydantic-ai, such as ``openai:gpt-5``            ``offline``: no network
=================== ==================================================== ========================

``--once`` needs no browser: it runs five jobs as a user would, and prints the notifications.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from synap_realtime import ConfigurationError
from synap_realtime.demo import Backend, Config, run

from .database import Database
from .replies import ModelResponder
from .storage import ObjectStorage


@asynccontextmanager
async def open_backend(config: Config) -> AsyncGenerator[Backend]:
    """Open the services that the environment names."""
    default_database = f"sqlite+aiosqlite:///{config.data / 'notes.db'}"
    database = Database(os.environ.get("NOTES_DATABASE_URL", default_database))
    storage_url = os.environ.get("NOTES_STORAGE_URL", (config.data / "files").as_uri())
    await database.create_tables()
    try:
        yield Backend(
            entities=database,
            messages=database,
            files=ObjectStorage(storage_url, config.app_url),
            responder=ModelResponder(os.environ.get("NOTES_MODEL", "offline")),
        )
    finally:
        await database.close()


def main(arguments: list[str]) -> int:
    if unknown := [argument for argument in arguments if argument != "--once"]:
        sys.exit(f"unknown argument {unknown[0]!r}; usage: examples.notes_app.demo [--once]")
    try:
        return run(
            show=lambda line: print(line, flush=True),
            data=Path(os.environ.get("NOTES_DATA", ".demo")),
            once="--once" in arguments,
            open_backend=open_backend,
        )
    except ConfigurationError as error:
        sys.exit(f"demo: {error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
