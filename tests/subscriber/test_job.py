"""The state of a job, from the notifications received."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from synap_realtime import (
    BackgroundBroadcaster,
    InvalidArgumentError,
    Job,
    JobState,
    Notification,
    follow_job,
)
from synap_realtime.jobs import JobType, Recipient, Reporter, RunNotifications
from synap_realtime.server import create_app
from synap_realtime.server.serve import running_server
from synap_realtime.subscriber import JobTracker
from tests.support.program import free_port
from tests.support.timeouts import TIMEOUT_S

REPORT = JobType("report.creation")


def statuses(view: JobTracker, *notifications: Notification) -> list[str]:
    return [view.apply(each).status for each in notifications]


def test_job_state_follows_its_notifications() -> None:
    first, second = (RunNotifications(REPORT, "r", attempt=n, max_attempts=4) for n in (1, 2))
    view = JobTracker()
    assert view.state.status == "idle"
    view.apply(first.started())
    state = view.apply(first.progress("1", 0.4, "Uploading", 120))
    assert (state.status, state.progress, state.label) == ("pending", 0.4, "Uploading")
    silences = [view.stall_after_s]
    state = view.apply(first.retrying("No paper."))
    assert (state.status, state.attempt, state.max_attempts) == ("retrying", 2, 4)
    assert (state.progress, state.error) == (None, "No paper.")
    assert view.mark_stalled().status == "stalled"
    assert view.apply(second.progress("2", 0, None, None)).status == "pending"
    state = view.apply(second.completed({"pages": 3}))
    assert (state.status, state.result, state.error) == ("success", {"pages": 3}, None)
    assert [*silences, view.stall_after_s] == [120, None]
    assert view.mark_stalled() == view.apply(second.started()) == state


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_failed_and_cancelled_are_errors(end: str) -> None:
    run = RunNotifications(REPORT, "r")
    terminal = run.failed("No paper.") if end == "failed" else run.cancelled("No paper.")
    view = JobTracker()
    assert statuses(view, run.started(), terminal) == ["pending", "error"]
    assert view.state.error == "No paper."


@pytest.mark.parametrize("value", ["1e999", "-1", "NaN", "1" + "0" * 400, "true", '"2"', "null"])
def test_what_is_no_count_is_ignored(value: str) -> None:
    names = ["attempt", "maxAttempts", "stallAfterS", "progress", "index"]
    data: Any = json.loads("{" + ",".join(f'"{name}":{value}' for name in names) + ',"delta":""}')
    view = JobTracker()
    for kind in ("progress", "retrying", "delta"):
        state = view.apply(Notification(type=f"report.creation.{kind}", data=data))
        assert (state.attempt, state.max_attempts, state.progress) == (1, None, None)
    assert view.stall_after_s is None


def test_text_grows_and_restarts() -> None:
    run = RunNotifications(REPORT, "r")
    view = JobTracker()
    for index, piece in enumerate(["Hel", "lo"]):
        view.apply(run.delta("a", index, piece))
    assert view.state.text == "Hello"
    view.apply(run.retrying("Again."))
    assert view.apply(run.delta("b", 0, "Good")).text == "Good"


def delta(view: JobTracker, index: object, piece: str, **rest: object) -> tuple[str, bool]:
    data = {"runId": "r", "attempt": 1, "index": index, "delta": piece, **rest}
    state = view.apply(Notification(type="a.delta", data=data, status="pending"))
    return state.text, state.is_text_complete


def test_does_not_show_a_text_without_its_beginning() -> None:
    view = JobTracker()
    assert delta(view, 3, "of the end") == ("", False)
    assert delta(view, 4, ".") == ("", False)
    assert delta(view, 0, "Anew", attempt=2) == ("Anew", True)


def test_shows_a_text_up_to_the_first_missing_piece() -> None:
    view = JobTracker()
    assert delta(view, 0, "a") == ("a", True)
    for index in (2, 1, 3):
        assert delta(view, index, "?") == ("a", False)
    assert delta(view, 0, "x") == ("x", True)


def test_a_text_may_go_on_after_a_gap() -> None:
    view = JobTracker()
    delta(view, 0, "a")
    assert not view.gap().is_text_complete
    assert delta(view, 1, "b") == ("ab", True)
    view.gap()
    assert delta(view, 3, "d") == ("ab", False)


def test_does_not_mix_texts_of_attempts_or_runs() -> None:
    view = JobTracker()
    delta(view, 0, "first")
    assert delta(view, 1, "second", attempt=2) == ("", False)
    assert delta(view, 1, "late") == ("", False)
    assert delta(view, 0, "second", attempt=2) == ("second", True)
    assert delta(view, 0, "late") == ("second", True)
    assert delta(view, 1, "other", attempt=2, runId="s") == ("", False)


def test_shows_a_piece_once() -> None:
    view = JobTracker()
    delta(view, 0, "a")
    delta(view, 1, "b")
    assert delta(view, 1, "b") == ("ab", True)


@pytest.mark.parametrize("index", [None, "0", -1, 1.5, True, [], {}])
def test_delta_without_an_index_is_ignored(index: object) -> None:
    view = JobTracker()
    delta(view, 0, "a")
    assert delta(view, index, "b") == ("a", False)


@pytest.mark.parametrize("name", ["response", "text", "result"])
def test_terminal_notification_holds_the_whole_text(name: str) -> None:
    view = JobTracker()
    delta(view, 3, "le")
    end = Notification(type="a.completed", status="success", data={name: "whole"})
    assert (view.apply(end).text, view.state.is_text_complete) == ("whole", True)


def test_marks_text_incomplete_without_a_complete_result() -> None:
    view = JobTracker()
    delta(view, 3, "le")
    end = Notification(type="a.completed", status="success", data={"pages": 3})
    assert (view.apply(end).text, view.state.is_text_complete) == ("", False)
    assert view.gap() == view.state


def test_completed_job_has_full_progress() -> None:
    run = RunNotifications(REPORT, "r")
    view = JobTracker()
    view.apply(run.progress("1", 0.5, None, None))
    assert view.apply(run.completed({})).progress == 1
    bad = JobTracker()
    bad.apply(run.progress("1", 0.5, None, None))
    assert bad.apply(run.failed("No paper.")).progress == 0.5


@pytest.mark.parametrize("request_id", [None, "", "a b", True, 1.5, "None", "undefined"])
def test_invalid_request_id_raises_at_the_call(request_id: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"request_id|room"):
        follow_job(request_id)


async def test_lost_connection_does_not_stall_the_job() -> None:
    """The server is away for longer than the job's silence may be: that says nothing of it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    seen: list[JobState] = []
    async with asyncio.timeout(TIMEOUT_S), aclosing(follow_job("r1", url)) as states:
        async with (
            running_server(create_app(), port=port),
            BackgroundBroadcaster(url) as broadcaster,
        ):
            lifecycle = RunNotifications(REPORT, "r", stall_after_s=0.5)
            reporter = Reporter(lifecycle, [Recipient("42", "r1")], broadcaster)
            reporter.started()
            seen.append(await anext(states))
        waiting = asyncio.ensure_future(anext(states))
        await asyncio.wait([waiting], timeout=1.5)
        assert not waiting.done()
        async with running_server(create_app(), port=port):
            seen += [await waiting, await anext(states)]
    # The log is gone, and with it perhaps a part of the text; then the job is silent, indeed.
    assert [state.status for state in seen] == ["pending", "pending", "stalled"]
    assert [state.is_text_complete for state in seen] == [True, False, False]


