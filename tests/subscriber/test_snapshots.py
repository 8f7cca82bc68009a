"""``get_job()`` and ``list_jobs()`` with their twins, against a real server and hostile ones."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from synap_realtime import (
    ConfigurationError,
    InvalidArgumentError,
    Job,
    JobList,
    ReadError,
    get_job,
    get_job_sync,
    list_jobs,
    list_jobs_sync,
    mint_token,
    subscribe,
)
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.support.jobs import timestamp
from tests.support.program import free_port

from .hostile_server import Answer, answering, dribbling

SECRET = "s" * 32
API_KEY = "k" * 32


async def get_job_in_thread(*args: Any, **options: Any) -> Job | None:
    return await asyncio.to_thread(get_job_sync, *args, **options)


async def list_jobs_in_thread(*args: Any, **options: Any) -> JobList:
    return await asyncio.to_thread(list_jobs_sync, *args, **options)


Get = Callable[..., Awaitable[Job | None]]
List = Callable[..., Awaitable[JobList]]


@pytest.fixture(params=[get_job, get_job_in_thread], ids=["async", "sync"])
def get(request: pytest.FixtureRequest) -> Get:
    chosen: Get = request.param
    return chosen


@pytest.fixture(params=[list_jobs, list_jobs_in_thread], ids=["async", "sync"])
def list_of(request: pytest.FixtureRequest) -> List:
    chosen: List = request.param
    return chosen


async def report(url: str, event: str, request: str = "q1", at: int = 0, **data: Any) -> None:
    wire = {
        "rooms": ["user_u1", f"request_{request}"],
        "type": f"note.creation.{event}",
        "requestId": request,
        "timestamp": timestamp(at),
        "job": {"event": event, "name": "note.creation", "runId": f"r-{request}", "userId": "u1"},
        "data": data,
    }
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {API_KEY}"}) as client:
        response = await client.post(f"{url}/broadcast", json={"notifications": [wire]})
    assert response.json()["success"], response.text


async def test_job_from_its_start_to_its_end(rooms: str, get: Get) -> None:
    assert await get("q1", rooms) is None
    await report(rooms, "started", at=1, attempt=1, maxAttempts=3)
    await report(rooms, "progress", at=2, attempt=1, progress=0.5, label="é")
    job = await get("q1", rooms)
    assert job is not None
    assert job == Job(
        "note.creation", "running", "r-q1", "q1", "u1", 0.5, "é", 1, 3,
        started_at=datetime(2026, 1, 31, 12, 0, 1, tzinfo=UTC),
        updated_at=datetime(2026, 1, 31, 12, 0, 2, tzinfo=UTC),
        cursor=job.cursor,
    )  # fmt: skip
    assert not job.has_ended
    await report(rooms, "completed", at=3, title="T", truncated=True)
    job = await get("q1", rooms)
    assert job is not None
    assert (job.status, job.result, job.has_ended) == (
        "completed",
        {"title": "T", "truncated": True},
        True,
    )
    assert job.is_truncated
    assert job.ended_at == datetime(2026, 1, 31, 12, 0, 3, tzinfo=UTC)


async def test_subscribing_after_the_cursor_receives_what_came_after(rooms: str) -> None:
    await report(rooms, "started")
    job, page = await get_job("q1", rooms), await list_jobs("u1", rooms)
    assert job is not None
    await report(rooms, "completed", at=1)
    for room, cursor in (("request_q1", job.cursor), ("user_u1", page.cursor)):
        async with aclosing(subscribe(room, rooms, after=cursor)) as notifications:
            assert (await anext(notifications)).type == "note.creation.completed"


async def test_text_is_read_whole(rooms: str, get: Get) -> None:
    text = "é😀\n" * 60_000
    async with httpx.AsyncClient(base_url=rooms) as client:
        for start in range(0, len(text), 60_000):
            piece = {
                "type": "note.creation.delta",
                "data": {"delta": text[start : start + 60_000]},
                "fold": {"key": "r-q1:text", "mode": "append"},
            }
            response = await client.post("/rooms/request_q1/broadcast", json=piece)
            assert response.status_code == 200, response.text
    await report(rooms, "failed", error="x")
    job = await get("q1", rooms)
    assert job is not None
    assert (job.status, job.error, job.text) == ("failed", "x", text)


async def test_list_is_filtered_and_continued(rooms: str, list_of: List) -> None:
    for at, event in enumerate(("started", "completed", "failed", "started")):
        await report(rooms, event, f"q{at}", at, error="x")

    async def ids(**query: Any) -> list[str | None]:
        return [job.request_id for job in (await list_of("u1", rooms, **query)).jobs]

    assert await ids() == ["q3", "q2", "q1", "q0"]
    assert await ids(status="failed") == ["q2"]
    assert await ids(status=["failed", "running"]) == ["q3", "q2", "q0"]
    assert await ids(status=(), type="note.creation", limit=2) == ["q3", "q2"]
    assert await ids(type="other") == []
    page = await list_of("u1", rooms, limit=3)
    assert page.next is not None
    assert await ids(after=page.next) == ["q0"]
    last = await list_of("u1", rooms, limit=3, after=page.next)
    assert last.next is None
    assert last.jobs[0].cursor == ""
    assert (await list_of("nobody", rooms)).jobs == ()


async def test_token_is_sent_and_a_refusal_is_explained(get: Get, list_of: List) -> None:
    settings = load_settings(token_secrets=SECRET, api_keys=f"jobs={API_KEY}", drain_timeout_s=0)
    async with running_server(create_app(settings)) as url:
        await report(url, "started")
        token = mint_token("u1", rooms=["request_q1"], secret=SECRET)
        job = await get("q1", url, token)
        assert job is not None
        assert job.status == "running"
        assert len((await list_of("u1", url, lambda: token)).jobs) == 1
        other = mint_token("u2", secret=SECRET)
        for call in (get("q1", url, other), list_of("u1", url, other)):
            with pytest.raises(ReadError, match=r"403: Forbidden: .*; check the token") as caught:
                await call
            assert (caught.value.code, caught.value.retriable) == (403, False)
        with pytest.raises(ReadError, match="401"):
            await get("q1", url)
        with pytest.raises(ReadError, match="400: Invalid position: after: "):
            await list_of("u1", url, token, after="x")


async def test_token_function_may_be_asynchronous_in_an_event_loop(rooms: str) -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return "t"

    assert await get_job("q1", rooms, token) is None

    async def stalled() -> str:
        await asyncio.Event().wait()
        return ""

    with pytest.raises(ReadError, match="the token function timed out"):
        await get_job("q1", rooms, stalled, timeout_s=0.01)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("status", {"status": "done"}),
        ("status", {"status": ["running", "x"]}),
        ("status", {"status": [[]]}),
        ("status", {"status": 5}),
        ("status", {"status": None}),
        ("type", {"type": ""}),
        ("type", {"type": 5}),
        ("limit", {"limit": 0}),
        ("limit", {"limit": 1001}),
        ("limit", {"limit": True}),
        ("limit", {"limit": "5"}),
        ("after", {"after": 5}),
        ("timeout_s", {"timeout_s": 0}),
        ("timeout_s", {"timeout_s": float("nan")}),
        ("user_id", {"user_id": "a b"}),
        ("user_id", {"user_id": None}),
    ],
)
async def test_invalid_argument_is_named(
    list_of: List, field: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await list_of(**{"user_id": "u1", **arguments})
    assert caught.value.field == field


async def test_invalid_request_and_configuration_are_named(get: Get) -> None:
    for request_id in ("", "a b", "x" * 201, None, True):
        with pytest.raises(InvalidArgumentError, match="request_id: "):
            await get(request_id)
    with pytest.raises(InvalidArgumentError, match="its id was missing"):
        await get("None")
    with pytest.raises(ConfigurationError, match="url: "):
        await get("q1", "ftp://x")
    with pytest.raises(ConfigurationError, match="token: "):
        await get("q1", token="")


def test_needs_an_event_loop_of_asyncio() -> None:
    with pytest.raises(ConfigurationError, match=r"call get_job_sync\(\)"):
        get_job("q1").send(None)


async def test_unreachable_server_is_retriable(get: Get) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ReadError, match=r"\(url=\) could not be reached") as caught:
        await get("q1", url)
    assert (caught.value.code, caught.value.retriable) == (None, True)


def replying(status: str, body: bytes, *fields: str) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]
        writer.write("\r\n".join(lines).encode() + body)
        await writer.drain()
        await reader.read()

    return answer


JOB = {"type": "a", "status": "running", "runId": "r1"}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (replying("200 OK", b"[]"), "is not a room server"),
        (replying("200 OK", b"{"), "is not a room server"),
        (replying("200 OK", b"[" * 100_000), "is not a room server"),
        (replying("200 OK", b'{"job":{"type":"a"},"cursor":"e-1"}'), "a job without type"),
        (replying("200 OK", json.dumps({"job": JOB}).encode()), "no cursor"),
        (replying("200 OK", b"{}", "Content-Encoding: gzip"), "Content-Encoding 'gzip'"),
        (replying("200 OK", b'"' + b"x" * 5_000_000 + b'"'), "more than 4194304 bytes"),
        (replying("404 Not Found", b"<html>"), "404; check the URL: is it a room server"),
        (replying("302 Found", b"", "Location: http://evil.example/"), "and redirects to"),
        (replying("503 Service Unavailable", b"{}"), "503"),
        (dribbling(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n", b" "), "in time"),
        (dribbling(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"), "in time"),
    ],
)
async def test_hostile_response_is_a_bounded_error(get: Get, answer: Answer, expected: str) -> None:
    async with answering(answer) as host:
        with pytest.raises(ReadError, match=expected):
            await get("q1", f"http://{host}", "t", timeout_s=1.0)


async def test_members_that_are_not_valid_count_as_absent(get: Get) -> None:
    odd = {name: [1] for name in ("requestId", "userId", "label", "error", "text", "startedAt")}
    job = {**JOB, **odd, "progress": True, "attempt": "x", "maxAttempts": -1, "result": []}
    body = {"job": {**job, "endedAt": "yesterday", "later": 1}, "cursor": "e-1", "more": {}}
    async with answering(replying("200 OK", json.dumps(body).encode())) as host:
        assert await get("q1", f"http://{host}") == Job("a", "running", "r1", cursor="e-1")


async def test_server_without_records_is_explained(get: Get, list_of: List) -> None:
    body = b'{"error":"Not found","details":"no records here","code":"not_found"}'
    async with answering(replying("404 Not Found", body)) as host:
        assert await get("q1", f"ws://{host}") is None
        with pytest.raises(ReadError, match="has no list of jobs: Not found: no records") as caught:
            await list_of("u1", f"http://{host}")
    assert caught.value.code == 404


async def test_user_and_password_of_the_url_are_sent_unless_there_is_a_token(get: Get) -> None:
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with answering(answer) as host:
        for token in (None, "secret"):
            with pytest.raises(ReadError, match="401") as caught:
                await get("q1", f"http://me:pass@{host}/base/", token)
            assert "pass" not in str(caught.value)
    basic = base64.b64encode(b"me:pass")
    assert b"Authorization: Basic " + basic in requests[0]
    assert b"Authorization: Bearer secret" in requests[1]
    assert all(request.startswith(b"GET /base/jobs/q1 HTTP/1.1\r\n") for request in requests)
