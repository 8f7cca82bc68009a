"""A reporter is bound to the dynamic extent of one attempt, in the process that made it."""

from __future__ import annotations

import _thread
import asyncio
import contextvars
import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from synap_realtime import bind_reporter, delta, progress
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.jobs import JobRun, JobType, Recipient, Reporter, RunNotifications, report_run
from synap_realtime.jobs import context as current_module
from synap_realtime.jobs.reporter import ReporterState
from synap_realtime.testing import RealtimeRecorder
from tests.support.timeouts import TIMEOUT_S

REPORT = JobType("report.creation")
LIMIT_S = TIMEOUT_S

Make = Callable[..., Reporter]


@pytest.fixture
def make(realtime: RealtimeRecorder) -> Make:
    broadcaster = realtime.broadcaster()

    def make(user_id: str = "a", attempt: int = 1, **options: Any) -> Reporter:
        lifecycle = RunNotifications(REPORT, f"run-{user_id}", attempt=attempt)
        return Reporter(lifecycle, [Recipient(user_id)], broadcaster, **options)

    return make


@pytest.fixture(autouse=True)
def _no_warnings_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(current_module, "_warned", set())


def say(label: str) -> None:
    progress(0.5, label)
    delta(label)


def wait_until(is_met: Callable[[], object]) -> None:
    end = time.monotonic() + LIMIT_S
    while not is_met():
        assert time.monotonic() < end
        time.sleep(0.01)


def labels(realtime: RealtimeRecorder, user_id: str = "a") -> list[str]:
    sent = realtime.sent(REPORT.progress, user_id=user_id)
    return [each.data["label"] for each in sent]


# After the extent


def test_a_context_that_outlives_the_attempt_reports_nothing(
    make: Make, realtime: RealtimeRecorder
) -> None:
    with report_run(make()):
        inherited = contextvars.copy_context()
        say("inside")
    inherited.run(say, "outlived")
    assert labels(realtime) == ["inside"]
    assert len(realtime.sent(REPORT.delta)) == 1


async def test_a_task_that_outlives_the_attempt_reports_nothing(realtime: RealtimeRecorder) -> None:
    tasks: list[asyncio.Task[None]] = []
    is_over = asyncio.Event()

    async def late(doc: str) -> None:
        await is_over.wait()
        say(f"late {doc}")

    async def work(run: JobRun) -> str:
        tasks.append(asyncio.create_task(late(str(run.user_id))))
        asyncio.get_running_loop().call_later(0, lambda: None)
        await asyncio.gather(*[asyncio.to_thread(say, f"{n} {run.user_id}") for n in range(2)])
        return "done"

    for user_id in ("a", "b"):
        await run_job(
            REPORT, work, {"userId": user_id}, broadcaster=realtime.broadcaster(), run_id=user_id
        )
    is_over.set()
    await asyncio.gather(*tasks)
    for user_id in ("a", "b"):
        types = [each.type for each in realtime.sent(user_id=user_id)]
        assert types[-1] == REPORT.completed
        assert {each.rpartition(" ")[2] for each in labels(realtime, user_id)} == {user_id}
        assert "late" not in str(realtime.sent(user_id=user_id))


async def test_a_task_of_an_attempt_that_is_retried_does_not_report_to_the_next(
    realtime: RealtimeRecorder,
) -> None:
    second = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def late() -> None:
        await second.wait()
        say("of the first attempt")

    async def work(run: JobRun) -> None:
        if not tasks:
            tasks.append(asyncio.create_task(late()))
            raise RuntimeError("once")
        second.set()
        await tasks[0]
        say("of the second attempt")

    await run_job(
        REPORT,
        work,
        {"userId": "a"},
        retries=1,
        initial_backoff_s=0,
        broadcaster=realtime.broadcaster(),
    )
    assert labels(realtime) == ["of the second attempt"]


def test_a_reused_thread_reports_nothing_after_the_job_that_it_ran(
    make: Make, realtime: RealtimeRecorder
) -> None:
    def job() -> None:
        with report_run(make()):
            raise RuntimeError("left by an exception")

    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(job).exception(), RuntimeError)
        pool.submit(say, "another's").result()
    assert labels(realtime) == []


