"""The record of a request's job, from its lifecycle notifications."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synap_realtime.errors import InvalidArgumentError
from synap_realtime.protocol.job_state import (
    MAX_ID_LENGTH,
    MAX_PAST_RUNS,
    JobEvent,
    JobRecord,
    fold_job,
    parse_job,
    parse_record,
    run_of_key,
)

ENDINGS = ("completed", "failed", "cancelled")


def note(event: str, run: str = "r1", at: int = 0, **data: Any) -> JobEvent:
    return JobEvent(event, "note.creation", run, "u1", "q1", f"2026-01-31T12:00:{at:02}.000Z", data)


def folded(events: Iterable[JobEvent], record: JobRecord | None = None) -> JobRecord:
    for event in events:
        record = fold_job(record, event)
    assert record is not None
    return record


def test_a_run_from_its_start_to_its_result() -> None:
    record = folded(
        [
            note("started", at=1, attempt=1, maxAttempts=3),
            note("progress", at=2, attempt=1, progress=0.5, label="Uploading"),
        ]
    )
    assert record.to_wire() == {
        "type": "note.creation",
        "status": "running",
        "runId": "r1",
        "userId": "u1",
        "requestId": "q1",
        "progress": 0.5,
        "label": "Uploading",
        "attempt": 1,
        "maxAttempts": 3,
        "truncated": False,
        "startedAt": "2026-01-31T12:00:01.000Z",
        "updatedAt": "2026-01-31T12:00:02.000Z",
    }
    record = folded([note("retrying", at=3, attempt=2, error="Try again.")], record)
    assert (record.status, record.attempt, record.error) == ("retrying", 2, "Try again.")
    assert (record.progress, record.label) == (None, None)
    record = folded([note("completed", at=9, title="T", truncated=True)], record)
    assert (record.status, record.progress, record.error) == ("completed", 1.0, None)
    assert record.result == {"title": "T", "truncated": True}
    assert record.truncated
    assert record.started_at == "2026-01-31T12:00:01.000Z"
    assert record.ended_at == "2026-01-31T12:00:09.000Z"
    assert record.with_text("all").to_wire()["text"] == "all"
    assert "text" not in record.with_text("all").to_wire(has_text=False)


@pytest.mark.parametrize("ending", ENDINGS)
def test_first_ending_of_a_run_counts(ending: str) -> None:
    record = folded([note("started"), note(ending, at=1, error="first")])
    later = [note(event, at=2, attempt=9, error="x") for event in ("started", "progress", *ENDINGS)]
    assert folded(later, record) == record


def test_late_event_of_an_earlier_attempt_has_no_effect() -> None:
    record = folded([note("started", attempt=2), note("progress", attempt=2, progress=0.1)])
    for event in ("started", "progress", "retrying"):
        assert fold_job(record, note(event, attempt=1, progress=0.9, error="x")) is record
    assert fold_job(record, note("retrying", attempt=2, error="x")) is record, "it runs already"
    assert folded([note("failed", error="x")], record).status == "failed"


def step(event: str, fence: int, attempt: int, **data: Any) -> JobEvent:
    """Return an event on a framework that counts the attempts of each step from 1."""
    return note(event, attempt=attempt, **data)._replace(attempt=fence)


def test_steps_that_count_their_attempts_anew_are_in_the_order_of_their_fences() -> None:
    events = [
        step("started", 1, 1),
        step("retrying", 2, 2, error="x"),
        step("progress", 2, 2, progress=0.3, label="one"),
        step("progress", 33, 1, progress=0.5),
    ]
    record = folded(events)
    assert (record.attempt, record.progress, record.label) == (1, 0.5, "one")
    for late in (
        step("progress", 2, 2, progress=0.9),
        step("retrying", 3, 3),
        note("started", attempt=1),
    ):
        assert fold_job(record, late) is record
    record = folded([step("retrying", 34, 2, error="y")], record)
    assert (record.status, record.attempt, record.error) == ("retrying", 2, "y")
    assert (record.progress, record.label) == (None, None)
    record = folded([step("progress", 34, 2, progress=0.7)], record)
    assert fold_job(record, step("retrying", 34, 2)) is record, "it runs already"
    assert "fence" not in record.to_wire()
    assert parse_record(record.to_stored()) == record


def test_later_run_of_the_request_begins_anew_and_earlier_ones_have_no_effect() -> None:
    first = folded([note("started"), note("failed", at=1, error="x")])
    second = folded([note("started", "r2", at=5)], first)
    assert (second.run_id, second.status, second.error) == ("r2", "running", None)
    assert second.started_at == "2026-01-31T12:00:05.000Z"
    for event in ("started", "progress", *ENDINGS):
        assert fold_job(second, note(event, "r1", at=50)) == second


def test_run_whose_start_is_not_known_begins_with_what_is() -> None:
    for event, status in (("progress", "running"), ("retrying", "retrying"), ("failed", "failed")):
        record = folded([note(event, attempt=2, error="x")])
        assert record.status == status
        assert record.attempt == (1 if event == "failed" else 2)


def test_remembers_a_bounded_number_of_runs() -> None:
    record = folded(note("started", f"r{number}") for number in range(100))
    assert record.past_runs == tuple(f"r{number}" for number in range(99 - MAX_PAST_RUNS, 99))


JOB = {"event": "started", "name": "note.creation", "runId": "r1"}


def test_reads_the_member_job_with_the_notification_that_has_it() -> None:
    wire = {"requestId": "q1", "timestamp": "t", "data": {"a": 1}}
    event = parse_job({**JOB, "userId": "u1", "later": {}}, wire)
    assert event == JobEvent("started", "note.creation", "r1", "u1", "q1", "t", {"a": 1})
    assert parse_job({**JOB, "attempt": 7.0}, {"data": {}}).attempt == 7
    assert event.job_id == "q1"
    assert event.run_keys == ("r1:text", "r1:progress")
    bare = parse_job({**JOB, "userId": None}, {"data": {}})
    assert (bare.user_id, bare.request_id, bare.job_id) == (None, None, "r1")
    for request in ("", "q" * (MAX_ID_LENGTH + 1)):
        assert parse_job(JOB, {"data": {}, "requestId": request}).job_id == "r1"


INVALID: dict[str, list[object]] = {
    "event": [None, 1, "delta", "Started", []],
    "name": [None, 5, "", "x" * 129, "\ud800"],
    "runId": [None, 5, "", "x" * 129, "\ud800"],
    "attempt": [-1, 1.5, "1", True, 2**31],
    "userId": [5, "", "x" * 201, "\ud800", []],
}


@pytest.mark.parametrize(
    ("field", "job"),
    [
        ("job", "x"),
        ("job", 1),
        ("job", []),
        ("job", True),
        *[
            (f"job.{name}", {**JOB, name: value})
            for name, values in INVALID.items()
            for value in values
        ],
        ("job.event", {}),
    ],
)
def test_names_the_member_of_job_that_is_not_valid(field: str, job: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_job(job, {"data": {}})
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("key", "run"),
    [("r1:text", "r1"), ("a:b:progress", "a:b"), ("text", None), ("r1:other", None), ("r1", None)],
)
def test_recognizes_the_keys_of_a_run(key: str, run: str | None) -> None:
    assert run_of_key(key) == run


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
)
MEMBERS = ("attempt", "maxAttempts", "progress", "label", "error", "truncated")


@given(
    st.lists(
        st.builds(
            lambda event, run, data: note(event, run, **data),
            st.sampled_from(["started", "progress", "retrying", *ENDINGS]),
            st.sampled_from(["r1", "r2"]),
            st.dictionaries(st.sampled_from(MEMBERS), JSON),
        ),
        max_size=8,
    )
)
def test_any_data_is_folded_without_an_error(events: list[JobEvent]) -> None:
    record = None
    for event in events:
        record = fold_job(record, event)
        assert parse_record(json.loads(json.dumps(record.to_stored()))) == record
        assert record.progress is None or 0 <= record.progress <= 1
        assert record.attempt >= 1
        assert record.job_id == "q1"


def attempts(run: str, data: st.DataObject) -> list[JobEvent]:
    """Return what a run publishes, in order."""
    events: list[JobEvent] = []
    last = data.draw(st.integers(1, 3))
    for attempt in range(1, last + 1):
        events.append(note("started", run, len(events), attempt=attempt))
        for step in range(data.draw(st.integers(0, 3))):
            progress = (step + 1) / 4
            events.append(note("progress", run, len(events), attempt=attempt, progress=progress))
        if attempt < last:
            events.append(note("retrying", run, len(events), attempt=attempt + 1, error="again"))
    ending = data.draw(st.sampled_from(ENDINGS))
    events.append(note(ending, run, len(events), error="the end"))
    return events


@given(st.data())
def test_repeats_and_late_events_of_earlier_attempts_change_nothing(data: st.DataObject) -> None:
    """Events of an attempt come in order, but any of an earlier attempt again at any time."""
    events = attempts("r1", data)
    expected, record = None, None
    for number, event in enumerate(events):
        expected = fold_job(expected, event)
        record = fold_job(record, event)
        present = event.data.get("attempt", 4)
        late = [each for each in events[:number] if each.data.get("attempt", 4) < present] + [event]
        for again in data.draw(st.lists(st.sampled_from(late), max_size=3)):
            record = fold_job(record, again)
        assert record == expected


@given(st.data())
def test_two_runs_of_a_request_end_as_the_later_one_does(data: st.DataObject) -> None:
    """However they interleave: exactly one ending, that of the run that began last."""
    runs = {run: attempts(run, data) for run in ("r1", "r2")}
    order = data.draw(st.permutations([run for run in runs for _ in runs[run]]))
    waiting = {run: iter(events) for run, events in runs.items()}
    record: JobRecord | None = None
    endings: list[JobRecord] = []
    for run in order:
        record = fold_job(record, next(waiting[run]))
        assert record is not None
        if record.has_ended and (not endings or endings[-1] != record):
            endings.append(record)
    latest = max(runs, key=order.index)
    assert record is not None
    assert record.run_id == latest
    assert record.status == runs[latest][-1].event
    assert [each for each in endings if each.run_id == latest] == [record]


def test_a_record_says_how_long_the_run_may_be_silent() -> None:
    record = folded([note("started", stallAfterS=60)])
    assert record.to_wire()["stallAfterS"] == 60
    assert parse_record(record.to_stored()) == record
    for value in (None, 0, -1, True, "60", 1e12):
        waits = folded([note("progress", stallAfterS=value)], record)
        assert "stallAfterS" not in waits.to_wire()
    assert folded([note("failed")], record).stall_after_s is None
