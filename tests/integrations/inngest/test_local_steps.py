"""LocalInngest runs steps as the real server does: races, invocations, attempts."""

from __future__ import annotations

import asyncio
import datetime
from typing import Any

import inngest
import pytest

from tests.support.timeouts import TIMEOUT_S

from .conftest import Stage, on, until


@pytest.mark.parametrize("mode", [inngest.ParallelMode.RACE, inngest.ParallelMode.WAIT])
async def test_branches_of_a_race_proceed_independently(
    stage: Stage, mode: inngest.ParallelMode
) -> None:
    done: list[str] = []
    go_on = asyncio.Event()

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=0)
    async def f(ctx: inngest.Context) -> None:
        async def step(name: str) -> None:
            if name == "slow":
                async with asyncio.timeout(TIMEOUT_S):
                    await go_on.wait()
            if name == "quick 2" or mode is inngest.ParallelMode.WAIT:
                go_on.set()
            done.append(name)

        async def quick() -> None:
            await ctx.step.run("quick 1", step, "quick 1")
            await ctx.step.run("quick 2", step, "quick 2")

        async def slow() -> None:
            await ctx.step.run("slow", step, "slow")

        await ctx.group.parallel((quick, slow), parallel_mode=mode)
        await ctx.step.run("last", step, "last")

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    if mode is inngest.ParallelMode.RACE:
        assert done == ["quick 1", "quick 2", "slow", "last"]
    else:
        assert done == ["quick 1", "slow", "quick 2", "last"]


def child(stage: Stage, **options: Any) -> inngest.Function[Any]:
    @stage.client.create_function(fn_id="child", trigger=on("unused"), retries=0, **options)
    async def child(ctx: inngest.Context) -> Any:
        match ctx.event.data:
            case {"do": "fail"}:
                raise RuntimeError("broken")
            case {"do": "sleep"}:
                await ctx.step.sleep("long", datetime.timedelta(hours=1))
        about: Any = ctx.event.data["_inngest"]
        return {"name": ctx.event.name, "fn_id": about["fn_id"], "data": ctx.event.data["do"]}

    return child


def parent(
    stage: Stage, function: inngest.Function[Any], ended: list[Any], **options: Any
) -> inngest.Function[Any]:
    @stage.client.create_function(fn_id="parent", trigger=on("go"), retries=0)
    async def parent(ctx: inngest.Context) -> None:
        try:
            ended.append(
                await ctx.step.invoke("call", function=function, data=ctx.event.data, **options)
            )
        except inngest.StepError as error:
            ended.append((error.name, error.message))

    return parent


async def test_invoked_function_receives_its_event(stage: Stage) -> None:
    ended: list[Any] = []
    called = child(stage)
    await stage.serve(called, parent(stage, called, ended))
    await stage.send("go", do="return")
    await stage.finish()
    assert ended == [{"name": "inngest/function.invoked", "fn_id": "app-child", "data": "return"}]


async def test_an_invoked_functions_failure_is_a_step_error(stage: Stage) -> None:
    ended: list[Any] = []
    called = child(stage)
    await stage.serve(called, parent(stage, called, ended))
    await stage.send("go", do="fail")
    await stage.finish()
    assert ended == [("RuntimeError", "broken")]


async def test_an_invoked_function_that_takes_too_long_is_a_step_error(stage: Stage) -> None:
    """It is not cancelled by that: only its caller goes on."""
    ended: list[Any] = []
    called = child(stage)
    timeout = datetime.timedelta(seconds=1)
    await stage.serve(called, parent(stage, called, ended, timeout=timeout))
    await stage.send("go", do="sleep")
    await until(lambda: ended)
    message = "Timed out waiting for invoked function to complete"
    assert ended == [("InngestInvokeTimeoutError", message)]
    assert "app-child" in [run.function.id for run in stage.server._executor._runs.values()]


async def test_caller_of_a_cancelled_function_receives_the_event(
    stage: Stage,
) -> None:
    """So does the real server: what is cancelled has neither a result nor an error."""
    ended: list[Any] = []
    called = child(stage, cancel=[inngest.Cancel(event="stop")])
    await stage.serve(called, parent(stage, called, ended))
    await stage.send("go", do="sleep")
    await until(lambda: len(stage.server._executor) == 2)
    await stage.send("stop")
    await stage.finish()
    assert ended[0]["name"] == "inngest/function.finished"
    assert ended[0]["data"]["_inngest"] == {"status": "Cancelled"}


async def test_an_invoked_function_outlives_its_caller(stage: Stage) -> None:
    ended: list[Any] = []
    called = child(stage)
    await stage.serve(called, parent(stage, called, ended))
    await stage.send("go", do="sleep")
    await until(lambda: len(stage.server._executor) == 2)
    (caller,) = [
        id for id, run in stage.server._executor._runs.items() if run.function.id == "app-parent"
    ]
    await stage.server.cancel(caller)
    (left,) = stage.server._executor._runs.values()
    assert left.function.id == "app-child"


async def test_batch_result_is_returned_to_every_caller(stage: Stage) -> None:
    ended: list[Any] = []
    minute = datetime.timedelta(minutes=1)
    called = child(stage, batch_events=inngest.Batch(max_size=2, timeout=minute))
    await stage.serve(called, parent(stage, called, ended))
    await stage.send("go", do="a")
    await stage.send("go", do="b")
    await stage.finish()
    assert len(ended) == 2


async def test_invoking_an_unknown_function_is_a_step_error(stage: Stage) -> None:
    ended: list[Any] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"))
    async def f(ctx: inngest.Context) -> None:
        try:
            await ctx.step.invoke_by_id("call", app_id="app", function_id="nowhere")
        except inngest.StepError as error:
            ended.append((error.name, error.message))

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert ended == [("Error", "could not find function with ID: app-nowhere")]


@pytest.mark.parametrize(("retries", "attempts"), [(None, 5), (0, 1), (2, 3)])
async def test_request_holds_max_attempts(stage: Stage, retries: int | None, attempts: int) -> None:
    """The SDK uses it to distinguish a step's last failure from one that is retried."""
    passed: list[Any] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=retries)
    async def f(ctx: inngest.Context) -> None:
        passed.append(getattr(ctx.step, "_execution")._request.ctx.max_attempts)  # noqa: B009

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert passed == [attempts]


async def test_a_failed_step_is_reported_to_the_function_without_the_sdks_code(
    stage: Stage,
) -> None:
    """The real server keeps an error's name, message, stack, data and cause."""
    kept: list[Any] = []

    @stage.client.create_function(fn_id="f", trigger=on("go"), retries=0)
    async def f(ctx: inngest.Context) -> None:
        async def broken() -> None:
            raise ValueError("broken")

        try:
            await ctx.step.run("broken", broken)
        except inngest.StepError:
            (run,) = stage.server._executor._runs.values()
            kept.extend(run.steps.values())

    await stage.serve(f)
    await stage.send("go")
    await stage.finish()
    assert sorted(kept[0]["error"]) == ["message", "name", "stack"]
