"""Tasks that are still running when their worker stops."""

from __future__ import annotations

import asyncio
import os
import time

from taskiq import AsyncBroker
from taskiq_redis import ListQueueBroker, RedisStreamBroker

from synap_realtime import progress
from synap_realtime.integrations.taskiq import RealtimeMiddleware


def add_tasks(broker: AsyncBroker) -> None:
    @broker.task(task_name="stays", job_type="report.creation")
    async def stays(marker: str, user_id: str) -> dict[str, bool]:
        """The second time, it does not stay."""
        progress(0.5, "waiting")
        if not os.path.exists(marker):  # noqa: PTH110
            open(marker, "w").close()  # noqa: ASYNC230, PTH123
            await asyncio.sleep(30)
        return {"done": True}

    @broker.task(task_name="stays_sync", job_type="report.creation")
    def stays_sync(user_id: str) -> dict[str, bool]:
        progress(0.5, "waiting")
        time.sleep(3)
        return {"done": True}

    @broker.task(task_name="untold")
    async def untold() -> None: ...


url = os.environ.get("BROKER_URL", "redis://127.0.0.1:1")
lists = ListQueueBroker(url).with_middlewares(RealtimeMiddleware())
streams = RedisStreamBroker(url, idle_timeout=1000).with_middlewares(RealtimeMiddleware())
add_tasks(lists)
add_tasks(streams)
