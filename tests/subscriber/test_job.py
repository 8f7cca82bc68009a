"""How a job stands, from what was heard of it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from synap_realtime import BackgroundBroadcaster, JobState, Notification, follow_job
from synap_realtime.jobs import Family, Lifecycle, Person, Reporter
from synap_realtime.server import create_app
from synap_realtime.server.serve import running
from synap_realtime.subscriber import JobView

REPORT = Family("report.creation")


def statuses(view: JobView, *notifications: Notification) -> list[str]:
    return [view.hear(each).status for each in notifications]


def test_a_jobs_life_is_what_was_heard_of_it() -> None:
    first, second = (Lifecycle(REPORT, "r", attempt=n, max_attempts=4) for n in (1, 2))
    view = JobView()
    assert view.state.status == "idle"
    view.hear(first.started())
    state = view.hear(first.progress("1", 0.4, "Uploading", 120))
    assert (state.status, state.progress, state.label) == ("pending", 0.4, "Uploading")
    silences = [view.stall_after_s]
    state = view.hear(first.retrying("No paper."))
    assert (state.status, state.attempt, state.max_attempts) == ("retrying", 2, 4)
    assert (state.progress, state.error) == (None, "No paper.")
    assert view.stall().status == "stalled"
    assert view.hear(second.progress("2", 0, None, None)).status == "pending"
    state = view.hear(second.completed({"pages": 3}))
    assert (state.status, state.result, state.error) == ("success", {"pages": 3}, None)
    assert [*silences, view.stall_after_s] == [120, None]
    assert view.stall() == view.hear(second.started()) == state


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_the_bad_ends(end: str) -> None:
    run = Lifecycle(REPORT, "r")
    told = run.failed("No paper.") if end == "failed" else run.cancelled("No paper.")
    view = JobView()
    assert statuses(view, run.started(), told) == ["pending", "error"]
    assert view.state.error == "No paper."


def test_a_text_grows_and_begins_anew() -> None:
    run = Lifecycle(REPORT, "r")
    view = JobView()
    for index, piece in enumerate(["Hel", "lo"]):
        view.hear(run.delta("a", index, piece))
    assert view.state.text == "Hello"
    view.hear(run.retrying("Again."))
    assert view.hear(run.delta("b", 0, "Good")).text == "Good"


def test_a_wait_without_a_limit_never_stalls() -> None:
    view = JobView()
    run = Lifecycle(REPORT, "r")
    view.hear(run.started())
    assert view.stall_after_s == 60
    view.hear(run.waits("sleep"))
    assert view.stall_after_s is None


@pytest.mark.parametrize("junk", ["x", -1, True, None, [], {}])
def test_junk_from_others_is_no_news(junk: Any) -> None:
    data = dict.fromkeys(
        ("attempt", "maxAttempts", "progress", "label", "error", "stallAfterS", "index", "delta"),
        junk,
    )
    for word in ("started", "progress", "delta", "retrying"):
        view = JobView()
        state = view.hear(Notification(type=f"a.{word}", data=data, status="pending"))
        assert state.attempt == 1
        assert state.progress is state.max_attempts is view.stall_after_s is None


async def test_a_silent_job_is_stalled_until_it_speaks_and_one_that_is_over_is_told_at_once() -> (
    None
):
    async with running(create_app()) as url, BackgroundBroadcaster(url) as broadcaster:
        lifecycle = Lifecycle(REPORT, "r", stall_after_s=0.2)
        reporter = Reporter(lifecycle, [Person("42", "r1")], broadcaster)
        reporter.started()
        seen: list[JobState] = []
        async with asyncio.timeout(10), aclosing(follow_job("r1", url)) as states:
            async for state in states:
                seen.append(state)
                if state.status == "stalled" and len(seen) == 2:
                    reporter.progress(0.5)
                elif state.status == "stalled":
                    reporter.completed({"pages": 3})
        assert [s.status for s in seen] == ["pending", "stalled", "pending", "stalled", "success"]
        async with asyncio.timeout(10), aclosing(follow_job("r1", url)) as states:
            assert [state.status async for state in states] == ["pending", "pending", "success"]
