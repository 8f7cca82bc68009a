"""Jobs without a framework."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.notes_app.database import Database
from examples.notes_app.replies import ModelResponder
from examples.notes_app.storage import ObjectStorage
from synap_realtime import (
    BackgroundBroadcaster,
    InvalidArgumentError,
    InvalidInputError,
    JobError,
    progress,
)
from synap_realtime.handlers import Services, handle_conversation_message, handle_note_creation
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.jobs import JobRun
from synap_realtime.jobs.job_types import CONVERSATION_MESSAGE, NOTE_CREATION
from synap_realtime.server import create_app
from synap_realtime.server.serve import running_server
from synap_realtime.testing import RealtimeRecorder
from tests.support.timeouts import TIMEOUT_S

WHO = {"userId": "42", "requestId": "r1"}


class Rooms:
    def __init__(self, url: str, broadcaster: BackgroundBroadcaster) -> None:
        self._url = url
        self.broadcaster = broadcaster

    async def read_room(self, room: str = "user_42") -> list[dict[str, Any]]:
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{self._url}/rooms/{room}/history")
        return list(answer.json()["notifications"])

    async def words(self) -> list[str]:
        return [message["type"].rpartition(".")[2] for message in await self.read_room()]


@pytest.fixture
async def rooms() -> AsyncIterator[Rooms]:
    async with running_server(create_app()) as url, BackgroundBroadcaster(url) as broadcaster:
        yield Rooms(url, broadcaster)


async def test_job_reports_its_lifecycle(rooms: Rooms) -> None:
    async def work(run: JobRun) -> dict[str, Any]:
        progress(0.5, "Rendering")
        return {"title": run.data["title"], "url": await run.step("render", render)}

    async def render() -> str:
        return "/7.pdf"

    data = {"title": "Q3", **WHO}
    result = await run_job("report.creation", work, data, broadcaster=rooms.broadcaster)
    assert result == {"title": "Q3", "url": "/7.pdf"}
    assert await rooms.words() == ["started", "progress", "completed"]
    assert (await rooms.read_room("request_r1"))[-1]["data"] == result


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ([JobError("a"), JobError("b")], ["started", "retrying", "retrying", "completed"]),
        ([JobError("a")] * 3, ["started", "retrying", "retrying", "failed"]),
        ([JobError("a"), InvalidInputError("b")], ["started", "retrying", "failed"]),
    ],
)
async def test_retries(rooms: Rooms, errors: list[Exception], words: list[str]) -> None:
    async def work(run: JobRun) -> None:
        if left:
            raise left.pop(0)

    left = list(errors)
    job = run_job(
        "report.creation",
        work,
        WHO,
        retries=2,
        initial_backoff_s=0.01,
        broadcaster=rooms.broadcaster,
    )
    if words[-1] == "failed":
        with pytest.raises(JobError):
            await job
    else:
        await job
    assert await rooms.words() == words
    retries = [m["data"] for m in await rooms.read_room() if "retrying" in m["type"]]
    assert [(r["attempt"], r["maxAttempts"]) for r in retries] == [(2, 3), (3, 3)][: len(retries)]
    assert [r["retryInS"] for r in retries] == [0.01, 0.02][: len(retries)]


@pytest.mark.parametrize("during", ["work", "pause"])
async def test_a_cancelled_job_is_reported(rooms: Rooms, during: str) -> None:
    begun = asyncio.Event()

    async def work(run: JobRun) -> None:
        begun.set()
        if during == "pause":
            raise JobError("Again.")
        await asyncio.sleep(30)

    job = asyncio.create_task(
        run_job("report.creation", work, WHO, retries=1, initial_backoff_s=30,
                broadcaster=rooms.broadcaster)
    )  # fmt: skip
    await begun.wait()
    if during == "pause":
        async with asyncio.timeout(TIMEOUT_S):
            while "retrying" not in await rooms.words():  # noqa: ASYNC110 - it is another server's
                await asyncio.sleep(0.01)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert (await rooms.words())[-1] == "cancelled"


async def test_the_handlers_run_without_a_framework(rooms: Rooms, tmp_path: Path) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/notes.db")
    await database.create_tables()
    storage = ObjectStorage((tmp_path / "files").as_uri(), "http://app")
    services = Services(database, database, storage, ModelResponder("offline"))
    note = await run_job(
        NOTE_CREATION,
        lambda run: handle_note_creation(run, services),
        {"content": "Milk", **WHO},
        broadcaster=rooms.broadcaster,
    )
    reply = await run_job(
        CONVERSATION_MESSAGE,
        lambda run: handle_conversation_message(run, services),
        {"conversationId": "c", "content": "Hi", **WHO},
        broadcaster=rooms.broadcaster,
    )
    await database.close()
    ends = [m for m in await rooms.read_room() if m["status"] == "success"]
    assert [m["data"].get("title") for m in ends] == [note.title, None]
    assert ends[1]["data"]["response"] == reply.response
    shown = [
        m["data"]["delta"] for m in await rooms.read_room("request_r1") if "delta" in m["type"]
    ]
    assert "".join(shown) == reply.response


async def test_invalid_number_of_retries_is_named() -> None:
    async def work(run: JobRun) -> None: ...

    with pytest.raises(InvalidArgumentError, match="retries: expected 0 or more"):
        await run_job("a", work, {}, retries=-1)


async def test_rejects_a_generator_function_before_the_run_starts(
    realtime: RealtimeRecorder,
) -> None:
    """Its body would not run, and the run would appear to complete."""

    async def parts(run: JobRun) -> AsyncIterator[int]:
        yield 1

    def pages(run: JobRun) -> Iterator[int]:
        yield 1

    for fn in (parts, pages):
        with pytest.raises(InvalidArgumentError, match=rf"fn: .*{fn.__name__}\(\) is a generator"):
            await run_job("a", fn, {"userId": "1"})
    assert realtime.sent() == []
