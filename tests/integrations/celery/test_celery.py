"""Notifications of a Celery task: a real worker on a real broker, also when it is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import celery
import pytest

from synap_realtime import ConfigurationError
from synap_realtime.integrations.celery import RealtimeTask

from . import tasks
from .conftest import LIMIT_S, Messages, Worker, read_room, words


@pytest.fixture(scope="module")
def worker(rooms: str, broker: str) -> Iterator[Worker]:
    worker = Worker({"BROKER_URL": broker, "REALTIME_URL": rooms})
    yield worker
    worker.stop()


@pytest.fixture
def read(rooms: str, worker: Worker) -> Callable[..., Messages]:
    """Read a room's history once it holds enough: by default, a terminal notification."""
    return partial(read_room, rooms)


def test_task_reports_its_lifecycle(read: Callable[..., Messages]) -> None:
    tasks.works.delay("Q3", user_id="1", request_id="r1")
    messages = read("user_1")
    assert words(messages) == ["started", "progress", "completed"]
    assert messages[1]["data"]["label"] == "Rendering"
    assert messages[-1]["data"] == {"title": "Q3"}
    assert [m["id"] for m in messages] == [m["id"] for m in read("request_r1")]


def test_a_retry_is_reported_with_its_attempt_and_its_time(read: Callable[..., Messages]) -> None:
    tasks.tries_again.delay(user_id="2")
    messages = read("user_2")
    assert words(messages) == ["started", "retrying", "retrying", "completed"]
    retries = [message["data"] for message in messages[1:3]]
    assert [(r["attempt"], r["maxAttempts"], r["retryInS"]) for r in retries] == [
        (2, 4, 0.05),
        (3, 4, 0.05),
    ]
    assert retries[0]["error"] == "The printer is busy."
    assert messages[-1]["data"] == {"attempt": 3}


def test_the_last_attempts_failure_is_final(read: Callable[..., Messages]) -> None:
    tasks.gives_up.delay({"userId": "3"})
    messages = read("user_3")
    assert words(messages) == ["started", "retrying", "failed"]
    assert messages[-1]["data"]["error"].startswith("Something went wrong")
    assert "hunter2" not in str(messages)


def test_custom_function_finds_the_recipient(read: Callable[..., Messages]) -> None:
    tasks.refuses.delay(4)
    messages = read("user_user-4")
    assert words(messages) == ["started", "failed"]
    assert messages[-1]["data"]["error"] == "It is empty."


@pytest.mark.parametrize("task", [tasks.takes_too_long, tasks.takes_far_too_long])
def test_a_time_limit_is_a_failure(read: Callable[..., Messages], task: Any) -> None:
    user_id = task.name.rpartition(".")[2]
    task.delay(user_id=user_id)
    assert words(read(f"user_{user_id}")) == ["started", "failed"]


def test_invalid_input_is_final_despite_retries(read: Callable[..., Messages]) -> None:
    tasks.retries_all.delay(user_id="10")
    messages = read("user_10")
    assert words(messages) == ["started", "failed"]
    assert messages[-1]["data"]["error"] == "It is empty."


def test_a_retry_is_reported_before_another_worker_can_take_it(
    read: Callable[..., Messages], tmp_path: Path
) -> None:
    seen = tmp_path / "seen"
    tasks.looks_when_it_retries.delay(str(seen), user_id="11")
    assert words(read("user_11")) == ["started", "retrying", "completed"]
    assert seen.read_text() == "report.creation.started report.creation.retrying"


@pytest.mark.parametrize("task", [tasks.looks_away, tasks.is_turned_away])
def test_a_task_that_is_dropped_is_cancelled(read: Callable[..., Messages], task: Any) -> None:
    user_id = task.name.rpartition(".")[2]
    task.delay(user_id=user_id)
    assert words(read(f"user_{user_id}")) == ["started", "cancelled"]


@pytest.mark.parametrize("task", [tasks.is_put_back, tasks.runs_again_when_late])
def test_a_task_that_goes_back_to_the_broker_is_not_over(
    read: Callable[..., Messages], tmp_path: Path, task: Any
) -> None:
    user_id = task.name.rpartition(".")[2]
    task.delay(str(tmp_path / "marker"), user_id=user_id)
    reported = words(read(f"user_{user_id}"))
    assert [word for word in reported if word != "progress"] == ["started", "completed"]


def test_replaced_task_ends_with_its_replacement(read: Callable[..., Messages]) -> None:
    tasks.hands_over.delay(user_id="12")
    messages = read("user_12")
    assert words(messages) == ["started", "progress", "completed"]
    assert messages[-1]["data"] == {"title": "Q4"}


def test_task_runs_without_a_recipient(worker: Worker) -> None:
    assert tasks.knows_nobody.delay().get(timeout=LIMIT_S) == 7


def kill_child(read: Callable[..., Messages], room: str) -> None:
    """Kill the process that runs the task, once the task has published its id."""
    reported = read(room, lambda messages: len(messages) > 1)[-1]
    os.kill(int(reported["data"]["label"]), signal.SIGKILL)


def test_a_lost_process_is_a_failure(read: Callable[..., Messages], tmp_path: Path) -> None:
    tasks.is_lost.delay(str(tmp_path / "marker"), user_id="5")
    kill_child(read, "user_5")
    assert words(read("user_5")) == ["started", "progress", "failed"]


def test_task_rerun_after_a_lost_process_is_one_run(
    read: Callable[..., Messages], tmp_path: Path
) -> None:
    tasks.is_lost_and_runs_again.delay(str(tmp_path / "marker"), user_id="6")
    kill_child(read, "user_6")
    messages = read("user_6")
    assert words(messages) == ["started", "progress", "progress", "completed"]
    assert messages[-1]["data"] == {"done": True}


def test_a_revoked_task_is_cancelled(read: Callable[..., Messages]) -> None:
    running = tasks.waits.delay(user_id="8")
    read("user_8", lambda messages: len(messages) > 1)
    waiting = tasks.waits.delay(user_id="9")
    waiting.revoke()
    running.revoke(terminate=True)
    assert words(read("user_8")) == ["started", "progress", "cancelled"]
    assert words(read("user_9")) == ["cancelled"]


def test_task_whose_recipient_is_none_runs(worker: Worker) -> None:
    assert tasks.is_nobodys.delay().get(timeout=LIMIT_S) == 7


def test_task_without_a_job_type_is_refused_at_definition() -> None:
    app = celery.Celery("wrong")

    @app.task(base=RealtimeTask, shared=False)  # type: ignore[untyped-decorator]
    def wrong() -> None: ...

    with pytest.raises(ConfigurationError, match="job_type="):
        app.finalize()


def test_task_of_a_killed_worker_resumes_in_the_next(
    read: Callable[..., Messages], worker: Worker, tmp_path: Path
) -> None:
    tasks.is_lost_and_runs_again.delay(str(tmp_path / "marker"), user_id="7")
    read("user_7", lambda messages: len(messages) > 1)
    worker.kill()
    worker.start(VISIBILITY_TIMEOUT_S="2")
    assert words(read("user_7")) == ["started", "progress", "progress", "completed"]
