"""Each started run of run_job() ends with exactly one terminal notification."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from functools import partial
from typing import Any

import httpx
import pytest
from pydantic import RootModel

from synap_realtime import (
    ConfigurationError,
    InvalidArgumentError,
    InvalidInputError,
    JobError,
    delta,
    progress,
)
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.jobs import JobRun
from synap_realtime.testing import RealtimeRecorder
from synap_realtime.testing.recorder import record
from tests.support.models import Computed

WHO = {"userId": "42"}


def words(realtime: RealtimeRecorder) -> list[str]:
    realtime.assert_single_terminal()
    return [type.rpartition(".")[2] for type in realtime.types(user_id="42")]


def job(do: Callable[[JobRun], Any], **options: Any) -> Any:
    return run_job("report.creation", do, WHO, initial_backoff_s=0.01, **options)


@pytest.mark.parametrize("kind", ["async", "sync"])
@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (SystemExit(3), "failed"),
        (KeyboardInterrupt(), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (StopIteration(7), "failed"),
        (StopAsyncIteration(), "failed"),
        (BaseExceptionGroup("g", [KeyboardInterrupt()]), "failed"),
        (ExceptionGroup("g", [ValueError()]), "failed"),
        (RecursionError(), "failed"),
        (MemoryError(), "failed"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, BaseException) else None,
)
async def test_reports_an_end_for_every_exception(
    realtime: RealtimeRecorder, kind: str, error: BaseException, ending: str
) -> None:
    async def raises(run: JobRun) -> None:
        raise error

    def raises_sync(run: JobRun) -> None:
        raise error

    with pytest.raises((type(error), RuntimeError)):
        await job(raises if kind == "async" else raises_sync)
    assert words(realtime) == ["started", ending]


async def test_sys_exit_propagates(realtime: RealtimeRecorder) -> None:
    async def leaves(run: JobRun) -> None:
        sys.exit(3)

    with pytest.raises(SystemExit, match="3"):
        await job(leaves, retries=3)
    assert words(realtime) == ["started", "failed"]


class Forever:
    def __await__(self) -> Generator[None]:
        while True:
            yield


async def test_a_closed_coroutine_is_cancelled(realtime: RealtimeRecorder) -> None:
    async def waits(run: JobRun) -> None:
        await Forever()

    coroutine = job(waits)
    coroutine.send(None)
    coroutine.close()
    assert words(realtime) == ["started", "cancelled"]


async def test_a_job_cancelled_while_a_retry_is_published_is_cancelled(
    realtime: RealtimeRecorder,
) -> None:
    async def fails(run: JobRun) -> None:
        raise JobError("The printer is busy.")

    realtime.delay_requests(0.5, type="report.creation.retrying")
    running = asyncio.create_task(run_job("report.creation", fails, WHO, retries=3))
    await asyncio.sleep(0.2)  # while the notification is on its way
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert words(realtime) == ["started", "retrying", "cancelled"]


def nested(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("g", [ValueError("secret"), ExceptionGroup("h", list(errors))])


@pytest.mark.parametrize(
    ("error", "expected", "text"),
    [
        (
            ExceptionGroup("g", [InvalidInputError("It is empty.")]),
            ["started", "failed"],
            "It is empty.",
        ),
        (nested(InvalidInputError("It is empty.")), ["started", "failed"], "It is empty."),
        (
            nested(JobError("No paper."), InvalidInputError("It is empty.")),
            ["started", "failed"],
            "It is empty.",
        ),
        (nested(JobError("No paper.")), ["started", "retrying", "failed"], "No paper."),
        (nested(KeyError()), ["started", "retrying", "failed"], None),
    ],
)
async def test_exception_group_is_classified_by_its_members(
    realtime: RealtimeRecorder, error: Exception, expected: list[str], text: str | None
) -> None:
    async def fails(run: JobRun) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(raises())

    async def raises() -> None:
        raise error

    with pytest.raises(ExceptionGroup):
        await job(fails, retries=1)
    assert words(realtime) == expected
    said = realtime.sent()[-1].data["error"]
    assert said == text if text else said.startswith("Something went wrong")


@pytest.mark.parametrize(
    "result",
    [RootModel[list[int]]([1, 2]), Computed(), object(), (n for n in [1])],
    ids=lambda each: type(each).__name__,
)
async def test_result_is_returned_unchanged(result: Any) -> None:
    async def returns(run: JobRun) -> Any:
        return result

    with suppress(InvalidArgumentError), record() as realtime:  # raised behind the test's code
        assert await job(returns, retries=3) is result
        assert words(realtime) == ["started", "completed"]


async def test_a_result_without_a_json_form_fails_a_test_that_records() -> None:
    async def returns(run: JobRun) -> Any:
        return object()

    with pytest.raises(InvalidArgumentError, match="not JSON-serializable"), record():
        await job(returns)


async def test_a_plain_function_runs_once_in_a_thread_with_the_reporter(
    realtime: RealtimeRecorder,
) -> None:
    threads = []

    def work(run: JobRun) -> dict[str, Any]:
        threads.append(threading.current_thread())
        progress(0.5, "Rendering")
        delta("text")
        return {"title": run.data["userId"]}

    assert await job(work, retries=3) == {"title": "42"}
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
    assert words(realtime) == ["started", "progress", "delta", "completed"]


async def test_a_plain_function_runs_where_no_thread_can_be_started(
    realtime: RealtimeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the end of the interpreter."""

    def refuse(*args: object) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    def work(run: JobRun) -> dict[str, int]:
        progress(0.5)
        return {"n": 7}

    monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", refuse)
    assert await job(work) == {"n": 7}
    assert words(realtime) == ["started", "progress", "completed"]


