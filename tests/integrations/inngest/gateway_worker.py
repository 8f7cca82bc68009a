"""A worker that connects out (``inngest.connect``)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import inngest
import inngest.connect


@asynccontextmanager
async def connected(
    client: inngest.Inngest, *functions: inngest.Function[Any]
) -> AsyncIterator[inngest.connect._internal.connection.WorkerConnection]:
    """A worker of the SDK, with its own thread and its own WebSocket."""
    worker = inngest.connect.connect([(client, list(functions))])
    task = asyncio.create_task(worker.start())
    await worker.wait_for_state(inngest.connect.ConnectionState.ACTIVE)
    try:
        yield worker
    finally:
        await worker.close(wait=True)
        await task
