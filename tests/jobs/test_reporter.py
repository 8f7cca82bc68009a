"""A reporter notifies all recipients in order and never blocks the job."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from synap_realtime import InvalidArgumentError, delta, progress
from synap_realtime.jobs import JobType, Recipient, Reporter, RunNotifications, report_run
from synap_realtime.jobs.reporter import ReporterState
from synap_realtime.testing import RealtimeRecorder

REPORT = JobType("report.creation")
WHO = Recipient("42", "r1")

Make = Callable[..., Reporter]


@pytest.fixture
def make(realtime: RealtimeRecorder) -> Make:
    broadcaster = realtime.broadcaster()

    def make(*recipients: Recipient, attempt: int = 1, **options: Any) -> Reporter:
        return Reporter(
            RunNotifications(REPORT, "run1", attempt=attempt),
            recipients or (WHO,),
            broadcaster,
            **options,
        )

    return make


def test_progress_is_coalesced_and_the_last_precedes_the_end(
    make: Make, realtime: RealtimeRecorder
) -> None:
    reporter = make()
    reporter.started()
    begin = time.monotonic()
    for n in range(1000):
        reporter.progress(n / 999, f"step {n}")
    took = time.monotonic() - begin
    reporter.completed({})
    sent = realtime.sent(user_id="42")
    assert [sent[0].type, sent[-1].type] == [REPORT.started, REPORT.completed]
    steps = [each.data["progress"] for each in sent[1:-1]]
    assert 1 <= len(steps) <= 2 + took / 0.1
    assert steps == sorted(steps)
    assert steps[-1] == 1


def test_last_progress_is_published_when_nothing_follows(
    make: Make, realtime: RealtimeRecorder
) -> None:
    reporter = make()
    begin = time.monotonic()
    for n in range(3):
        reporter.progress(n / 10)
    took = time.monotonic() - begin
    sent = [each.data["progress"] for each in realtime.sent()]
    assert sent == sorted(sent)
    assert sent[-1] == 0.2
    assert len(sent) <= 2 + took / 0.1


def test_deltas_are_complete_and_in_order(make: Make, realtime: RealtimeRecorder) -> None:
    reporter = make()
    words = [f"{n} " for n in range(2000)]
    for word in words:
        reporter.delta(word)
    reporter.delta("é" * 40_000)
    reporter.completed({})
    sent = realtime.sent(REPORT.delta)
    assert [each.data["index"] for each in sent] == list(range(len(sent)))
    assert "".join(each.data["delta"] for each in sent) == "".join(words) + "é" * 40_000
    assert len(sent) < 2000  # those that waited became one
    assert {tuple(each.rooms) for each in sent} == {("request_r1",)}


def test_without_a_request_the_user_gets_the_text(make: Make, realtime: RealtimeRecorder) -> None:
    make(Recipient("42")).delta("Hello")
    assert realtime.sent()[0].rooms == ["user_42"]


def test_later_attempt_restarts_its_text(make: Make, realtime: RealtimeRecorder) -> None:
    make().delta("Hel")
    realtime.sent()
    make(attempt=2).delta("Good")
    first, second = realtime.sent()
    assert (first.data["index"], first.data["delta"]) == (0, "Hel")
    assert (second.data["index"], second.data["delta"]) == (0, "Good")
    assert first.id != second.id


def test_finished_run_reports_nothing(make: Make, realtime: RealtimeRecorder) -> None:
    reporter = make()
    reporter.started()
    reporter.failed("No paper.")
    reporter.progress(0.5)
    reporter.delta("x")
    reporter.completed({})
    reporter.retrying("Again.")
    assert realtime.types() == [REPORT.started, REPORT.failed]
    make().completed({})  # nor does another process
    assert realtime.types() == [REPORT.started, REPORT.failed]
    realtime.assert_single_terminal()


def test_each_recipient_of_a_batch_receives_their_own_result(
    make: Make, realtime: RealtimeRecorder
) -> None:
    a, b, nobody = Recipient("1", "a"), Recipient("2"), Recipient()
    reporter = make(a, b, a, nobody)
    reporter.started()
    reporter.completed_batch({a: {"secret": 1}, b: {"secret": 2}})
    first, second = realtime.received[-2:]
    assert (first.request_id, first.data) == ("a", {"secret": 1})
    assert (second.request_id, second.data) == (None, {"secret": 2})
    assert len(realtime.sent(user_id="1")) == 2


@pytest.mark.parametrize(
    ("recipient", "said", "rooms"),
    [
        (Recipient(None, "r1"), "names no user", ["request_r1"]),
        (Recipient("a/b", "r1"), "user_id: ", ["request_r1"]),
        (Recipient("42", "a/b"), "request_id: ", ["user_42"]),
        (Recipient(), "names no user", None),
    ],
)
def test_logs_an_unreportable_recipient_once(
    make: Make,
    realtime: RealtimeRecorder,
    caplog: pytest.LogCaptureFixture,
    recipient: Recipient,
    said: str,
    rooms: list[str] | None,
) -> None:
    with caplog.at_level(logging.WARNING):
        reporter = make(recipient)
        reporter.started()
        reporter.progress(0.5)
        reporter.completed({})
    assert caplog.text.count(said) == 1
    assert {tuple(each.rooms) for each in realtime.sent()} == ({tuple(rooms)} if rooms else set())


def test_replay_publishes_nothing(make: Make, realtime: RealtimeRecorder) -> None:
    replaying = True
    reporter = make(is_replay=lambda: replaying)
    reporter.progress(0.1)
    reporter.delta("old")
    replaying = False
    reporter.progress(0.2)
    assert [each.data.get("progress") for each in realtime.sent()] == [0.2]


def test_the_same_call_of_the_code_reports_the_same_progress(
    make: Make, realtime: RealtimeRecorder
) -> None:
    for _ in range(2):
        reporter = make(invocation_id="3")
        reporter.progress(0.4, "Uploading")
        realtime.sent()
    assert len(realtime.sent()) == 1
    assert len(realtime.received) == 2


def test_progress_goes_to_the_job_that_runs(make: Make, realtime: RealtimeRecorder) -> None:
    progress(0.1)  # nobody's
    delta("x")
    with report_run(make()):
        progress(0.4, "Uploading", stall_after_s=120)
    progress(0.9)
    started, reporter = realtime.sent()
    assert started.type == REPORT.started
    assert reporter.data["progress"] == 0.4
    assert reporter.data["stallAfterS"] == 120


@pytest.mark.parametrize("value", [-1, 2, float("inf"), float("-inf")])
def test_fraction_is_clamped_to_0_and_1(
    make: Make, realtime: RealtimeRecorder, value: float
) -> None:
    make().progress(value)
    assert realtime.sent()[0].data["progress"] == (1 if value > 0 else 0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda reporter: reporter.progress("half"), "fraction: "),
        (lambda reporter: reporter.progress(True), "fraction: "),
        (lambda reporter: reporter.progress(float("nan")), "fraction: "),
        (lambda reporter: reporter.progress(0.5, 7), "label: "),
        (lambda reporter: reporter.progress(0.5, stall_after_s=0), "stall_after_s: "),
        (lambda reporter: reporter.delta(b"x"), "text: "),
    ],
)
def test_wrong_types_raise_here(make: Make, call: Callable[[Reporter], None], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        call(make())


def test_a_label_or_a_text_that_is_no_unicode_fails_no_job(
    make: Make, realtime: RealtimeRecorder
) -> None:
    reporter = make()
    reporter.progress(0.5, "a\ud800b")
    reporter.delta("a\ud800b")
    reporter.failed("a\ud800b")
    assert len(realtime.sent()) == 3


def test_threads_may_report_concurrently(make: Make, realtime: RealtimeRecorder) -> None:
    reporter = make()

    def work(name: str) -> None:
        for n in range(200):
            reporter.delta(f"{name}{n} ")
            reporter.progress(n / 200)

    threads = [threading.Thread(target=work, args=[name]) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reporter.completed({})
    sent = realtime.sent()
    assert sent[-1].type == REPORT.completed
    words = "".join(each.data.get("delta", "") for each in sent).split()
    assert sorted(words) == sorted(f"{name}{n}" for name in "abcd" for n in range(200))
    for name in "abcd":
        own = [int(word[1:]) for word in words if word[0] == name]
        assert own == sorted(own)


def test_retried_and_duplicated_publishes_are_delivered_once(
    make: Make, realtime: RealtimeRecorder
) -> None:
    reporter = make()
    realtime.drop_requests(2)
    realtime.drop_responses()
    realtime.duplicate_requests(3)
    reporter.started()
    reporter.retrying("No paper.")
    reporter.completed({})
    reporter.flush()
    assert realtime.types() == [REPORT.started, REPORT.retrying, REPORT.completed]


@pytest.mark.parametrize("broken", ["post", "replace"])
def test_a_notification_that_cannot_be_published_fails_no_job(
    realtime: RealtimeRecorder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
) -> None:
    broadcaster = realtime.broadcaster()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(broadcaster, broken, fail)
    reporter = Reporter(RunNotifications(REPORT, "run1"), [WHO], broadcaster)
    with report_run(reporter):
        for n in range(3):
            progress(n / 3)
            delta("piece")
            delta("piece")
    reporter.completed({})
    assert reporter.state is ReporterState.FINISHED
    assert "failed; the job continues" in caplog.text
