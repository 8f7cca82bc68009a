"""The job that writes the reply: as a Celery task, or alone."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from typing import Any

import celery

from synap_realtime.integrations.celery import RealtimeTask
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.jobs import JobRun, delta

WORDS = ("tok ", "é", "😀 ", "word, ", "\n", '"x" ', "\\", "Straße ")

app = celery.Celery("long_reply", broker=os.environ.get("BROKER_URL"))
app.conf.update(broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)


def pieces_of(count: int) -> list[str]:
    """Return the pieces of the reply, the same in each process."""
    return random.Random(count).choices(WORDS, k=count)


def write(count: int, pieces_per_s: float) -> dict[str, Any]:
    """Write the reply at a steady pace."""
    began = time.monotonic()
    for number, piece in enumerate(pieces_of(count)):
        delta(piece)
        time.sleep(max(0.0, began + (number + 1) / pieces_per_s - time.monotonic()))
    return {"pieces": count}


@app.task(base=RealtimeTask, job_type="reply.generation", bind=True)  # type: ignore[untyped-decorator]
def reply(
    _: Any, count: int, pieces_per_s: float, *, user_id: str, request_id: str
) -> dict[str, Any]:
    return write(count, pieces_per_s)


async def alone(count: int, pieces_per_s: float, request_id: str) -> None:
    def work(_: JobRun) -> dict[str, Any]:
        return write(count, pieces_per_s)

    await run_job("reply.generation", work, {"userId": "1", "requestId": request_id})


if __name__ == "__main__":
    asyncio.run(alone(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]))
