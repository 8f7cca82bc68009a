"""All ways to write, serve and end an Inngest function publish the same lifecycle."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import inngest
import pytest

from synap_realtime import JobError, progress
from tests.integrations.inngest.frameworks import Served, by_django_asgi, by_django_wsgi, by_flask
from tests.integrations.inngest.gateway_worker import connected
from tests.support.timeouts import TIMEOUT_S

from .conftest import Stage, reporting_function, staged

WHO = {"userId": "42", "requestId": "r1"}


async def parallel(ctx: inngest.Context) -> dict[str, int]:
    async def part(n: int) -> int:
        progress(n / 10, f"part {n}")
        if ctx.attempt == 0 and n == 2:
            raise JobError("The printer is busy.")
        return n

    parts = tuple(functools.partial(ctx.step.run, f"part {n}", part, n) for n in (1, 2, 3))
    return {"sum": sum(await ctx.group.parallel(parts))}


def parallel_sync(ctx: inngest.ContextSync) -> dict[str, int]:
    def part(n: int) -> int:
        progress(n / 10, f"part {n}")
        if ctx.attempt == 0 and n == 2:
            raise JobError("The printer is busy.")
        return n

    parts = tuple(functools.partial(ctx.step.run, f"part {n}", part, n) for n in (1, 2, 3))
    return {"sum": sum(ctx.group.parallel(parts))}


@pytest.mark.parametrize("body", [parallel, parallel_sync])
async def test_parallel_steps(stage: Stage, body: Any) -> None:
    await stage.serve(reporting_function(stage, body))
    await stage.send("f", **WHO)
    await stage.finish()
    words = await stage.reported("42")
    assert (words[0], words[-1]) == ("started", "completed")
    assert sorted(words[1:-1]) == [*["progress"] * 4, "retrying"]
    received = await stage.read_room("user_42")
    labels = [m["data"]["label"] for m in received if "progress" in m["type"]]
    assert sorted(labels) == ["part 1", "part 2", "part 2", "part 3"]
    assert received[-1]["data"] == {"sum": 6}


async def test_invoked_function_reports_its_own_lifecycle(stage: Stage) -> None:
    async def child(ctx: inngest.Context) -> str:
        return "done"

    async def parent(ctx: inngest.Context) -> Any:
        data = {"userId": "43", "requestId": "r2"}
        return await ctx.step.invoke("call", function=invoked, data=data)

    invoked = reporting_function(stage, child, "child")
    await stage.serve(invoked, reporting_function(stage, parent, "parent"))
    await stage.send("parent", **WHO)
    await stage.finish()
    assert await stage.reported("43") == ["started", "completed"]
    received = await stage.read_room("user_42")
    assert [m["type"].rpartition(".")[2] for m in received] == ["started", "progress", "completed"]
    assert "stallAfterS" not in received[1]["data"]  # the other may take any time
    assert received[-1]["data"] == {"result": "done"}


@pytest.mark.parametrize("fails", [False, True])
async def test_batch_notifies_each_user_of_only_their_own_events(stage: Stage, fails: bool) -> None:
    async def body(ctx: inngest.Context) -> list[dict[str, Any]]:
        if fails:
            raise JobError("No paper.")
        return [{"secret": event.data["secret"]} for event in ctx.events]

    batch = inngest.Batch(max_size=4, timeout=timedelta(seconds=5))
    await stage.serve(reporting_function(stage, body, batch_events=batch, retries=0))
    for user_id, secret in (("1", "a"), ("2", "b"), ("2", "c"), ("3", "d")):
        await stage.send("f", userId=user_id, secret=secret)
    await stage.finish()
    for user_id in "123":
        assert await stage.reported(user_id) == ["started", "failed" if fails else "completed"]
    if not fails:
        ends = [(await stage.read_room(f"user_{user_id}"))[-1]["data"] for user_id in "123"]
        assert ends == [
            {"secret": "a"},
            {"results": [{"secret": "b"}, {"secret": "c"}]},
            {"secret": "d"},
        ]


async def test_unattributable_batch_result_is_omitted(stage: Stage) -> None:
    async def body(ctx: inngest.Context) -> dict[str, Any]:
        return {"all": [event.data["secret"] for event in ctx.events]}

    batch = inngest.Batch(max_size=2, timeout=timedelta(seconds=5))
    await stage.serve(reporting_function(stage, body, batch_events=batch))
    for user_id in "12":
        await stage.send("f", userId=user_id, secret=user_id)
    await stage.finish()
    for user_id in "12":
        assert (await stage.read_room(f"user_{user_id}"))[-1]["data"] == {}


@pytest.mark.parametrize("by", ["event", "timeout"])
async def test_a_cancelled_run_is_reported_and_its_failure_handler_is_not_called(
    stage: Stage, by: str
) -> None:
    own: list[str] = []

    async def body(ctx: inngest.Context) -> None:
        for n in range(100):
            await ctx.step.sleep(f"sleep {n}", timedelta(seconds=0.1))

    async def failed(ctx: inngest.Context) -> None:
        own.append(ctx.event.name)

    options: dict[str, Any] = {"cancel": [inngest.Cancel(event="stop")]}
    if by == "timeout":
        options = {"timeouts": inngest.Timeouts(finish=timedelta(seconds=1))}
    await stage.serve(reporting_function(stage, body, on_failure=failed, **options))
    await stage.send("f", **WHO)
    async with asyncio.timeout(TIMEOUT_S):
        while "progress" not in await stage.reported("42"):
            pass
    if by == "event":
        await stage.send("stop")
    await stage.finish()
    received = await stage.read_room("user_42")
    words = [m["type"].rpartition(".")[2] for m in received]
    assert (words[0], words[-1]) == ("started", "cancelled")
    assert set(words[1:-1]) == {"progress"}
    assert received[-1]["status"] == "error"
    assert received[-1]["data"]["runId"] == received[0]["data"]["runId"]
    assert not own


async def test_reports_max_attempts_of_the_server(stage: Stage) -> None:
    async def body(ctx: inngest.Context) -> None:
        if ctx.attempt == 0:
            raise inngest.RetryAfterError("later", timedelta(seconds=0.2))

    function = reporting_function(stage, body)
    await stage.serve(function)
    await stage.send("f", **WHO)
    await stage.finish()
    started, retrying, _ = await stage.read_room("user_42")
    assert (started["data"]["attempt"], started["data"]["maxAttempts"]) == (1, 5)
    assert (retrying["data"]["attempt"], retrying["data"]["maxAttempts"]) == (2, 5)
    assert 0 < retrying["data"]["retryInS"] <= 0.2


async def test_a_worker_that_connects_out(stage: Stage) -> None:
    async def waits(ctx: inngest.Context) -> str:
        progress(0.5, "async")
        return "done"

    def blocks(ctx: inngest.ContextSync) -> str:
        if ctx.attempt == 0:
            raise JobError("Again.")
        return "done"

    async def fails(ctx: inngest.Context) -> None:
        raise JobError("No paper.")

    functions = [
        reporting_function(stage, waits, "waits"),
        reporting_function(stage, blocks, "blocks"),
        reporting_function(stage, fails, "fails", retries=0),
    ]
    async with connected(stage.client, *functions):
        for name in ("waits", "blocks", "fails"):
            await stage.send(name, userId=name)
        await stage.finish()
    assert await stage.reported("waits") == ["started", "progress", "completed"]
    assert await stage.reported("blocks") == ["started", "retrying", "completed"]
    assert await stage.reported("fails") == ["started", "failed"]


def plain(ctx: inngest.ContextSync) -> str:
    def step() -> str:
        if ctx.attempt == 0:
            raise JobError("Again.")
        return "done"

    progress(0.5)
    return ctx.step.run("a", step)


async def coroutine(ctx: inngest.Context) -> str:
    async def step() -> str:
        if ctx.attempt == 0:
            raise JobError("Again.")
        return "done"

    progress(0.5)
    return await ctx.step.run("a", step)


@pytest.mark.parametrize("body", [plain, coroutine])
@pytest.mark.parametrize("serve", [by_flask, by_django_wsgi, by_django_asgi])
async def test_flask_and_django(serve: Served, body: Callable[[Any], Any]) -> None:
    async with staged() as stage, serve(stage.client, [reporting_function(stage, body)]) as url:
        await stage.server.register(f"{url}/api/inngest")
        await stage.send("f", **WHO)
        await stage.finish()
        words = await stage.reported("42")
        received = await stage.read_room("request_r1")
    # What stands before the step ran on both attempts.
    assert words == ["started", "progress", "retrying", "progress", "completed"]
    assert received[-1]["data"] == {"result": "done"}
