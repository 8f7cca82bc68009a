"""LocalInngest runs functions that the real SDK serves, by the SDK's HTTP protocol."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import logging
from typing import Any

import httpx
import inngest
import pytest

from synap_realtime.integrations.inngest.local import LocalInngest, durations
from synap_realtime.integrations.inngest.local.expressions import ExpressionError, matches
from synap_realtime.integrations.inngest.local.runs import Backoff

from .conftest import Stage, on


async def test_step_runs_once_and_its_result_is_memoized(stage: Stage) -> None:
    calls: list[str] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        calls.append("body")

        async def step(name: str) -> str:
            calls.append(name)
            return name.upper()

        first = await ctx.step.run("a", step, "a")
        second = await ctx.step.run("b", step, "b")
        calls.append(first + second)

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert calls == ["body", "a", "body", "b", "body", "AB"]


async def test_failed_step_is_retried_alone(stage: Stage) -> None:
    attempts: list[tuple[str, int]] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=2)
    async def f(ctx: inngest.Context) -> None:
        async def steady() -> None:
            attempts.append(("steady", ctx.attempt))

        async def shaky() -> None:
            attempts.append(("shaky", ctx.attempt))
            if ctx.attempt < 2:
                raise RuntimeError("not yet")

        await ctx.step.run("steady", steady)
        await ctx.step.run("shaky", shaky)

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert attempts == [("steady", 0), ("shaky", 0), ("shaky", 1), ("shaky", 2)]


async def test_on_failure_runs_once_when_all_attempts_are_used(stage: Stage) -> None:
    attempts: list[int] = []
    failures: list[Any] = []

    async def failed(ctx: inngest.Context) -> None:
        failures.append(ctx.event.data)

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=1, on_failure=failed)
    async def f(ctx: inngest.Context) -> None:
        attempts.append(ctx.attempt)
        raise RuntimeError("never")

    await stage.serve(f)
    await stage.send("go", x=1)
    await stage.finish()
    assert attempts == [0, 1]
    (failure,) = failures
    assert failure["function_id"] == "app-f"
    assert failure["error"]["message"] == "never"
    assert failure["event"]["data"] == {"x": 1}
    assert failure["run_id"]


async def test_a_step_that_failed_for_good_can_be_caught(stage: Stage) -> None:
    caught: list[str] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=1)
    async def f(ctx: inngest.Context) -> None:
        async def broken() -> None:
            raise RuntimeError("broken")

        try:
            await ctx.step.run("broken", broken)
        except inngest.StepError as error:
            caught.append(error.message)

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert caught == ["broken"]


@pytest.mark.parametrize("where", ["step", "function"])
async def test_non_retriable_error_is_final(stage: Stage, where: str) -> None:
    attempts: list[int] = []
    failures: list[str] = []

    async def failed(ctx: inngest.Context) -> None:
        error: Any = ctx.event.data["error"]
        failures.append(error["message"])

    @stage.client.create_function(fn_id="f", trigger=on("go"), on_failure=failed)
    async def f(ctx: inngest.Context) -> None:
        async def refuse() -> None:
            attempts.append(ctx.attempt)
            raise inngest.NonRetriableError("no use")

        await (ctx.step.run("refuse", refuse) if where == "step" else refuse())

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert attempts == [0]
    assert failures == ["no use"]


async def test_retry_after_is_obeyed(stage: Stage) -> None:
    moments: list[datetime.datetime] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        moments.append(datetime.datetime.now(datetime.UTC))
        if ctx.attempt == 0:
            raise inngest.RetryAfterError("wait", 400)

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert len(moments) == 2
    assert (moments[1] - moments[0]).total_seconds() >= 0.39


async def test_sleep_send_event_and_wait_for_event(stage: Stage) -> None:
    ended: list[Any] = []

    @stage.client.create_function(fn_id="waiter", trigger=on("go"))
    async def waiter(ctx: inngest.Context) -> None:
        await ctx.step.sleep("nap", 50)
        found = await ctx.step.wait_for_event(
            "wait",
            event="answer",
            if_exp="async.data.to == event.data.me",
            timeout=datetime.timedelta(seconds=10),
        )
        ended.append(found.data["n"] if found else None)

    @stage.client.create_function(fn_id="answerer", trigger=on("ask"))
    async def answerer(ctx: inngest.Context) -> None:
        for n, to in enumerate(["other", "b"]):
            await ctx.step.send_event("send", inngest.Event(name="answer", data={"to": to, "n": n}))

    await stage.serve(waiter, answerer)
    await stage.send("go", me="b")
    while not stage.server._executor._waiters._waiting:
        await _tick()
    await stage.send("ask")
    await stage.finish()
    assert ended == [1]


async def test_a_wait_that_is_not_answered_ends_with_none(stage: Stage) -> None:
    ended: list[Any] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        ended.append(await ctx.step.wait_for_event("wait", event="never", timeout=1000))

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert ended == [None]


async def test_parallel_group_runs_each_step_once(stage: Stage) -> None:
    done: list[str] = []
    results: list[Any] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=3)
    async def f(ctx: inngest.Context) -> None:
        async def work(name: str) -> str:
            if name == "b" and ctx.attempt == 0:
                raise RuntimeError("b is shaky")
            done.append(name)
            return name

        results.append(
            await ctx.group.parallel(
                (
                    lambda: ctx.step.run("a", work, "a"),
                    lambda: ctx.step.run("b", work, "b"),
                    lambda: ctx.step.run("c", work, "c"),
                )
            )
        )
        await ctx.step.run("last", work, "last")

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert sorted(done) == ["a", "b", "c", "last"]
    assert done[-1] == "last"
    assert tuple(results[-1]) == ("a", "b", "c")


async def test_sync_functions_run_too(stage: Stage) -> None:
    ended: list[Any] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    def f(ctx: inngest.ContextSync) -> None:
        first = ctx.step.run("a", lambda: 1)
        pair = ctx.group.parallel(
            (lambda: ctx.step.run("b", lambda: 2), lambda: ctx.step.run("c", lambda: 3))
        )
        ctx.step.sleep("nap", 10)
        ended.append((first, tuple(pair)))

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert ended[-1] == (1, (2, 3))


async def test_a_function_invokes_another(stage: Stage) -> None:
    ended: list[Any] = []

    @stage.client.create_function(fn_id="double", trigger=on("unused"))
    async def double(ctx: inngest.Context) -> int:
        n = ctx.event.data["n"]
        assert isinstance(n, int)
        return await ctx.step.run("double", _times_two, n)

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        ended.append(await ctx.step.invoke("call", function=double, data={"n": 21}))

    await stage.serve(double, f)
    await stage.send("go")
    await stage.finish()
    assert ended == [42]


async def test_an_invoked_function_that_fails_has_its_failure_handler(stage: Stage) -> None:
    received: list[str] = []

    async def failed(ctx: inngest.Context) -> None:
        received.append("handler")

    @stage.client.create_function(fn_id="g", trigger=on("no"), retries=0, on_failure=failed)
    async def g(ctx: inngest.Context) -> None:
        raise RuntimeError("broken")

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=0)
    async def f(ctx: inngest.Context) -> None:
        try:
            await ctx.step.invoke("call", function=g)
        except inngest.StepError as error:
            received.append(error.message)

    await stage.serve(g, f)
    await stage.send("go")
    await stage.finish()
    assert sorted(received) == ["broken", "handler"]


async def test_streamed_answers_are_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNGEST_STREAMING", "force")
    calls: list[str] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        calls.append("body")

        async def step() -> None:
            calls.append("step")

        await ctx.step.run("a", step)

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert calls == ["body", "step", "body"]


@pytest.mark.parametrize("value", [float("nan"), "\ud800"])
async def test_a_result_that_cannot_be_sent_back_ends_the_run(stage: Stage, value: Any) -> None:
    ended: list[str] = []

    async def failed(ctx: inngest.Context) -> None:
        ended.append("failed")

    @stage.client.create_function(fn_id="f", trigger=on("go"), on_failure=failed)
    async def f(ctx: inngest.Context) -> None:
        async def step() -> Any:
            return value

        await ctx.step.run("a", step)
        ended.append("completed")

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert len(ended) == 1


async def test_the_same_request_twice_is_the_same_events(stage: Stage) -> None:
    ran: list[str] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        ran.append(ctx.event.name)

    await stage.serve(f)
    async with httpx.AsyncClient() as client:
        for seed in ("1,a", "1,a", "2,b"):
            await client.post(
                f"{stage.inngest_url}/e/key",
                json=[{"name": "go"}, {"name": "go"}],
                headers={"x-inngest-event-id-seed": seed},
            )
    await stage.finish()
    assert len(ran) == 4


async def test_an_unknown_operation_fails_with_a_clear_error(stage: Stage) -> None:
    failures: list[Any] = []

    async def failed(ctx: inngest.Context) -> None:
        failures.append(ctx.event.data["error"])

    @stage.client.create_function(fn_id="f", trigger=on("go"), on_failure=failed)
    async def f(ctx: inngest.Context) -> None:
        from inngest.experimental.ai.openai import Adapter

        adapter = Adapter(auth_key="none", model="none")
        await ctx.step.ai.infer("ask", adapter=adapter, body={})

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert "LocalInngest does not know the operation 'AIGateway'" in failures[0]["message"]
    assert "npx inngest-cli dev" in failures[0]["message"]


async def test_triggers_have_conditions_and_wildcards(stage: Stage) -> None:
    ran: list[str] = []

    @stage.client.create_function(fn_id="big", trigger=on("order", "event.data.sum > 10"))
    async def big(ctx: inngest.Context) -> None:
        ran.append("big")

    @stage.client.create_function(fn_id="all", trigger=on("ord*"))
    async def every(ctx: inngest.Context) -> None:
        ran.append("all")

    await stage.serve(big, every)
    for data in ({"sum": 5}, {"sum": 50}, {}):
        await stage.send("order", **data)
        await stage.finish()
    assert sorted(ran) == ["all", "all", "all", "big"]


async def test_an_events_id_counts_once(stage: Stage) -> None:
    ran: list[str] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        ran.append(ctx.event.id)

    await stage.serve(f)
    for _ in range(3):
        ids = await stage.client.send(inngest.Event(name="go", id="same"))
        assert ids == ["same"]
    await stage.finish()
    assert ran == ["same"]


@pytest.mark.parametrize(
    "body", ["", "nonsense", "[]x", "7", "{}", '{"name":""}', '{"name":"a","data":[]}', "[[]]"]
)
async def test_a_bad_event_gets_a_clear_400(stage: Stage, body: str) -> None:
    async with httpx.AsyncClient(headers={"Content-Type": "application/json"}) as client:
        response = await client.post(f"{stage.inngest_url}/e/key", content=body)
        assert response.status_code == 400
        assert "not an event" in response.json()["error"]
        response = await client.post(f"{stage.inngest_url}/fn/register", content=body)
        assert response.status_code == 400


async def test_unavailable_app_is_retried(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """First no SDK responds, then nothing does: failed attempts, reported as by the real server."""
    failures: list[Any] = []

    async def failed(ctx: inngest.Context) -> None:
        failures.append(ctx.event.data)

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=1, on_failure=failed)
    async def f(ctx: inngest.Context) -> None:
        pytest.fail("this function has moved away")

    await stage.serve(f)
    functions = stage.server._registry._apps["app"]
    for url in (f"{stage.rooms_url}/moved", "http://127.0.0.1:9/api/inngest"):
        functions["app-f"] = dataclasses.replace(functions["app-f"], url=url)
        await stage.send("go")
        await stage.finish()
    message = "Your server returned HTTP 404 before the SDK responded."
    first, second = failures
    assert first["error"]["error"] == first["error"]["message"] == message
    assert first["error"]["name"] == "Server returned a fatal error"
    assert "Upstream response (application/json):" in first["error"]["stack"]
    assert first["result"] == first["error"]
    text = (
        '{"error":{"error":"Unable to reach SDK URL","name":"Error",'
        '"message":"Unable to reach SDK URL"}}'
    )
    error = {"error": "Unable to reach SDK URL", "message": text, "name": "Error"}
    assert (second["error"], second["result"]) == (error, text)
    assert caplog.text.count("could not be reached") == 2
    assert caplog.text.count("the attempt has failed") == 4


async def test_logs_ignored_options(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    @stage.client.create_function(
        fn_id="f",
        trigger=inngest.TriggerCron(cron="* * * * *"),
        debounce=inngest.Debounce(period=datetime.timedelta(seconds=5)),
    )
    async def f(ctx: inngest.Context) -> None: ...

    with caplog.at_level(logging.WARNING):
        await stage.serve(f)
    assert "does not support cron" in caplog.text
    assert "ignores debounce" in caplog.text


async def test_logs_lost_runs_at_shutdown(caplog: pytest.LogCaptureFixture) -> None:
    from .conftest import staged

    async with staged() as stage:

        @stage.client.create_function(fn_id="f", trigger=on("go"))
        async def f(ctx: inngest.Context) -> None:
            await ctx.step.sleep("long", datetime.timedelta(hours=1))

        await stage.serve(f)
        await stage.send("go")
        await _tick()
    assert "1 unfinished runs lost" in caplog.text


async def test_registered_waits_for_unreachable_apps(stage: Stage) -> None:
    server = LocalInngest(["http://127.0.0.1:9/api/inngest"])
    async with server:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.registered(), 0.2)


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5), ("1h30m", 5400), ("2w", 1209600)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert durations.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "5 s", "5x"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        durations.seconds(text)


def test_conditions_are_cel() -> None:
    event = {"data": {"a": 1, "name": "x"}}
    assert matches("event.data.a == 1 && event.data.name.startsWith('x')", event=event)
    assert not matches("event.data.missing == 1", event=event)
    assert not matches("event.data.a", event=event)
    with pytest.raises(ExpressionError, match="cannot be evaluated"):
        matches("event.data.a ==", event=event)


def test_the_waits_grow_and_stay_short() -> None:
    backoff = Backoff()
    waits = [backoff.before(attempt) for attempt in range(1, 10)]
    assert waits == sorted(waits)
    assert waits[0] == 0.2
    assert waits[-1] == 5.0


def _times_two(n: int) -> Any:
    return n * 2


async def _tick() -> None:
    await asyncio.sleep(0.05)
