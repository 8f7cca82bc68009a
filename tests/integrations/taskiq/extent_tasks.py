"""Tasks whose code outlives the task, in each kind of pool."""

from __future__ import annotations

import asyncio
import contextvars
import os
from typing import Annotated, Any

import httpx
from taskiq import SimpleRetryMiddleware, TaskiqDepends
from taskiq_redis import ListQueueBroker

from synap_realtime import JobError, bind_reporter, delta, progress
from synap_realtime.broadcast import background_broadcaster
from synap_realtime.integrations.taskiq import RealtimeMiddleware


def say(what: str, doc: str) -> None:
    """Text keeps all that is said; of progress only the last in a tenth of a second goes out."""
    delta(f"{what} {doc};")
    progress(0.5, f"{what} {doc}")


def flush() -> None:
    """Nothing that was published by mistake stays unseen because its process ends."""
    background_broadcaster().flush()


async def late(doc: str, gate: str) -> None:
    room = f"{os.environ['REALTIME_URL']}/rooms/user_{doc}/history"
    async with httpx.AsyncClient() as client:
        while "report.creation.completed" not in (await client.get(room)).text:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    say("late", doc)
    await asyncio.to_thread(flush)
    with open(f"{gate}-{doc}", "w"):  # noqa: ASYNC230, PTH123
        pass


left: set[asyncio.Task[None]] = set()


def bound_say() -> Any:
    """What a task in another process reports with: a dependency, made where the job runs."""
    return bind_reporter(say)


# A process pool finds the functions by their names: they belong to the module.
worker_broker = ListQueueBroker(os.environ.get("BROKER_URL", "redis://127.0.0.1:1"))
worker_broker.add_middlewares(SimpleRetryMiddleware(), RealtimeMiddleware())


@worker_broker.task(
    task_name="leaves", job_type="report.creation", retry_on_error=True, max_retries=2
)
async def leaves(gate: str, doc: str, user_id: str) -> str:
    say("begin", doc)
    marker = f"{gate}-{doc}-again"
    if not os.path.exists(marker):  # noqa: PTH110
        open(marker, "w").close()  # noqa: ASYNC230, PTH123
        raise JobError("Again.")
    left.add(asyncio.create_task(late(doc, gate)))
    await asyncio.to_thread(say, "thread", doc)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, bind_reporter(say), "bound", doc)
    await loop.run_in_executor(None, say, "unbound", doc)
    say("end", doc)
    return doc


@worker_broker.task(task_name="sync", job_type="report.creation")
def sync(doc: str, report: Annotated[Any, TaskiqDepends(bound_say)], user_id: str) -> int:
    """In a thread it has the reporter; in another process, only what it was given."""
    say("own", doc)
    report("given", doc)
    contextvars.copy_context().run(say, "copied", doc)
    flush()
    return os.getpid()


@worker_broker.task(task_name="outside")
async def outside(doc: str) -> None:
    say("outside", doc)


@worker_broker.task(task_name="outside_sync")
def outside_sync(doc: str) -> None:
    say("outside", doc)
    flush()
