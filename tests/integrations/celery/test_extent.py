"""No pool leaks a task's reporter to another task: every room is searched for foreign reports."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import celery
import httpx
import pytest

from synap_realtime.testing import RealtimeRecorder
from tests.integrations.celery.pools import POOLS
from tests.support.timeouts import TIMEOUT_S

from . import tasks
from .conftest import Worker, read_room, until, words

USERS = [f"u{n}" for n in range(8)]


@pytest.mark.parametrize("pool", POOLS)
def test_reports_of_a_task_stay_in_its_room(
    rooms: str, broker: str, tmp_path: Path, pool: str
) -> None:
    gate = str(tmp_path / "over")
    worker = Worker({"BROKER_URL": broker, "REALTIME_URL": rooms}, *POOLS[pool])
    docs = [f"{pool}-{user}" for user in USERS]
    try:
        for doc in docs:
            # A fork under eventlet's hub takes the hub's files along, whatever is done in it.
            tasks.leaves.delay(gate, doc, pool != "eventlet", user_id=doc)
            tasks.outside.delay(doc)
        for doc in docs:
            read_room(rooms, f"user_{doc}")
        until(lambda: all(Path(f"{gate}-{doc}").exists() for doc in docs))
        tasks.outside.delay(pool).get(timeout=TIMEOUT_S)
    finally:
        worker.stop()
    for doc in docs:
        messages = read_room(rooms, f"user_{doc}")
        reported = [word for word in words(messages) if word not in ("progress", "delta")]
        assert reported == ["started", "retrying", "completed"]
        text = "".join(m["data"]["delta"] for m in messages if m["type"].endswith("delta"))
        assert text == "".join(f"{what} {doc};" for what in ("begin", "begin", "bound", "end"))
        labels = [m["data"]["label"] for m in messages if m["type"].endswith("progress")]
        assert {label.partition(" ")[0] for label in labels} <= {"begin", "bound", "end"}
        assert {label.partition(" ")[2] for label in labels} == {doc}
        assert messages[-1]["type"].endswith("completed")
    answer = httpx.get(f"{rooms}/rooms/user_{pool}/history").json()
    assert answer["notifications"] == []


# Eager tasks run inside of their caller


@pytest.fixture
def eager() -> Iterator[celery.Celery]:
    tasks.app.conf.update(task_always_eager=True)
    yield tasks.app
    tasks.app.conf.update(task_always_eager=False, task_eager_propagates=False)


def text_of(realtime: RealtimeRecorder, user_id: str) -> str:
    return "".join(
        each.data["delta"] for each in realtime.sent("report.creation.delta", user_id=user_id)
    )


@pytest.mark.parametrize("propagates", [False, True])
def test_after_an_eager_task_nothing_is_reported(
    eager: celery.Celery, realtime: RealtimeRecorder, propagates: bool
) -> None:
    eager.conf.update(task_eager_propagates=propagates)
    for task in (
        tasks.replaces_itself.si("x", user_id="a"),  # Celery refuses that
        tasks.refuses.si(1),
        tasks.tries_again.si(user_id="b"),
        tasks.inner.si("x", user_id="c"),
    ):
        with suppress(Exception):
            task.apply_async()
        tasks._say("outside", "x")
    assert text_of(realtime, "c") == "inner x;"
    assert "outside" not in str(realtime.sent())


def test_nested_eager_task_reports_separately_from_its_parent(
    eager: celery.Celery, realtime: RealtimeRecorder
) -> None:
    tasks.outer.delay("x", user_id="a")
    assert text_of(realtime, "a") == "before x;after x;"
    assert text_of(realtime, "a-inner") == "inner x;"
    assert "untold" not in str(realtime.sent())
