"""What a user hears of an Inngest function: started, retrying, and exactly one ending."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import inngest
import pytest

from examples.notes_app.database import Database
from examples.notes_app.replies import ModelResponder
from examples.notes_app.storage import ObjectStorage, TroubledStorage
from synap_realtime import (
    AsyncBroadcaster,
    Broadcaster,
    ConfigurationError,
    InvalidInputError,
    JobError,
)
from synap_realtime.handlers import Services
from synap_realtime.integrations.inngest import create_function, create_functions
from synap_realtime.jobs import Family

from .conftest import Stage, on

REPORT = "report.creation"


@pytest.fixture(params=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def function(stage: Stage, kind: str, body: Any, **options: Any) -> inngest.Function[Any]:
    """One function, as async and as sync code: ``body`` takes the context and does no I/O."""
    decorate = create_function(
        stage.client,
        family=REPORT,
        fn_id="f",
        trigger=on("go"),
        broadcaster=stage.broadcaster if kind == "async" else stage.sync_broadcaster,
        **options,
    )
    if kind == "sync":
        return decorate(body)

    async def run(ctx: inngest.Context) -> Any:
        result = body(ctx)
        return await result if asyncio.iscoroutine(result) else result

    return decorate(run)


async def test_a_function_without_steps_runs_once_and_says_started_and_completed(
    stage: Stage, kind: str
) -> None:
    calls: list[int] = []

    def body(ctx: Any) -> dict[str, int]:
        calls.append(ctx.attempt)
        return {"pages": 3}

    await stage.serve(function(stage, kind, body))
    await stage.send("go", userId="42", requestId="r1")
    await stage.finish()
    assert calls == [0]
    started, completed = await stage.heard("request_r1")
    assert (started["type"], started["status"]) == (f"{REPORT}.started", "pending")
    assert (completed["type"], completed["status"]) == (f"{REPORT}.completed", "success")
    assert completed["data"] == {"pages": 3}
    assert completed["requestId"] == "r1"
    assert await stage.told("42") == ["started", "completed"]


async def test_a_function_with_steps_says_each_thing_once(stage: Stage, kind: str) -> None:
    def sync_body(ctx: inngest.ContextSync) -> int:
        return ctx.step.run("a", lambda: 1) + ctx.step.run("b", lambda: 2)

    async def async_body(ctx: inngest.Context) -> int:
        async def give(n: int) -> int:
            return n

        return await ctx.step.run("a", give, 1) + await ctx.step.run("b", give, 2)

    await stage.serve(function(stage, kind, async_body if kind == "async" else sync_body))
    await stage.send("go", user_id="42", request_id="r1")
    await stage.finish()
    assert await stage.told("42") == ["started", "completed"]
    assert (await stage.heard("request_r1"))[-1]["data"] == {"result": 3}


async def test_a_retry_is_no_failure(stage: Stage, kind: str) -> None:
    def body(ctx: Any) -> None:
        if ctx.attempt < 2:
            raise JobError("The printer is busy.")

    await stage.serve(function(stage, kind, body))
    await stage.send("go", userId="42", requestId="r1")
    await stage.finish()
    assert await stage.told("42") == ["started", "retrying", "retrying", "completed"]
    retries = [m["data"] for m in await stage.heard("request_r1") if "retrying" in m["type"]]
    assert [(r["attempt"], r["maxAttempts"]) for r in retries] == [(2, 5), (3, 5)]
    assert retries[0]["error"] == "The printer is busy."


async def test_a_steps_own_retries_are_told_too(stage: Stage, kind: str) -> None:
    def render(attempt: int) -> str:
        if attempt < 2:
            raise JobError("The printer is busy.")
        return "done"

    async def render_async(attempt: int) -> str:
        return render(attempt)

    async def async_body(ctx: inngest.Context) -> str:
        return await ctx.step.run("render", render_async, ctx.attempt)

    def sync_body(ctx: inngest.ContextSync) -> str:
        return ctx.step.run("render", render, ctx.attempt)

    await stage.serve(function(stage, kind, async_body if kind == "async" else sync_body))
    await stage.send("go", userId="42", requestId="r1")
    await stage.finish()
    assert await stage.told("42") == ["started", "retrying", "retrying", "completed"]
    retries = [m["data"] for m in await stage.heard("request_r1") if "retrying" in m["type"]]
    assert [(r["attempt"], r["maxAttempts"]) for r in retries] == [(2, 5), (3, 5)]


@pytest.mark.parametrize(
    ("error", "heard", "said"),
    [
        (InvalidInputError("Bad page."), ["started", "failed"], "Bad page."),
        (JobError("No paper."), ["started", "retrying", "failed"], "No paper."),
        (RuntimeError("password"), ["started", "retrying", "failed"], "Something went wrong"),
    ],
)
async def test_a_steps_errors_reach_the_user_as_the_functions_do(
    stage: Stage, kind: str, error: Exception, heard: list[str], said: str
) -> None:
    def fail() -> None:
        raise error

    async def fail_async() -> None:
        raise error

    async def async_body(ctx: inngest.Context) -> None:
        await ctx.step.run("fail", fail_async)

    def sync_body(ctx: inngest.ContextSync) -> None:
        ctx.step.run("fail", fail)

    body = async_body if kind == "async" else sync_body
    await stage.serve(function(stage, kind, body, retries=1))
    await stage.send("go", userId="42")
    await stage.finish()
    assert await stage.told("42") == heard
    assert said in (await stage.heard("user_42"))[-1]["data"]["error"]


async def test_failed_comes_once_when_inngest_has_given_up(stage: Stage, kind: str) -> None:
    def body(ctx: Any) -> None:
        raise RuntimeError("password=hunter2")

    await stage.serve(function(stage, kind, body, retries=1))
    await stage.send("go", userId="42", requestId="r1")
    await stage.finish()
    assert await stage.told("42") == ["started", "retrying", "failed"]
    heard = await stage.heard("request_r1")
    assert heard[-1]["status"] == "error"
    assert heard[-1]["data"]["error"].startswith("Something went wrong (run ")
    assert "hunter2" not in str(heard)


@pytest.mark.parametrize("error", [InvalidInputError("It is empty."), inngest.NonRetriableError()])
async def test_what_no_retry_can_mend_fails_at_once(
    stage: Stage, kind: str, error: Exception
) -> None:
    def body(ctx: Any) -> None:
        raise error

    await stage.serve(function(stage, kind, body))
    await stage.send("go", userId="42")
    await stage.finish()
    assert await stage.told("42") == ["started", "failed"]
    readable = (await stage.heard("user_42"))[-1]["data"]["error"]
    assert (readable == "It is empty.") is isinstance(error, InvalidInputError)


async def test_a_functions_own_failure_handler_runs_too(stage: Stage, kind: str) -> None:
    own: list[str] = []

    def body(ctx: Any) -> None:
        raise JobError("No paper.")

    async def failed_async(ctx: inngest.Context) -> None:
        own.append(str(ctx.event.data["run_id"]))

    def failed_sync(ctx: inngest.ContextSync) -> None:
        own.append(str(ctx.event.data["run_id"]))

    on_failure = failed_async if kind == "async" else failed_sync
    await stage.serve(function(stage, kind, body, retries=0, on_failure=on_failure))
    await stage.send("go", userId="42")
    await stage.finish()
    assert len(own) == 1
    last = (await stage.heard("user_42"))[-1]
    assert last["data"] == {"error": "No paper.", "runId": own[0]}


async def test_an_event_without_a_user_runs_and_is_logged(
    stage: Stage, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    await stage.serve(function(stage, kind, lambda ctx: calls.append(1)))
    await stage.send("go", title="x")
    await stage.finish()
    assert calls == [1]
    assert "names no user" in caplog.text


@pytest.mark.parametrize("result", [object(), {"when": datetime(2026, 1, 1, tzinfo=UTC)}])
async def test_a_result_that_inngest_refuses_is_a_failure_and_not_both(
    stage: Stage, kind: str, result: object
) -> None:
    await stage.serve(function(stage, kind, lambda ctx: result))
    await stage.send("go", userId="42")
    await stage.finish()
    assert await stage.told("42") == ["started", "failed"]


async def test_a_result_that_is_too_large_still_ends_the_job(stage: Stage, kind: str) -> None:
    await stage.serve(function(stage, kind, lambda ctx: {"x": "y" * 300_000}))
    await stage.send("go", userId="42")
    await stage.finish()
    assert (await stage.heard("user_42"))[-1]["data"] == {"truncated": True}


async def test_a_room_server_that_is_away_fails_no_job(stage: Stage, kind: str) -> None:
    calls: list[int] = []
    gone = "http://127.0.0.1:9"
    with Broadcaster(gone, deadline_s=0.1) as sync_broadcaster:
        stage.broadcaster = AsyncBroadcaster(gone, deadline_s=0.1)
        stage.sync_broadcaster = sync_broadcaster
        await stage.serve(function(stage, kind, lambda ctx: calls.append(ctx.attempt)))
        await stage.send("go", userId="42")
        await stage.finish()
    assert calls == [0]


async def test_a_user_id_that_is_no_room_fails_no_job(
    stage: Stage, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []
    await stage.serve(function(stage, kind, lambda ctx: calls.append(ctx.attempt)))
    await stage.send("go", userId="a/b", requestId="r1")
    await stage.finish()
    assert calls == [0]
    assert "user_id: expected" in caplog.text
    assert [m["type"] for m in await stage.heard("request_r1")] == [
        f"{REPORT}.started",
        f"{REPORT}.completed",
    ]


async def test_what_stands_after_the_last_step_runs_once(stage: Stage, kind: str) -> None:
    tail: list[int] = []

    async def async_body(ctx: inngest.Context) -> None:
        async def step() -> None: ...

        await ctx.step.run("a", step)
        tail.append(1)

    def sync_body(ctx: inngest.ContextSync) -> None:
        ctx.step.run("a", lambda: None)
        tail.append(1)

    await stage.serve(function(stage, kind, async_body if kind == "async" else sync_body))
    await stage.send("go", userId="42")
    await stage.finish()
    assert tail == [1]
    assert await stage.told("42") == ["started", "completed"]


async def test_a_step_that_asks_to_wait_is_told_once(stage: Stage) -> None:
    async def body(ctx: inngest.Context) -> None:
        async def later() -> None:
            if ctx.attempt == 0:
                raise inngest.RetryAfterError("later", 10)

        await ctx.step.run("a", later)

    await stage.serve(function(stage, "async", body))
    await stage.send("go", userId="42")
    await stage.finish()
    assert await stage.told("42") == ["started", "retrying", "completed"]


async def test_a_bad_request_id_does_not_silence_the_user(stage: Stage, kind: str) -> None:
    await stage.serve(function(stage, kind, lambda ctx: None))
    await stage.send("go", userId="42", requestId="a/b")
    await stage.finish()
    assert await stage.told("42") == ["started", "completed"]


def test_what_cannot_be_told_rightly_is_refused() -> None:
    client = inngest.Inngest(app_id="app", is_production=False)

    async def f(ctx: inngest.Context) -> None: ...
    def g(ctx: inngest.ContextSync) -> None: ...

    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (f, {"on_failure": g}, "on_failure: "),
        (g, {"on_failure": f}, "on_failure: "),
        (f, {"batch_events": inngest.Batch(max_size=2)}, "batch_events: "),
    ]
    for handler, options, said in wrong:
        decorate = create_function(client, family=REPORT, fn_id="f", trigger=on("go"), **options)
        with pytest.raises(ConfigurationError, match=said):
            decorate(handler)
    client._http_client._http_client_sync.close()


def test_a_broadcaster_that_does_not_fit_is_said_at_once() -> None:
    client = inngest.Inngest(app_id="app", is_production=False)

    async def f(ctx: inngest.Context) -> None: ...
    def g(ctx: inngest.ContextSync) -> None: ...

    with Broadcaster() as sync_broadcaster:
        for handler, wrong in ((f, sync_broadcaster), (g, AsyncBroadcaster())):
            decorate = create_function(
                client,
                family=Family("a.b"),
                fn_id="f",
                trigger=on("go"),
                broadcaster=wrong,
            )
            with pytest.raises(ConfigurationError, match="broadcaster: "):
                decorate(handler)
    client._http_client._http_client_sync.close()


@pytest.fixture
async def five(stage: Stage, tmp_path: Path) -> Any:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/notes.db")
    await database.create_tables()
    storage = TroubledStorage(ObjectStorage((tmp_path / "files").as_uri(), "http://app"))
    services = Services(database, database, storage, ModelResponder("offline"))
    await stage.serve(*create_functions(stage.client, services, stage.broadcaster))
    yield stage
    await database.close()


@pytest.mark.parametrize(
    ("event", "data", "heard"),
    [
        ("note.creation.requested", {"content": "Milk"}, ["started", "completed"]),
        ("task.creation.requested", {"title": "Milk"}, ["started", "completed"]),
        ("task.completion.requested", {"entityId": "none"}, ["started", "failed"]),
        ("project.creation.requested", {"title": "House"}, ["started", "completed"]),
        (
            "conversation.message.sent",
            {"conversationId": "c", "content": "Hi"},
            ["started", "generated"],
        ),
        ("note.creation.requested", {"content": ""}, ["started", "failed"]),
        ("conversation.message.sent", {"content": "Hi"}, ["started", "failed"]),
        (
            "note.creation.requested",
            {"content": "#fail-twice"},
            ["started", "retrying", "retrying", "completed"],
        ),
        (
            "note.creation.requested",
            {"content": "#fail-always"},
            ["started", *["retrying"] * 4, "failed"],
        ),
    ],
)
async def test_the_five_tell_their_user(
    five: Stage, event: str, data: dict[str, Any], heard: list[str]
) -> None:
    await five.send(event, userId="42", requestId="r1", **data)
    await five.finish()
    assert await five.told("42") == heard
    assert [m["id"] for m in await five.heard("user_42")] == [
        m["id"] for m in await five.heard("request_r1")
    ]


async def test_the_fives_failures_are_in_words_for_the_user(
    five: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await five.send("note.creation.requested", userId="42", content="")
        await five.send("note.creation.requested", userId="7", content="#fail-always")
        await five.finish()
    assert (await five.heard("user_42"))[-1]["data"]["error"] == "The note is empty."
    last = (await five.heard("user_7"))[-1]
    assert last["type"] == "note.creation.failed"
    assert last["data"]["error"] == "The storage refuses this note, as it was asked to."