async def test_an_extent_that_is_left_in_another_context_is_closed(
    make: Make, realtime: RealtimeRecorder
) -> None:
    async def generator() -> AsyncGenerator[None, None]:
        with report_run(make()):
            say("inside")
            yield

    steps = generator()
    await asyncio.create_task(steps.asend(None))
    with pytest.raises(StopAsyncIteration):
        await asyncio.create_task(steps.asend(None))
    say("outside")
    assert labels(realtime) == ["inside"]


def test_nested_job_reports_separately_from_its_parent(
    make: Make, realtime: RealtimeRecorder
) -> None:
    with report_run(make("a")):
        say("outer before")
        realtime.sent()
        with report_run(make("b")):
            inherited = contextvars.copy_context()
            say("inner")
        inherited.run(say, "inner, late")
        say("outer after")
    assert labels(realtime, "a")[0::1] == ["outer before", "outer after"]
    assert labels(realtime, "b") == ["inner"]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled"])
def test_a_finished_reporter_refuses_everything(
    make: Make, realtime: RealtimeRecorder, end: str
) -> None:
    reporter = make()
    with report_run(reporter):
        bound = bind_reporter(say)
        getattr(reporter, end)(*[] if end == "cancelled" else ["result"])
        assert reporter.state is ReporterState.FINISHED
        say("after the end")
        bound("after the end, bound")
        reporter.started()
        reporter.suspended("x")
        reporter.retrying("again")
        reporter.completed({})
        reporter.completed_batch({})
        reporter.failed("again")
        reporter.cancelled()
    assert len(realtime.sent()) == 2


def test_after_retrying_only_a_terminal_notification_is_accepted(
    make: Make, realtime: RealtimeRecorder
) -> None:
    reporter = make()
    with report_run(reporter):
        reporter.retrying("Busy.", retry_in_s=0)
        say("of an attempt that is over")
        reporter.suspended("x")
        assert reporter.state is ReporterState.RETRYING
    reporter.failed("The broker refused the retry.")
    assert realtime.types() == [REPORT.started, REPORT.retrying, REPORT.failed]


# Signal handlers


class Handlers:
    def method(self, signum: int, frame: object) -> None:
        say("handler")

    def __call__(self, signum: int, frame: object) -> None:
        say("handler")


def function(signum: int, frame: object) -> None:
    say("handler")


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