def test_a_wait_without_a_limit_never_stalls() -> None:
    view = JobTracker()
    run = RunNotifications(REPORT, "r")
    view.apply(run.started())
    assert view.stall_after_s == 60
    view.apply(run.suspended("sleep"))
    assert view.stall_after_s is None


@pytest.mark.parametrize("junk", ["x", -1, True, None, [], {}])
def test_invalid_lifecycle_data_is_ignored(junk: Any) -> None:
    data = dict.fromkeys(
        ("attempt", "maxAttempts", "progress", "label", "error", "stallAfterS", "index", "delta"),
        junk,
    )
    for word in ("started", "progress", "delta", "retrying"):
        view = JobTracker()
        state = view.apply(Notification(type=f"a.{word}", data=data, status="pending"))
        assert state.attempt == 1
        assert state.progress is state.max_attempts is view.stall_after_s is None


async def test_silent_job_stalls_until_it_reports_and_a_finished_one_ends_immediately() -> None:
    async with running_server(create_app()) as url, BackgroundBroadcaster(url) as broadcaster:
        lifecycle = RunNotifications(REPORT, "r", stall_after_s=0.2)
        reporter = Reporter(lifecycle, [Recipient("42", "r1")], broadcaster)
        reporter.started()
        seen: list[JobState] = []
        async with asyncio.timeout(TIMEOUT_S), aclosing(follow_job("r1", url)) as states:
            async for state in states:
                seen.append(state)
                if state.status == "stalled" and len(seen) == 2:
                    reporter.progress(0.5)
                elif state.status == "stalled":
                    reporter.completed({"pages": 3})
        assert [s.status for s in seen] == ["pending", "stalled", "pending", "stalled", "success"]
        async with asyncio.timeout(TIMEOUT_S), aclosing(follow_job("r1", url)) as states:
            assert [(state.status, state.result) async for state in states] == [
                ("success", {"pages": 3})
            ]


