"""Notifications of an Inngest function: started, retrying, and one terminal notification."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import inngest
import pytest
import websockets
from inngest_encryption import EncryptionMiddleware

from examples.notes_app.database import Database
from examples.notes_app.replies import ModelResponder
from examples.notes_app.storage import ObjectStorage
from synap_realtime import (
    BackgroundBroadcaster,
    ConfigurationError,
    InvalidArgumentError,
    InvalidInputError,
    JobError,
    delta,
    progress,
)
from synap_realtime.demo.storage import TroubledStorage
from synap_realtime.handlers import Services
from synap_realtime.integrations.inngest import (
    create_function,
    create_functions,
    enqueue,
    enqueue_sync,
)
from tests.integrations.inngest.functions import REPORT, function

from .conftest import Stage, on


@pytest.fixture(params=["async", "sync"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_function_without_steps_reports_started_and_completed_once(
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
    started, completed = await stage.read_room("request_r1")
    assert (started["type"], started["status"]) == (f"{REPORT}.started", "pending")
    assert (completed["type"], completed["status"]) == (f"{REPORT}.completed", "success")
    assert completed["data"] == {"pages": 3}
    assert completed["requestId"] == "r1"
    assert await stage.reported("42") == ["started", "completed"]


async def test_function_with_steps_reports_each_notification_once(stage: Stage, kind: str) -> None:
    def sync_body(ctx: inngest.ContextSync) -> int:
        return ctx.step.run("a", lambda: 1) + ctx.step.run("b", lambda: 2)

    async def async_body(ctx: inngest.Context) -> int:
        async def give(n: int) -> int:
            return n

        return await ctx.step.run("a", give, 1) + await ctx.step.run("b", give, 2)

    await stage.serve(function(stage, kind, async_body if kind == "async" else sync_body))
    await stage.send("go", user_id="42", request_id="r1")
    await stage.finish()
    assert await stage.reported("42") == ["started", "completed"]
    assert (await stage.read_room("request_r1"))[-1]["data"] == {"result": 3}


async def test_a_retry_is_no_failure(stage: Stage, kind: str) -> None:
    def body(ctx: Any) -> None:
        if ctx.attempt < 2:
            raise JobError("The printer is busy.")

    await stage.serve(function(stage, kind, body, retries=3))
    await stage.send("go", userId="42", requestId="r1")
    await stage.finish()
    assert await stage.reported("42") == ["started", "retrying", "retrying", "completed"]
    retries = [m["data"] for m in await stage.read_room("request_r1") if "retrying" in m["type"]]
    assert [(r["attempt"], r["maxAttempts"]) for r in retries] == [(2, 4), (3, 4)]
    assert retries[0]["error"] == "The printer is busy."


async def test_a_steps_own_retries_are_reported_too(stage: Stage, kind: str) -> None:
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

    body = async_body if kind == "async" else sync_body
    await stage.serve(function(stage, kind, body, retries=3))
    await stage.send("go", userId="42", requestId="r1")
    await stage.finish()
    assert await stage.reported("42") == ["started", "retrying", "retrying", "completed"]
    retries = [m["data"] for m in await stage.read_room("request_r1") if "retrying" in m["type"]]
    assert [(r["attempt"], r["maxAttempts"]) for r in retries] == [(2, 4), (3, 4)]


@pytest.mark.parametrize(
    ("error", "received", "said"),
    [
        (InvalidInputError("Bad page."), ["started", "failed"], "Bad page."),
        (JobError("No paper."), ["started", "retrying", "failed"], "No paper."),
        (RuntimeError("password"), ["started", "retrying", "failed"], "Something went wrong"),
    ],
)
async def test_a_steps_errors_reach_the_user_as_the_functions_do(
    stage: Stage, kind: str, error: Exception, received: list[str], said: str
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
    assert await stage.reported("42") == received
    assert said in (await stage.read_room("user_42"))[-1]["data"]["error"]


async def test_failed_is_reported_once_after_the_last_attempt(stage: Stage, kind: str) -> None:
    def body(ctx: Any) -> None:
        raise RuntimeError("password=hunter2")

    await stage.serve(function(stage, kind, body, retries=1))
    await stage.send("go", userId="42", requestId="r1")
    await stage.finish()
    assert await stage.reported("42") == ["started", "retrying", "failed"]
    received = await stage.read_room("request_r1")
    assert received[-1]["status"] == "error"
    assert received[-1]["data"]["error"].startswith("Something went wrong (run ")
    assert "hunter2" not in str(received)


@pytest.mark.parametrize("error", [InvalidInputError("It is empty."), inngest.NonRetriableError()])
async def test_non_retriable_error_fails_immediately(
    stage: Stage, kind: str, error: Exception
) -> None:
    def body(ctx: Any) -> None:
        raise error

    await stage.serve(function(stage, kind, body))
    await stage.send("go", userId="42")
    await stage.finish()
    assert await stage.reported("42") == ["started", "failed"]
    readable = (await stage.read_room("user_42"))[-1]["data"]["error"]
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
    last = (await stage.read_room("user_42"))[-1]
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
    assert await stage.reported("42") == ["started", "failed"]


async def test_a_result_that_is_too_large_still_ends_the_job(stage: Stage, kind: str) -> None:
    await stage.serve(function(stage, kind, lambda ctx: {"x": "y" * 300_000}))
    await stage.send("go", userId="42")
    await stage.finish()
    assert (await stage.read_room("user_42"))[-1]["data"] == {"truncated": True, "omitted": ["x"]}


async def test_unavailable_room_server_fails_no_job(stage: Stage, kind: str) -> None:
    calls: list[int] = []
    stage.broadcaster = BackgroundBroadcaster("http://127.0.0.1:9")
    await stage.serve(function(stage, kind, lambda ctx: calls.append(ctx.attempt)))
    await stage.send("go", userId="42")
    await stage.finish()
    stage.broadcaster.close(timeout_s=0)
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
    assert [m["type"] for m in await stage.read_room("request_r1")] == [
        f"{REPORT}.started",
        f"{REPORT}.completed",
    ]


async def test_code_after_the_last_step_runs_once(stage: Stage, kind: str) -> None:
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
    assert await stage.reported("42") == ["started", "completed"]


async def test_a_step_that_asks_to_wait_is_reported_once(stage: Stage) -> None:
    async def body(ctx: inngest.Context) -> None:
        async def later() -> None:
            if ctx.attempt == 0:
                raise inngest.RetryAfterError("later", 10)

        await ctx.step.run("a", later)

    await stage.serve(function(stage, "async", body))
    await stage.send("go", userId="42")
    await stage.finish()
    assert await stage.reported("42") == ["started", "retrying", "completed"]


async def test_invalid_request_id_does_not_prevent_user_notifications(
    stage: Stage, kind: str
) -> None:
    await stage.serve(function(stage, kind, lambda ctx: None))
    await stage.send("go", userId="42", requestId="a/b")
    await stage.finish()
    assert await stage.reported("42") == ["started", "completed"]


def test_refuses_a_function_that_cannot_be_reported() -> None:
    client = inngest.Inngest(app_id="app", is_production=False)

    async def f(ctx: inngest.Context) -> None: ...
    def g(ctx: inngest.ContextSync) -> None: ...

    async def parts(ctx: inngest.Context) -> AsyncIterator[int]:
        yield 1

    def pages(ctx: inngest.ContextSync) -> Iterator[int]:
        yield 1

    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (f, {"on_failure": g}, "on_failure: "),
        (g, {"on_failure": f}, "on_failure: "),
        (parts, {}, r"handler: .*parts\(\) is a generator"),
        (pages, {}, r"handler: .*pages\(\) is a generator"),
        (g, {"on_failure": pages}, r"on_failure: .*pages\(\) is a generator"),
    ]
    for handler, options, said in wrong:
        decorate = create_function(client, job_type=REPORT, fn_id="f", trigger=on("go"), **options)
        with pytest.raises((ConfigurationError, InvalidArgumentError), match=said):
            decorate(handler)
    client._http_client._http_client_sync.close()


@pytest.mark.parametrize("hidden", [False, True])
async def test_encrypted_events_are_reported(stage: Stage, kind: str, hidden: bool) -> None:
    stage.client.add_middleware(EncryptionMiddleware.factory("k" * 32))

    def body(ctx: Any) -> dict[str, Any]:
        if ctx.event.data["encrypted"]["fails"]:
            raise JobError("No paper.")
        return {"pages": 3}

    await stage.serve(function(stage, kind, body, retries=0))
    for user_id, fails in (("42", False), ("43", True)):
        recipient = {"userId": user_id}
        secret = {"fails": fails, **(recipient if hidden else {})}
        await stage.send("go", encrypted=secret, **({} if hidden else recipient))
    await stage.finish()
    assert await stage.reported("42") == ["started", "completed"]
    assert (await stage.read_room("user_42"))[-1]["data"] == {"pages": 3}
    assert await stage.reported("43") == ["started", "failed"]
    assert (await stage.read_room("user_43"))[-1]["data"]["error"] == "No paper."


async def test_a_request_is_accepted_and_its_job_is_reported(stage: Stage, kind: str) -> None:
    await stage.serve(function(stage, kind, lambda ctx: dict(ctx.event.data)))
    options = {"user_id": "42", "request_id": "r1", "url": stage.rooms_url}
    for _ in range(2):  # a request that is sent twice is one
        if kind == "async":
            body = await enqueue(stage.client, "go", {"title": "x"}, **options)
        else:
            body = await asyncio.to_thread(
                enqueue_sync, stage.client, "go", {"title": "x"}, **options
            )
    await stage.finish()
    assert (body["status"], body["requestId"]) == ("pending", "r1")
    async with websockets.connect(body["subscribe"]["url"]) as socket:
        messages = [json.loads(await socket.recv()) for _ in range(2)]
    assert [m["type"] for m in messages] == [f"{REPORT}.started", f"{REPORT}.completed"]
    assert messages[1]["data"] == {"title": "x", "userId": "42", "requestId": "r1"}
    assert await stage.reported("42") == ["started", "completed"]
    with pytest.raises(InvalidArgumentError, match="user_id"):
        await enqueue(stage.client, "go", {}, user_id="a/b")


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
    ("event", "data", "received"),
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
async def test_builtin_jobs_notify_their_user(
    five: Stage, event: str, data: dict[str, Any], received: list[str]
) -> None:
    await five.send(event, userId="42", requestId="r1", **data)
    await five.finish()
    assert await five.reported("42") == received
    pieces = "conversation.response.delta"
    assert [m["id"] for m in await five.read_room("user_42")] == [
        m["id"] for m in await five.read_room("request_r1") if m["type"] != pieces
    ]


async def test_a_reply_is_shown_as_it_is_written(five: Stage) -> None:
    data = {"conversationId": "c", "content": "Hi"}
    await five.send("conversation.message.sent", userId="42", requestId="r1", **data)
    await five.finish()
    received = await five.read_room("request_r1")
    assert received[0]["type"] == "conversation.message.started"
    assert received[-1]["type"] == "conversation.response.generated"
    pieces = [m["data"] for m in received[1:-1]]
    assert {m["type"] for m in received[1:-1]} == {"conversation.response.delta"}
    assert [piece["index"] for piece in pieces] == list(range(len(pieces)))
    assert len(pieces) > 3
    assert "".join(piece["delta"] for piece in pieces) == received[-1]["data"]["response"]


async def test_retried_attempt_restarts_its_text(stage: Stage, kind: str) -> None:
    def body(ctx: Any) -> dict[str, str]:
        for word in ("one ", "two "):
            delta(f"{word}({ctx.attempt}) ")
        if ctx.attempt == 0:
            raise JobError("Again.")
        return {"text": "one two"}

    await stage.serve(function(stage, kind, body))
    await stage.send("go", userId="42", requestId="r1")
    await stage.finish()
    shown = ""
    for message in await stage.read_room("request_r1"):
        if message["type"] == f"{REPORT}.delta":
            data = message["data"]
            shown = data["delta"] if data["index"] == 0 else shown + data["delta"]
    assert shown == "one (1) two (1) "
    assert await stage.reported("42") == ["started", "retrying", "completed"]


async def test_progress_is_reported_in_order_and_not_again_at_a_replay(
    stage: Stage, kind: str
) -> None:
    said: list[str] = []

    def work(label: str) -> None:
        progress(0.5, label)

    async def work_async(label: str) -> None:
        work(label)

    def before() -> None:
        said.append("before")
        progress(0, "before")

    async def async_body(ctx: inngest.Context) -> None:
        before()
        await ctx.step.run("a", work_async, "in a")
        progress(0.6, "between")
        await ctx.step.run("b", work_async, "in b")
        progress(1, "after")

    def sync_body(ctx: inngest.ContextSync) -> None:
        before()
        ctx.step.run("a", work, "in a")
        progress(0.6, "between")
        ctx.step.run("b", work, "in b")
        progress(1, "after")

    await stage.serve(function(stage, kind, async_body if kind == "async" else sync_body))
    await stage.send("go", userId="42", requestId="r1")
    await stage.finish()
    assert len(said) > 1  # Inngest replays what stands before a step
    labels = [
        m["data"]["label"] for m in await stage.read_room("user_42") if "progress" in m["type"]
    ]
    assert labels[-1] == "after"
    assert len(labels) == len(set(labels))
    order = ["before", "in a", "between", "in b", "after"]
    assert labels == sorted(labels, key=order.index)
    assert (await stage.reported("42"))[-1] == "completed"


async def test_the_fives_failures_are_in_words_for_the_user(
    five: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await five.send("note.creation.requested", userId="42", content="")
        await five.send("note.creation.requested", userId="7", content="#fail-always")
        await five.finish()
    assert (await five.read_room("user_42"))[-1]["data"]["error"] == "The note is empty."
    last = (await five.read_room("user_7"))[-1]
    assert last["type"] == "note.creation.failed"
    assert (
        last["data"]["error"] == "The storage rejected this note because it contains #fail-always."
    )