@contextmanager
def handling(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    "handler",
    [
        function,
        Handlers().method,
        Handlers(),
        lambda signum, frame: say("handler"),
        lambda *args: say("handler"),
        functools.partial(lambda extra, signum, frame: say("handler"), 1),
        logged(function),
        logged(Handlers().method),
    ],
)
def test_a_signal_handler_reports_nothing_for_the_job_that_it_interrupts(
    make: Make, realtime: RealtimeRecorder, handler: Any
) -> None:
    with handling(handler), report_run(make()):
        signal.raise_signal(signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
        logged(say)("job")  # shares the code of a decorated handler, and is none
    assert labels(realtime) == ["job"]


def test_a_handler_that_calls_a_bound_function_reports_nothing(
    make: Make, realtime: RealtimeRecorder
) -> None:
    with report_run(make()):
        bound = bind_reporter(say)
        with handling(lambda signum, frame: bound("handler")):
            signal.raise_signal(signal.SIGUSR1)
    assert labels(realtime) == []


def test_a_signal_in_the_middle_of_a_report_does_not_lock_up(
    make: Make, realtime: RealtimeRecorder
) -> None:
    """Whatever a handler calls, in the thread that is just reporting."""
    interrupted: list[bool] = []

    def interrupt() -> bool:
        if not interrupted:  # not in the handler, too
            interrupted.append(True)
            signal.raise_signal(signal.SIGUSR1)
        return False

    reporter = make(is_replay=interrupt)  # which is asked in the middle of each report
    with handling(lambda signum, frame: reporter.progress(0.5, "handler")), report_run(reporter):
        progress(1, "job")
    assert interrupted
    assert labels(realtime)[-1] == "job"


# Threads


def test_a_thread_has_no_reporter_and_is_warned_once(
    make: Make, realtime: RealtimeRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        for _ in range(3):
            progress(0.5, "thread")

    with caplog.at_level(logging.WARNING), report_run(make()):
        for _ in range(2):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    assert labels(realtime) == []
    assert caplog.text.count(" ignored: ") == 1
    assert "bind_reporter" in caplog.text
    assert Path(__file__).name in caplog.text


def test_a_bounded_number_of_calls_is_warned_about(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Generated code may have any number of them."""
    most = current_module.MAX_WARNINGS
    code = compile("progress(0.5, 'thread')\n" * (most + 20), "generated.py", "exec")
    with caplog.at_level(logging.WARNING), report_run(make()):
        contextvars.Context().run(exec, code, {"progress": progress})
    assert caplog.text.count(" ignored: ") == most


def test_a_signal_handler_is_not_warned_about(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """To log in the middle of whatever it interrupts is not safe."""
    with caplog.at_level(logging.WARNING), report_run(make()), handling(function):
        contextvars.Context().run(signal.raise_signal, signal.SIGUSR1)
    assert caplog.text == ""


def test_a_thread_or_a_greenlet_may_run_progress_itself(
    make: Make,
    realtime: RealtimeRecorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Then no Python code has called it."""
    errors: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", errors.append)
    with caplog.at_level(logging.WARNING), report_run(make()):
        _thread.start_new_thread(progress, (0.5, "thread"))
        wait_until(lambda: " ignored: " in caplog.text or errors)
    assert errors == []
    assert labels(realtime) == []


def test_outside_of_all_jobs_nothing_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        say("nobody's")
    assert caplog.text == ""


async def test_bind_reporter_works_in_threads(realtime: RealtimeRecorder) -> None:
    lasting = ThreadPoolExecutor(1)

    async def work(run: JobRun) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(lasting, bind_reporter(say), f"executor {run.user_id}")
        thread = threading.Thread(target=bind_reporter(say), args=[f"thread {run.user_id}"])
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.to_thread(say, f"to_thread {run.user_id}")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(bind_reporter(say), [f"map {run.user_id}"] * 3))
        await loop.run_in_executor(lasting, say, f"unbound {run.user_id}")
        progress(1, f"end {run.user_id}")

    jobs = [
        run_job(REPORT, work, {"userId": user_id}, broadcaster=realtime.broadcaster())
        for user_id in "abc"
    ]
    await asyncio.gather(*jobs)
    for user_id in "abc":
        text = "".join(each.data["delta"] for each in realtime.sent(REPORT.delta, user_id=user_id))
        assert text == "".join(
            f"{word} {user_id}" for word in ("executor", "thread", "to_thread", "map", "map", "map")
        )
        assert labels(realtime, user_id)[-1] == f"end {user_id}"
    lasting.shutdown()


def test_a_bound_function_that_outlives_the_attempt_reports_nothing(
    make: Make, realtime: RealtimeRecorder
) -> None:
    go_on = threading.Event()

    def work() -> None:
        say("inside")
        inside.set()
        assert go_on.wait(LIMIT_S)
        say("outlived")

    inside = threading.Event()
    with report_run(make()):
        thread = threading.Thread(target=bind_reporter(work))
        thread.start()
        assert inside.wait(LIMIT_S)
    go_on.set()
    thread.join()
    assert labels(realtime) == ["inside"]


async def test_bind_reporter_works_in_another_event_loop(
    make: Make, realtime: RealtimeRecorder
) -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        say("other loop")
        return "result"

    def other() -> None:
        asyncio.run(serve())

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()
        await stop.wait()

    loops: list[asyncio.AbstractEventLoop] = []
    ready, stop = threading.Event(), asyncio.Event()
    thread = threading.Thread(target=other)
    thread.start()
    await asyncio.to_thread(ready.wait, LIMIT_S)
    with report_run(make()):
        bound: Any = bind_reporter(work)
        future = asyncio.run_coroutine_threadsafe(bound(), loops[0])
        assert await asyncio.wrap_future(future) == "result"
    loops[0].call_soon_threadsafe(stop.set)
    await asyncio.to_thread(thread.join)
    assert labels(realtime) == ["other loop"]


def test_bind_reporter_has_no_effect_outside_a_job() -> None:
    assert bind_reporter(say) is say


# Processes: a program each, because a fork of the tests' own process has all its threads' locks


PROGRAM = [sys.executable, "-m", "tests.jobs.processes"]
ROOT = Path(__file__).parents[2]


async def run_program(url: str, *arguments: str, **environment: str) -> str:
    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments],
            cwd=ROOT,
            env={**os.environ, "REALTIME_URL": url, **environment},
            capture_output=True,
            text=True,
            timeout=2 * TIMEOUT_S,
        )

    done = await asyncio.to_thread(run)
    assert done.returncode == 0, done.stderr
    return done.stderr


METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture
async def read_room(rooms: str) -> Callable[[str], Any]:
    async def read_room(user_id: str) -> list[tuple[str, Any]]:
        """The types, and the labels or pieces of text, in order."""
        async with httpx.AsyncClient() as client:
            answer = await client.get(
                f"{rooms}/rooms/user_{user_id}/history", params={"limit": 1000}
            )
        return [
            (each["type"].rpartition(".")[2], each["data"].get("label", each["data"].get("delta")))
            for each in answer.json()["notifications"]
        ]

    return read_room


def text_of(doc: str) -> str:
    return "".join(f"{n}{doc} " for n in range(50))


@pytest.mark.parametrize("case", ["unbound", "forks"])
async def test_a_forked_child_has_no_reporter(
    rooms: str, read_room: Callable[[str], Any], case: str
) -> None:
    log = await run_program(rooms, case, "fork")
    for user_id in "abc":
        assert await read_room(user_id) == [("started", None), ("completed", None)]
    assert log.count(" ignored: ") == 2 * (3 if case == "forks" else 1)
    assert "bind_reporter" in log


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", ["bound", "process"])
async def test_bind_reporter_works_in_a_process(
    rooms: str, read_room: Callable[[str], Any], method: str, case: str
) -> None:
    await run_program(rooms, case, method)
    for user_id in "abc":
        reported = await read_room(user_id)
        assert [type for type, _ in reported if type != "delta"] == [
            "started",
            "progress",
            "completed",
        ]
        assert ("progress", f"Rendering {user_id}") in reported
        assert "".join(what for type, what in reported if type == "delta") == text_of(user_id)
        assert reported[-1][0] == "completed"


@pytest.mark.parametrize("method", METHODS)
async def test_a_bound_progress_can_be_an_argument(
    rooms: str, read_room: Callable[[str], Any], method: str
) -> None:
    await run_program(rooms, "as_argument", method)
    for user_id in "abc":
        assert (await read_room(user_id))[1] == ("progress", f"Rendering {user_id}")


@pytest.mark.parametrize("method", METHODS)
async def test_process_that_outlives_the_attempt_reports_nothing(
    rooms: str, read_room: Callable[[str], Any], method: str, tmp_path: Path
) -> None:
    await run_program(rooms, "outlived", method, GO=str(tmp_path / "go"))
    for user_id in "abc":
        reported = await read_room(user_id)
        assert reported == [
            ("started", None),
            ("progress", f"inside {user_id}"),
            ("completed", None),
        ]


async def test_bound_function_may_bind_again(rooms: str, read_room: Callable[[str], Any]) -> None:
    await run_program(rooms, "twice", "fork")
    for user_id in "abc":
        reported = await read_room(user_id)
        assert [what for type, what in reported if type == "progress"][-1] == f"Rendering {user_id}"
        assert "".join(what for type, what in reported if type == "delta") == text_of(user_id)


async def test_invalid_argument_in_a_pool_process_is_omitted(
    rooms: str, read_room: Callable[[str], Any]
) -> None:
    await run_program(rooms, "wrongly", "spawn")
    assert await read_room("a") == [
        ("started", None), ("progress", "went on"), ("completed", None)
    ]  # fmt: skip
