"""Jobs whose code runs in another process: ``python -m tests.jobs.processes CASE [METHOD]``."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from synap_realtime import bind_reporter, delta, progress
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.jobs import JobRun

USERS = "abc"


@cache
def pool() -> ProcessPoolExecutor:
    """Made by the first job that needs it, as applications do."""
    context: Any = multiprocessing.get_context(sys.argv[2])
    return ProcessPoolExecutor(1, mp_context=context)


def render(doc: str) -> int:
    progress(0.5, f"Rendering {doc}")
    for n in range(50):
        delta(f"{n}{doc} ")
    return os.getpid()


def wrong(doc: str) -> None:
    progress("half")  # type: ignore[arg-type]


def nested(doc: str) -> None:
    """A bound function that goes on to a thread and to a process of its own."""
    import threading

    thread = threading.Thread(target=bind_reporter(progress), args=[0.1, f"thread {doc}"])
    thread.start()
    thread.join()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as inner:
        inner.submit(bind_reporter(render), doc).result()
    child = os.fork()
    if child == 0:
        render(f"fork {doc}")  # nothing: it was not taken along
        os._exit(0)
    os.waitpid(child, 0)


def report_to(say: Callable[..., None], doc: str) -> None:
    say(0.5, f"Rendering {doc}")


async def each(work: Callable[[JobRun], Any]) -> None:
    for user_id in USERS:
        await run_job("report.creation", work, {"userId": user_id}, run_id=user_id)


async def unbound(run: JobRun) -> None:
    await asyncio.get_running_loop().run_in_executor(pool(), render, str(run.user_id))


async def bound(run: JobRun) -> None:
    loop = asyncio.get_running_loop()
    pid = await loop.run_in_executor(pool(), bind_reporter(render), str(run.user_id))
    assert pid != os.getpid()
    await loop.run_in_executor(pool(), render, f"unbound {run.user_id}")


async def as_argument(run: JobRun) -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(pool(), report_to, bind_reporter(progress), str(run.user_id))


async def process(run: JobRun) -> None:
    context: Any = multiprocessing.get_context(sys.argv[2])
    child = context.Process(target=bind_reporter(render), args=[str(run.user_id)])
    child.start()
    await asyncio.to_thread(child.join)
    assert child.exitcode == 0


async def outlives(run: JobRun) -> None:
    """Its function goes on in the pool when it is over."""
    pool().submit(bind_reporter(_wait_and_render), str(run.user_id))
    async with httpx.AsyncClient() as client:
        room = f"{os.environ['REALTIME_URL']}/rooms/user_{run.user_id}/history"
        while "inside" not in (await client.get(room)).text:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.01)


def _wait_and_render(doc: str) -> None:
    progress(0.1, f"inside {doc}")
    with open(f"{os.environ['GO']}-{doc}"):  # noqa: PTH123
        pass  # it is over
    render(doc)


async def wrongly(run: JobRun) -> None:
    await asyncio.get_running_loop().run_in_executor(pool(), bind_reporter(wrong), "x")
    progress(0.5, "went on")


async def twice(run: JobRun) -> None:
    await asyncio.get_running_loop().run_in_executor(
        pool(), bind_reporter(nested), str(run.user_id)
    )


async def forks(run: JobRun) -> None:
    """A child made with ``os.fork`` in a job has no reporter, nor has the job's own object."""
    child = os.fork()
    if child == 0:
        render(str(run.user_id))
        os._exit(0)
    await asyncio.to_thread(os.waitpid, child, 0)


async def outlived() -> None:
    for user_id in USERS:
        gate = f"{os.environ['GO']}-{user_id}"
        os.mkfifo(gate)
        await run_job("report.creation", outlives, {"userId": user_id}, run_id=user_id)
        await asyncio.to_thread(Path(gate).write_text, "")
    pool().shutdown(wait=True)


def main() -> None:
    logging.basicConfig(level=logging.WARNING)
    if sys.argv[1] == "outlived":
        asyncio.run(outlived())
    else:
        asyncio.run(each(globals()[sys.argv[1]]))
    if pool.cache_info().currsize:
        pool().shutdown(wait=True)


if __name__ == "__main__":
    main()