def folded(view: JobTracker, offset: object, piece: str, **fold: object) -> tuple[str, bool]:
    run = RunNotifications(REPORT, "r").delta("a", 7, piece)
    member = {"key": "r:text", "mode": "append", "offset": offset, "attempt": 1000, **fold}
    state = view.apply(run.model_copy(update={"fold": member}))
    return state.text, state.is_text_complete


def test_a_folded_text_is_placed_by_its_offset_in_code_points() -> None:
    view = JobTracker()
    assert folded(view, 0, "aé") == ("aé", True)
    assert folded(view, 2, "😀") == ("aé😀", True)
    assert folded(view, 3, "!") == ("aé😀!", True)
    assert folded(view, 1, "é😀!?") == ("aé😀!?", True)  # pieces that were joined for this client
    assert folded(view, 9, "lost") == ("aé😀!?", False)
    assert view.misses_text
    assert folded(view, 0, "whole", attempt=2000) == ("whole", True)
    assert folded(view, 5, "late", attempt=1000) == ("whole", True)
    assert folded(view, 3, "other run", key="s:text") == ("", False)
    assert not view.gap().is_text_complete


@pytest.mark.parametrize("offset", [None, -1, 1.5, "0", True, 2**60])
def test_a_piece_with_an_invalid_offset_adds_nothing_that_does_not_fit(offset: object) -> None:
    view = JobTracker()
    folded(view, 0, "a")
    text, is_complete = folded(view, offset, "b")
    assert (text, is_complete) in (("a", False), ("ab", True))


def test_a_text_goes_on_without_fold() -> None:
    view = JobTracker()
    folded(view, 0, "folded ")
    assert delta(view, 8, "plain", offset=7) == ("folded plain", True)
    assert delta(view, 8, "plain", offset=7) == ("folded plain", True)
    assert delta(view, 9, "!", offset=12) == ("folded plain!", True)
    assert delta(view, 11, "?", offset=20) == ("folded plain!", False)


def test_the_record_of_the_server_is_the_state_until_its_notifications_follow() -> None:
    view = JobTracker()
    job = Job(
        "report.creation", "running", "r", progress=0.5, label="Up", attempt=2, text="Hel",
        stall_after_s=9,
    )  # fmt: skip
    state = view.restore(job)
    assert (state.status, state.progress, state.label, state.attempt) == ("pending", 0.5, "Up", 2)
    assert view.stall_after_s == 9
    assert folded(view, 3, "lo") == ("Hello", True)
    state = view.restore(replace(job, status="failed", error="No paper.", text="Hello"))
    assert (state.status, state.error, state.text) == ("error", "No paper.", "Hello")
    assert state.result == {"error": "No paper.", "runId": "r"}
    assert view.restore(job) == state  # the first end counts


@pytest.mark.parametrize(
    ("status", "shown"),
    [("retrying", "retrying"), ("completed", "success"), ("cancelled", "error")],
)
def test_each_status_of_a_record_is_one_of_a_state(status: Any, shown: str) -> None:
    assert JobTracker().restore(Job("report.creation", status, "r")).status == shown
