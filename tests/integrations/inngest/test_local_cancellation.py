"""LocalInngest cancels runs, and reports each end with the real server's payload."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import inngest
import pytest

from synap_realtime.integrations.inngest.local.registry import Cancel, Function

from .conftest import Stage, on, until

HOUR = datetime.timedelta(hours=1)
ENDINGS: list[inngest.TriggerCron | inngest.TriggerEvent] = [
    on(f"inngest/function.{ending}") for ending in ("finished", "failed", "cancelled")
]


def listener(stage: Stage, received: list[Any]) -> inngest.Function[Any]:
    """Record every end as it arrived, before the SDK has parsed it."""

    @stage.client.create_function(fn_id="listener", trigger=ENDINGS, retries=0)
    async def listener(ctx: inngest.Context) -> None:
        if ctx.event.data["function_id"] != "app-listener":
            received.append((ctx.event.name.rpartition(".")[2], ctx.event.id, ctx.event.data))

    return listener


def sleeper(stage: Stage, **options: Any) -> tuple[inngest.Function[Any], asyncio.Event]:
    """A function that sleeps for an hour; the event is set as soon as a run is there."""
    asleep = asyncio.Event()

    @stage.client.create_function(fn_id="f", trigger=on("go"), **options)
    async def f(ctx: inngest.Context) -> None:
        asleep.set()
        await ctx.step.sleep("long", HOUR)

    return f, asleep


def change(stage: Stage, **changes: Any) -> Function:
    """Give the sleeper what the SDK does not let us declare: times under a second."""
    functions = stage.server._registry._apps["app"]
    declared = functions["app-f"]
    functions["app-f"] = dataclasses.replace(declared, **changes)
    return declared


async def cancel_by_event(stage: Stage, _: str) -> None:
    await stage.send("stop")


async def cancel_by_id(stage: Stage, run_id: str) -> None:
    assert await stage.server.cancel(run_id)
    assert not await stage.server.cancel(run_id)


async def cancel_by_http(stage: Stage, run_id: str) -> None:
    async with httpx.AsyncClient() as client:
        response = await client.delete(f"{stage.inngest_url}/v1/runs/{run_id}")
    assert response.status_code == 200


@pytest.mark.parametrize("cancel", [cancel_by_event, cancel_by_id, cancel_by_http])
async def test_a_cancelled_run_is_reported_as_the_real_server_reports_it(
    stage: Stage, cancel: Callable[[Stage, str], Awaitable[None]]
) -> None:
    received: list[Any] = []
    f, asleep = sleeper(stage, cancel=[inngest.Cancel(event="stop")])
    await stage.serve(f, listener(stage, received))
    (event_id,) = await stage.send("go", x=1)
    await asleep.wait()
    (run_id,) = stage.server._executor._runs
    await cancel(stage, run_id)
    await stage.finish()
    given = {"data": {"x": 1}, "id": event_id, "name": "go"}
    (_, finished_id, finished), (name, id, data) = sorted(received, reverse=True)
    ts = data["event"]["ts"]
    assert (name, id) == ("cancelled", run_id)
    assert finished_id != run_id
    assert (
        data
        == finished
        == {
            "_inngest": {"status": "Cancelled"},
            "event": {**given, "ts": ts, "user": {}},
            "events": [{**given, "ts": ts}],
            "function_id": "app-f",
            "run_id": run_id,
        }
    )


async def test_only_an_event_for_which_the_condition_holds_cancels(stage: Stage) -> None:
    cancelled: list[str] = []

    async def on_cancelled(ctx: inngest.Context) -> None:
        event: Any = ctx.event.data["event"]
        cancelled.append(event["data"]["me"])

    handler = stage.client.create_function(fn_id="h", trigger=ENDINGS[2])(on_cancelled)
    condition = "async.data.who == event.data.me"
    f, _ = sleeper(stage, cancel=[inngest.Cancel(event="stop", if_exp=condition)])
    await stage.serve(f, handler)
    await stage.send("go", me="a")
    await stage.send("go", me="b")
    await stage.send("stop", who="b")
    await stage.send("stop", who="c")
    await until(lambda: cancelled)
    assert cancelled == ["b"]
    await until(lambda: len(stage.server._executor) == 1)  # the handler's own run ends, too


async def test_invalid_condition_does_not_cancel_and_is_logged(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    f, _ = sleeper(stage, cancel=[inngest.Cancel(event="stop", if_exp="nonsense(")])
    await stage.serve(f)
    await stage.send("go")
    await stage.send("stop")
    assert len(stage.server._executor) == 1
    assert ": its condition" in caplog.text


async def test_an_event_cancels_no_longer_when_its_timeout_is_over(stage: Stage) -> None:
    f, asleep = sleeper(stage, cancel=[inngest.Cancel(event="stop", timeout=HOUR)])
    await stage.serve(f)
    hour = change(stage, cancels=(Cancel("stop", None, timeout_s=0),))
    assert hour.cancels == (Cancel("stop", None, timeout_s=3600),)
    await stage.send("go")
    await asleep.wait()
    await stage.send("stop")
    assert len(stage.server._executor) == 1


async def test_an_event_does_not_cancel_the_run_that_it_starts(stage: Stage) -> None:
    f, asleep = sleeper(stage, cancel=[inngest.Cancel(event="go")])
    await stage.serve(f)
    await stage.send("go", n=1)
    await asleep.wait()
    (first,) = stage.server._executor._runs
    await stage.send("go", n=2)
    await until(lambda: first not in stage.server._executor._runs)
    assert len(stage.server._executor) == 1


async def test_a_step_is_not_interrupted_and_the_run_goes_no_further(stage: Stage) -> None:
    done: list[str] = []
    started, go_on = asyncio.Event(), asyncio.Event()

    @stage.client.create_function(
        fn_id="f", trigger=on("go"), cancel=[inngest.Cancel(event="stop")]
    )
    async def f(ctx: inngest.Context) -> None:
        async def step() -> None:
            started.set()
            await go_on.wait()
            done.append("step")

        await ctx.step.run("a", step)
        done.append("end")

    await stage.serve(f)
    await stage.send("go")
    await started.wait()
    await stage.send("stop")
    await until(lambda: not stage.server._executor)
    go_on.set()
    await stage.finish()
    assert done == ["step"]


async def test_a_run_that_lasts_too_long_is_cancelled(stage: Stage) -> None:
    received: list[Any] = []
    f, _ = sleeper(stage, timeouts=inngest.Timeouts(start=HOUR, finish=HOUR))
    await stage.serve(f, listener(stage, received))
    assert change(stage, finish_timeout_s=0.05).finish_timeout_s == 3600
    await stage.send("go")
    await stage.finish()
    assert sorted(name for name, _, _ in received) == ["cancelled", "finished"]


async def test_a_cancelled_batch_reports_all_its_events(stage: Stage) -> None:
    """A batch and ``cancel`` exclude each other; its timeouts and its id cancel it."""
    received: list[Any] = []
    minute = datetime.timedelta(minutes=1)
    f, asleep = sleeper(stage, batch_events=inngest.Batch(max_size=2, timeout=minute))
    await stage.serve(f, listener(stage, received))
    await stage.client.send([inngest.Event(name="go", data={"n": n}) for n in range(2)])
    await asleep.wait()
    (run_id,) = stage.server._executor._runs
    await stage.server.cancel(run_id)
    await stage.finish()
    (data,) = [data for name, _, data in received if name == "cancelled"]
    assert [event["data"]["n"] for event in data["events"]] == [0, 1]
    assert data["event"]["data"] == {"n": 0}
    assert len(received) == 2


async def test_a_failure_is_reported_as_the_real_server_reports_it(stage: Stage) -> None:
    received: list[Any] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=0)
    async def f(ctx: inngest.Context) -> None:
        raise RuntimeError("broken")

    await stage.serve(f, listener(stage, received))
    (event_id,) = await stage.send("go")
    await stage.finish()
    (_, _, finished), (name, id, data) = sorted(received, reverse=True)
    given = {"data": {}, "id": event_id, "name": "go", "ts": data["event"]["ts"]}
    error_body = {"message": "broken", "name": "RuntimeError", "stack": data["error"]["stack"]}
    assert (name, id) == ("failed", data["run_id"])
    assert "Traceback" in error_body["stack"]
    assert (
        data
        == finished
        == {
            "_inngest": {"status": "Failed"},
            "error": {"error": "invalid status code: 500", **error_body},
            "event": {**given, "user": {}},
            "events": [given],
            "function_id": "app-f",
            "result": {"code": "unknown", **error_body},
            "run_id": id,
        }
    )


async def test_a_final_error_is_reported_as_such(stage: Stage) -> None:
    received: list[Any] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        raise inngest.NonRetriableError("no use")

    await stage.serve(f, listener(stage, received))
    await stage.send("go")
    await stage.finish()
    (error,) = [data["error"] for name, _, data in received if name == "failed"]
    assert (error["error"], error["message"]) == ("NonRetriableError", "no use")


async def test_a_result_is_reported(stage: Stage) -> None:
    received: list[Any] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> dict[str, int]:
        return {"a": 1}

    await stage.serve(f, listener(stage, received))
    await stage.send("go")
    await stage.finish()
    ((name, _, data),) = received
    assert (name, data["_inngest"], data["result"]) == (
        "finished",
        {"status": "Completed"},
        {"a": 1},
    )
    assert "error" not in data
