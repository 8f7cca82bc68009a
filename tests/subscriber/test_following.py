"""A job is followed from the server's record of it, to exactly one end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

import synap_realtime
from synap_realtime import BackgroundBroadcaster, JobState, ReadError, follow_job
from synap_realtime.jobs import JobType, Recipient, Reporter, RunNotifications
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from synap_realtime.subscriber import following
from tests.support.polling import until
from tests.support.program import free_port
from tests.support.served_stores import KINDS, serving_store
from tests.support.timeouts import TIMEOUT_S

REPORT = JobType("report.creation")


@pytest.fixture(params=KINDS)
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The address of a server."""
    async with serving_store(request.param, tmp_path) as address:
        yield address


def run(
    broadcaster: BackgroundBroadcaster, request: str = "r1", run_id: str = "r", attempt: int = 1
) -> Reporter:
    lifecycle = RunNotifications(REPORT, run_id, attempt)
    return Reporter(lifecycle, [Recipient("42", request)], broadcaster)


async def follow(url: str, request: str = "r1") -> list[JobState]:
    async with asyncio.timeout(TIMEOUT_S), aclosing(follow_job(request, url)) as states:
        seen = [state async for state in states]
    assert [state.is_finished for state in seen] == [False] * (len(seen) - 1) + [True]
    return seen


async def test_a_job_that_has_ended_has_one_state(url: str) -> None:
    async with BackgroundBroadcaster(url) as broadcaster:
        reporter = run(broadcaster)
        reporter.started()
        reporter.delta("Hello")
        reporter.completed({"pages": 3})
        await reporter.aflush()
    (state,) = await follow(url)
    assert (state.status, state.result, state.text) == ("success", {"pages": 3}, "Hello")


async def test_a_text_that_is_being_written_is_there_immediately(url: str) -> None:
    async with BackgroundBroadcaster(url) as broadcaster:
        reporter = run(broadcaster)
        reporter.started()
        reporter.progress(0.5, "Writing")
        for n in range(5):
            reporter.delta(f"é{n} ")
            await reporter.aflush()
        async with asyncio.timeout(TIMEOUT_S), aclosing(follow_job("r1", url)) as states:
            first = await anext(states)
            assert (first.status, first.progress, first.label) == ("pending", 0.5, "Writing")
            assert first.text == "é0 é1 é2 é3 é4 "
            reporter.delta("end")
            reporter.completed({"pages": 3})
            *_, last = [state async for state in states]
        assert (last.status, last.text) == ("success", "é0 é1 é2 é3 é4 end")
        assert last.is_text_complete


async def test_a_job_that_has_not_begun_is_followed_from_its_beginning(url: str) -> None:
    coming = asyncio.create_task(follow(url))
    async with BackgroundBroadcaster(url) as broadcaster:
        await asyncio.sleep(0)
        reporter = run(broadcaster)
        reporter.started()
        reporter.failed("No paper.")
        *_, last = await coming
    assert (last.status, last.error) == ("error", "No paper.")


