"""LocalInngest batches events as the real server does (``batch_events``)."""

from __future__ import annotations

import datetime
import logging
from typing import Any

import httpx
import inngest
import pytest

from synap_realtime.integrations.inngest.local.registry import RegistrationError, Registry

from .conftest import Stage, on, staged

SHORT = datetime.timedelta(seconds=1)
LONG = datetime.timedelta(minutes=1)


def batching(stage: Stage, batch: inngest.Batch, ran: list[Any]) -> inngest.Function[Any]:
    @stage.client.create_function(fn_id="f", trigger=on("go"), batch_events=batch)
    async def f(ctx: inngest.Context) -> None:
        assert ctx.event == ctx.events[0]
        ran.append([event.data["n"] for event in ctx.events])

    return f


def events(*data: dict[str, Any]) -> list[inngest.Event]:
    return [inngest.Event(name="go", data=item) for item in data]


async def test_a_full_batch_is_one_run(stage: Stage) -> None:
    ran: list[Any] = []
    await stage.serve(batching(stage, inngest.Batch(max_size=2, timeout=LONG), ran))
    await stage.client.send(events(*({"n": n} for n in range(4))))
    await stage.finish()
    assert sorted(ran) == [[0, 1], [2, 3]]


async def test_incomplete_batch_starts_after_its_timeout(stage: Stage) -> None:
    ran: list[Any] = []
    await stage.serve(batching(stage, inngest.Batch(max_size=10, timeout=SHORT), ran))
    await stage.client.send(events({"n": 1}))
    await stage.client.send(events({"n": 2}))
    await stage.finish()
    assert ran == [[1, 2]]


async def test_every_key_has_its_own_batch(stage: Stage) -> None:
    ran: list[Any] = []
    batch = inngest.Batch(max_size=2, timeout=LONG, key="event.data.k")
    await stage.serve(batching(stage, batch, ran))
    await stage.client.send(events(*({"n": n, "k": n % 2} for n in range(4))))
    await stage.finish()
    assert sorted(ran) == [[0, 2], [1, 3]]


@pytest.mark.parametrize("condition", ["event.data.n > 5", "nonsense("])
async def test_an_event_that_is_not_to_be_batched_is_alone(stage: Stage, condition: str) -> None:
    ran: list[Any] = []
    batch = inngest.Batch(max_size=2, timeout=LONG, if_exp=condition)
    await stage.serve(batching(stage, batch, ran))
    await stage.client.send(events({"n": 1}))
    await stage.finish()
    assert ran == [[1]]


async def test_a_step_is_done_once_for_a_batch(stage: Stage) -> None:
    done: list[int] = []

    @stage.client.create_function(
        fn_id="f", trigger=on("go"), batch_events=inngest.Batch(max_size=3, timeout=LONG)
    )
    async def f(ctx: inngest.Context) -> None:
        async def step() -> None:
            done.append(len(ctx.events))

        await ctx.step.run("a", step)
        await ctx.step.run("b", step)

    await stage.serve(f)
    await stage.client.send(events({}, {}, {}))
    await stage.finish()
    assert done == [3, 3]


FULL = {"maxSize": 2, "timeout": "5s"}


def register(**options: Any) -> None:
    step = {"runtime": {"url": "http://127.0.0.1:9/"}}
    config = {"id": "f", "steps": {"step": step}, "triggers": [], **options}
    Registry().register({"appname": "a", "functions": [config]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"batchEvents": {**FULL, "maxSize": 1}},
        {"batchEvents": {**FULL, "timeout": None}},
        {"batchEvents": {**FULL, "timeout": "900ms"}},
        {"batchEvents": FULL, "cancel": [{"event": "stop"}]},
    ],
)
def test_refuses_configurations_that_inngest_refuses(wrong: Any) -> None:
    with pytest.raises(RegistrationError, match="batchEvents"):
        register(**wrong)


def test_does_not_log_batches_as_ignored(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        register(batchEvents=FULL, timeouts={"finish": "1m"})
        register(cancel=[{"event": "stop"}])
    assert not caplog.text


async def test_logs_lost_events_of_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    async with staged() as stage:
        await stage.serve(batching(stage, inngest.Batch(max_size=2, timeout=LONG), []))
        await stage.client.send(events({"n": 1}))
    assert "1 events of unfinished batches lost" in caplog.text


async def test_refuses_reserved_inngest_names(stage: Stage) -> None:
    async with httpx.AsyncClient() as client:
        url = f"{stage.inngest_url}/e/key"
        response = await client.post(url, json={"name": "inngest/function.failed", "data": {}})
    assert response.status_code == 400
    assert response.json()["error"] == (
        "event name is reserved for internal use: inngest/function.failed"
    )
