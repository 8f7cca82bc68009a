"""Each run of an Inngest function ends with exactly one terminal notification."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import inngest
import pytest
from pydantic import RootModel

from synap_realtime import InvalidInputError, JobError
from tests.integrations.inngest.functions import function
from tests.support.models import Computed

from .conftest import Stage


@pytest.fixture(params=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_reports_the_failure_when_the_app_is_back(stage: Stage, kind: str) -> None:
    asked = []

    def is_away(query: str) -> bool:
        if "failure" in query:
            asked.append(query)
        return "failure" in query and len(asked) <= 5

    def body(ctx: Any) -> None:
        raise JobError("No paper.")

    stage.gate.is_away = is_away
    await stage.serve(function(stage, kind, body, retries=0))
    await stage.send("go", userId="42")
    await stage.finish()
    assert len(asked) == 6
    assert await stage.reported("42") == ["started", "failed"]
    assert (await stage.read_room("user_42"))[-1]["data"]["error"] == "No paper."


async def test_failure_handler_that_raises_is_called_once(stage: Stage, kind: str) -> None:
    calls = []

    def body(ctx: Any) -> None:
        raise JobError("No paper.")

    def failed_sync(ctx: inngest.ContextSync) -> None:
        calls.append(1)
        raise RuntimeError("no")

    async def failed_async(ctx: inngest.Context) -> None:
        failed_sync(ctx)  # type: ignore[arg-type]

    own = failed_async if kind == "async" else failed_sync
    await stage.serve(function(stage, kind, body, retries=0, on_failure=own))
    await stage.send("go", userId="42")
    await stage.finish()
    assert calls == [1]
    assert await stage.reported("42") == ["started", "failed"]


async def test_waiting_again_under_one_name_is_reported_again(stage: Stage, kind: str) -> None:
    pause = timedelta(milliseconds=10)

    def sync_body(ctx: inngest.ContextSync) -> None:
        for _ in range(3):
            ctx.step.run("work", lambda: None)
            ctx.step.sleep("pause", pause)

    async def async_body(ctx: inngest.Context) -> None:
        async def work() -> None: ...

        for _ in range(3):
            await ctx.step.run("work", work)
            await ctx.step.sleep("pause", pause)

    await stage.serve(function(stage, kind, async_body if kind == "async" else sync_body))
    await stage.send("go", userId="42")
    await stage.finish()
    assert await stage.reported("42") == ["started", *["progress"] * 3, "completed"]
    waits = (await stage.read_room("user_42"))[1:-1]
    assert all("stallAfterS" not in each["data"] for each in waits)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InvalidInputError("Empty."), ["started", "failed"]),
        (JobError("Empty."), ["started", "retrying", "failed"]),
    ],
)
@pytest.mark.parametrize("in_step", [False, True])
async def test_exception_group_is_classified_by_its_members(
    stage: Stage, kind: str, error: JobError, words: list[str], in_step: bool
) -> None:
    def raises(*args: Any) -> None:
        raise ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [error])])

    async def async_body(ctx: inngest.Context) -> None:
        async def work() -> None:
            raises()

        await ctx.step.run("work", work)

    def sync_body(ctx: inngest.ContextSync) -> None:
        ctx.step.run("work", raises)

    body: Any = (async_body if kind == "async" else sync_body) if in_step else raises
    await stage.serve(function(stage, kind, body, retries=1))
    await stage.send("go", userId="42")
    await stage.finish()
    assert await stage.reported("42") == words
    assert (await stage.read_room("user_42"))[-1]["data"]["error"] == "Empty."


@pytest.mark.parametrize(
    ("result", "output_type", "ending", "data"),
    [
        (RootModel[list[int]]([1, 2]), RootModel[list[int]], "completed", {"result": [1, 2]}),
        (Computed(), Computed, "failed", None),  # the SDK itself refuses it
    ],
)
async def test_a_result_ends_the_run_as_inngest_does(
    stage: Stage, kind: str, result: Any, output_type: Any, ending: str, data: Any
) -> None:
    stage.client._serializer = inngest.PydanticSerializer()
    decorated = function(stage, kind, lambda ctx: result, retries=0, output_type=output_type)
    await stage.serve(decorated)
    await stage.send("go", userId="42")
    await stage.finish()
    assert await stage.reported("42") == ["started", ending]
    if data is not None:
        assert (await stage.read_room("user_42"))[-1]["data"] == data


@pytest.mark.parametrize(("retries", "total"), [(0, 1), (2, 3), (None, 5)])
async def test_max_attempts_is_that_of_the_function(
    stage: Stage, kind: str, retries: int | None, total: int
) -> None:
    def body(ctx: Any) -> None:
        raise JobError("No paper.")

    await stage.serve(function(stage, kind, body, retries=retries))
    await stage.send("go", userId="42")
    await stage.finish()
    reported = [m["data"] for m in (await stage.read_room("user_42"))[:-1]]
    assert [(each["attempt"], each["maxAttempts"]) for each in reported] == [
        (n, total) for n in range(1, total + 1)
    ]