@pytest.mark.parametrize("answer", [None, ReadError("no such route", code=404)])
async def test_a_server_without_records_is_followed_by_its_log(
    url: str, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    async def get_job(*_: object) -> None:
        if answer is not None:
            raise answer

    monkeypatch.setattr(following, "get_job", get_job)
    async with BackgroundBroadcaster(url) as broadcaster:
        reporter = run(broadcaster)
        reporter.started()
        reporter.delta("Hello")
        reporter.completed({})
        await reporter.aflush()
    seen = await follow(url)
    assert [state.status for state in seen] == ["pending", "pending", "success"]
    assert seen[-1].text == "Hello"


async def test_a_text_that_no_record_has_is_read_from_the_log(url: str) -> None:
    """The room has too many keys, so the pieces are ordinary notifications."""
    async with BackgroundBroadcaster(url) as broadcaster:
        for n in range(64):
            run(broadcaster, run_id=f"other{n}").delta("x")
        reporter = run(broadcaster)
        reporter.started()
        for n in range(5):
            reporter.delta(f"{n} ")
            await reporter.aflush()
        async with asyncio.timeout(TIMEOUT_S), aclosing(follow_job("r1", url)) as states:
            assert (await anext(states)).text == ""
            reporter.delta("end")
            reporter.completed({})
            *_, last = [state async for state in states]
    assert (last.text, last.is_text_complete) == ("0 1 2 3 4 end", True)


@pytest.mark.parametrize("ends", [True, False])
async def test_after_a_gap_the_record_is_read_again(tmp_path: Path, *, ends: bool) -> None:
    port = free_port()
    store = f"sqlite:///{tmp_path / 'rooms.db'}"

    def app() -> Any:
        return create_app(load_settings(store=store, retention_count=2, drain_timeout_s=0))

    async with (
        asyncio.timeout(TIMEOUT_S),
        aclosing(follow_job("r1", f"http://127.0.0.1:{port}")) as states,
    ):
        async with running_server(app(), port=port) as url, BackgroundBroadcaster(url) as client:
            reporter = run(client)
            reporter.started()
            assert (await anext(states)).status == "pending"
        waiting = asyncio.ensure_future(anext(states))
        async with running_server(app()) as url, BackgroundBroadcaster(url) as client:
            reporter = run(client, attempt=2)
            reporter.progress(0.5, "Writing")
            reporter.delta("Hello")
            for n in range(9):  # push all of it out of the log
                await client_broadcast(client, f"n{n}")
            if ends:
                reporter.completed({})
                for n in range(9):
                    await client_broadcast(client, f"m{n}")
            await client.aflush()
        async with running_server(app(), port=port) as url, BackgroundBroadcaster(url) as client:
            seen = [await waiting]
            if not ends:
                run(client, attempt=2).completed({})
            seen += [state async for state in states]
    assert [state.status for state in seen][-1] == "success"
    assert seen[-1].text in ("Hello", "")
    assert ends or any(state.label == "Writing" for state in seen)


@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_server_that_restarts_after_a_gap_makes_no_text_incomplete(
    url: str, monkeypatch: pytest.MonkeyPatch, *, goes_on: bool
) -> None:
    """It cannot be asked for its record for a moment, which says nothing about the text.

    The job may go on in the meantime, or later.
    """
    get_job, failures = synap_realtime.get_job, 0
    gaps: list[Callable[[str], object]] = []

    async def get_job_later(*arguments: Any) -> Any:
        nonlocal failures
        if gaps and (failures := failures + 1) <= 3:
            raise ReadError("could not be reached", retriable=True)
        return await get_job(*arguments)

    def subscribe(*arguments: Any, on_gap: Any, **options: Any) -> Any:
        gaps.append(on_gap)
        return synap_realtime.subscribe(*arguments, on_gap=on_gap, **options)

    monkeypatch.setattr(following, "get_job", get_job_later)
    monkeypatch.setattr(following, "subscribe", subscribe)
    async with BackgroundBroadcaster(url) as broadcaster:
        reporter = run(broadcaster)
        reporter.started()
        reporter.delta("Hello")
        await reporter.aflush()
        async with asyncio.timeout(TIMEOUT_S), aclosing(follow_job("r1", url)) as states:
            seen = [await anext(states)]
            waiting = asyncio.ensure_future(anext(states))
            await until(lambda: gaps)
            gaps[0]("request_r1")
            await until(lambda: failures >= 1 if goes_on else len(gaps) == 2)
            reporter.completed({})
            seen += [await waiting, *[state async for state in states]]
    assert [state.text for state in seen if not state.is_text_complete] == []
    assert seen[-1].text == "Hello"


async def client_broadcast(client: BackgroundBroadcaster, id: str) -> None:
    client.broadcast_notification(request_id="r1", message={"type": "a", "data": {}, "id": id})


async def test_whoever_follows_at_any_moment_gets_one_end_and_the_whole_text(url: str) -> None:
    chance = random.Random(1)
    pieces = [chance.choice(["tok ", "é", "😀", "\n"]) for _ in range(120)]

    async def come(request: str) -> JobState:
        await asyncio.sleep(random.random() * 0.4)
        return (await follow(url, request))[-1]

    async with BackgroundBroadcaster(url) as broadcaster:
        for number in range(3):
            request = f"q{number}"
            coming = [asyncio.create_task(come(request)) for _ in range(15)]
            first = run(broadcaster, request, f"run{number}")
            first.started()
            for piece in pieces[:40]:
                first.delta(piece)
                await asyncio.sleep(0.002)
            first.retrying("Again.")
            second = run(broadcaster, request, f"run{number}", attempt=2)
            for piece in pieces:
                second.delta(piece)
                first.delta("zombie")
                await asyncio.sleep(0.002)
            second.completed({"n": number})
            for state in await asyncio.gather(*coming):
                assert (state.status, state.result) == ("success", {"n": number})
                assert state.text == "".join(pieces)
                assert state.is_text_complete
