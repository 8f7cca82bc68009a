"""The tasks of these tests' worker, configured by ``BROKER_URL`` and ``REALTIME_URL``."""

from __future__ import annotations

import asyncio
import os

from taskiq import AsyncBroker, InMemoryBroker, SimpleRetryMiddleware
from taskiq_redis import RedisStreamBroker

from synap_realtime import BackgroundBroadcaster, JobError, progress
from synap_realtime.integrations.taskiq import RealtimeMiddleware


def add_tasks(broker: AsyncBroker) -> None:
    @broker.task(task_name="works", job_type="report.creation")
    async def works(title: str, user_id: str, request_id: str) -> dict[str, str]:
        progress(0.5, "Rendering")
        return {"title": title}

    @broker.task(task_name="works_sync", job_type="report.creation")
    def works_sync(title: str, user_id: str) -> dict[str, str]:
        progress(0.5, "Rendering")
        return {"title": title}

    @broker.task(task_name="fails", job_type="report.creation", retry_on_error=True, max_retries=3)
    async def fails(data: dict[str, str]) -> None:
        raise JobError("The printer is busy.")

    @broker.task(task_name="fails_once", job_type="report.creation")
    async def fails_once(user_id: str) -> None:
        raise RuntimeError("password=hunter2")

    @broker.task(task_name="is_late", job_type="report.creation", timeout=0.05)
    async def is_late(user_id: str) -> None:
        await asyncio.sleep(30)

    @broker.task(task_name="is_lost", job_type="report.creation")
    async def is_lost(marker: str, user_id: str) -> dict[str, bool]:
        """Wait to be killed, the first time."""
        progress(None, str(os.getpid()))
        if not os.path.exists(marker):  # noqa: PTH110
            open(marker, "w").close()  # noqa: ASYNC230, PTH123
            await asyncio.sleep(30)
        return {"done": True}

    @broker.task(task_name="untold")
    async def untold() -> int:
        return 7


def in_memory(broadcaster: BackgroundBroadcaster) -> InMemoryBroker:
    broker = InMemoryBroker().with_middlewares(
        SimpleRetryMiddleware(), RealtimeMiddleware(broadcaster)
    )
    add_tasks(broker)
    return broker


if url := os.environ.get("BROKER_URL"):  # in the worker
    worker_broker = RedisStreamBroker(url, idle_timeout=1000).with_middlewares(RealtimeMiddleware())
    add_tasks(worker_broker)
