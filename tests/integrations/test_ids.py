"""User ids that are an int or a UUID, such as a primary key, in each integration."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import celery
import pytest
from taskiq import InMemoryBroker

from synap_realtime.integrations.celery import RealtimeTask
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.integrations.taskiq import RealtimeMiddleware
from synap_realtime.jobs import JobRun, Recipient
from synap_realtime.testing import RealtimeRecorder

KEYS = [7, uuid.UUID(int=7)]


@pytest.fixture
def app() -> Iterator[celery.Celery]:
    app = celery.Celery("ids", set_as_current=False)
    app.conf.update(task_always_eager=True)
    yield app
    app.close()


@pytest.mark.parametrize("key", KEYS)
async def test_run_job(realtime: RealtimeRecorder, key: Any) -> None:
    async def work(run: JobRun) -> None: ...

    await run_job("report.creation", work, {"userId": key})
    assert len(realtime.sent(user_id=str(key))) == 2


@pytest.mark.parametrize("key", KEYS)
def test_celery(realtime: RealtimeRecorder, app: celery.Celery, key: Any) -> None:
    @app.task(  # type: ignore[untyped-decorator]
        base=RealtimeTask, job_type="report.creation", name=f"by_argument_{key}"
    )
    def by_argument(user_id: Any) -> None: ...

    @app.task(  # type: ignore[untyped-decorator]
        base=RealtimeTask,
        job_type="report.creation",
        name=f"by_person_{key}",
        recipient=lambda args, kwargs: Recipient(key),
    )
    def by_recipient() -> None: ...

    by_argument.apply(kwargs={"user_id": key})
    by_recipient.apply()
    assert len(realtime.sent(user_id=str(key))) == 4


@pytest.mark.parametrize("key", KEYS)
async def test_taskiq(realtime: RealtimeRecorder, key: Any) -> None:
    broker = InMemoryBroker().with_middlewares(RealtimeMiddleware())

    @broker.task(job_type="report.creation")
    async def work(user_id: Any) -> None: ...

    await broker.startup()
    await work.kiq(user_id=key)
    await broker.wait_all()
    await broker.shutdown()
    assert len(realtime.sent(user_id=str(key))) == 2