def test_without_an_event_loop_of_asyncio_a_job_is_refused_before_it_begins(
    realtime: RealtimeRecorder,
) -> None:
    async def work(run: JobRun) -> None:
        raise AssertionError("it ran")

    with pytest.raises(ConfigurationError, match="asyncio"):
        job(work).send(None)
    assert realtime.sent() == []


async def test_a_function_that_returns_an_awaitable_is_awaited(realtime: RealtimeRecorder) -> None:
    async def work(run: JobRun, title: str) -> str:
        progress(0.5)
        return title

    class Work:
        async def __call__(self, run: JobRun) -> str:
            return await work(run, "Q3")

    each: Callable[[JobRun], Awaitable[str]]
    for each in (lambda run: work(run, "Q3"), partial(work, title="Q3"), Work()):
        assert await job(each) == "Q3"
    assert words(realtime)[-1] == "completed"


@pytest.mark.parametrize(
    "options",
    [{"retries": -1}, {"stall_after_s": float("inf")}, {"stall_after_s": float("nan")}],
)
async def test_invalid_option_is_refused_before_the_job_starts(
    realtime: RealtimeRecorder, options: dict[str, Any]
) -> None:
    async def work(run: JobRun) -> None:
        raise AssertionError("it ran")

    with pytest.raises(InvalidArgumentError):
        await job(work, **options)
    with pytest.raises(InvalidArgumentError, match="name: "):
        await run_job("a" * 120, work, WHO)
    assert realtime.sent() == []


ENDED_BY_THE_MAIN_THREAD = """
import asyncio, threading
from synap_realtime.integrations.inprocess import run_job

has_begun = threading.Event()

async def work(run):
    has_begun.set()
    await asyncio.Event().wait()

job = run_job("report.creation", work, {"userId": "42"})
threading.Thread(target=asyncio.run, args=[job], daemon=True).start()
assert has_begun.wait(60)
"""


async def test_run_is_cancelled_when_its_process_exits(rooms: str) -> None:
    """No exception is raised in its code then."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", ENDED_BY_THE_MAIN_THREAD, env={**os.environ, "REALTIME_URL": rooms}
    )
    assert await process.wait() == 0
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{rooms}/rooms/user_42/history")
    types = [each["type"] for each in answer.json()["notifications"]]
    assert types == ["report.creation.started", "report.creation.cancelled"]
