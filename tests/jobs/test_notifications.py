"""The notifications that a run publishes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synap_realtime import InvalidArgumentError, InvalidInputError, JobError, NoteCreated
from synap_realtime.jobs import JobType, RunNotifications
from synap_realtime.jobs.job_types import CONVERSATION_MESSAGE, NOTE_CREATION
from synap_realtime.jobs.notifications import user_facing_error
from synap_realtime.jobs.truncation import truncate_result
from synap_realtime.protocol.notification import MAX_NOTIFICATION_BYTES, encode_json


def test_job_type_derives_its_event_names() -> None:
    assert NOTE_CREATION.trigger_event == "note.creation.requested"
    assert NOTE_CREATION.started == "note.creation.started"
    assert NOTE_CREATION.retrying == "note.creation.retrying"
    assert NOTE_CREATION.completed == "note.creation.completed"
    assert NOTE_CREATION.failed == "note.creation.failed"
    assert NOTE_CREATION.progress == "note.creation.progress"
    assert NOTE_CREATION.cancelled == "note.creation.cancelled"


def test_a_payload_is_a_class() -> None:
    assert NOTE_CREATION.payload is NoteCreated
    assert JobType("a.b").payload is None
    with pytest.raises(InvalidArgumentError, match="payload: expected a class"):
        JobType("a.b", payload={"x": int})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": "a" * 120}, "name"),
        ({"name": ""}, "name"),
        ({"name": "synap.report"}, "name"),
        ({"name": "a\ud800"}, "name"),
        ({"name": 7}, "name"),
        ({"name": "a.b", "completed": "a" * 129}, "completed"),
        ({"name": "a.b", "delta": "synap.x"}, "delta"),
    ],
)
def test_a_name_that_the_server_would_refuse_is_refused_at_definition(
    options: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"^{field}: "):
        JobType(**options)
    assert JobType("a" * 118).completed == "a" * 118 + ".completed"


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "60", None])
def test_invalid_stall_after_s_is_refused_at_definition(seconds: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="stall_after_s: "):
        RunNotifications(NOTE_CREATION, "run1", stall_after_s=seconds)


def test_an_error_that_cannot_be_read_is_neutral() -> None:
    class UnreadableError(JobError):
        def __str__(self) -> str:
            raise RuntimeError("no")

    data = RunNotifications(NOTE_CREATION, "run1").failed(UnreadableError()).data
    assert data["error"] == "Something went wrong (run run1)."


def test_exception_group_uses_the_text_of_its_deciding_error() -> None:
    inner = ExceptionGroup("h", [JobError("No paper.")])
    group = ExceptionGroup("g", [ValueError("secret"), inner])
    assert RunNotifications(NOTE_CREATION, "run1").failed(group).data["error"] == "No paper."


@pytest.mark.parametrize("in_s", [float("nan"), float("inf"), -1.0])
def test_a_pause_that_is_no_time_is_left_out(in_s: float) -> None:
    data = RunNotifications(NOTE_CREATION, "run1").retrying("No.", retry_in_s=in_s).data
    assert "retryInS" not in data
    assert data["stallAfterS"] == 60


def test_conversation_event_names_are_fixed() -> None:
    assert CONVERSATION_MESSAGE.trigger_event == "conversation.message.sent"
    assert CONVERSATION_MESSAGE.completed == "conversation.response.generated"
    assert CONVERSATION_MESSAGE.failed == "conversation.message.failed"


def test_ids_are_stable_and_differ() -> None:
    def ids() -> list[str | None]:
        first, second = (RunNotifications(NOTE_CREATION, "run1", attempt=n) for n in (1, 2))
        return [
            first.started().id,
            first.progress("1", 0.5, None, None).id,
            first.progress("2", 0.5, None, None).id,
            first.delta("s", 0, "a").id,
            first.delta("s", 1, "b").id,
            first.retrying("No.", step="upload").id,
            first.retrying("No.", step="print").id,
            second.retrying("No.", step="upload").id,
            second.completed({}).id,
        ]

    assert ids() == ids()
    assert len(set(ids())) == 9
    assert ids()[0] == "run1:note.creation.started"


def test_run_has_a_single_terminal_notification() -> None:
    run = RunNotifications(NOTE_CREATION, "run1")
    assert len({run.completed({}).id, run.failed("No.").id, run.cancelled().id}) == 1
    assert run.failed("No.").id != RunNotifications(NOTE_CREATION, "run2").failed("No.").id


def test_long_id_is_bounded_and_stays_distinct() -> None:
    ids = [
        RunNotifications(JobType("a" * 100), "r" * 40, attempt=n).retrying("", step="step").id or ""
        for n in range(2, 9)
    ]
    assert len(set(ids)) == 7
    assert all(len(id) <= 128 for id in ids)


def test_the_payloads_are_camel_case_and_the_status_is_the_missions() -> None:
    run = RunNotifications(NOTE_CREATION, "run1", attempt=1, max_attempts=4, stall_after_s=30)
    payload = NoteCreated(entity_id="e", title="t", file_url="u", file_path="p")
    assert run.completed(payload).data["entityId"] == "e"
    assert run.completed(payload).status == "success"
    assert run.failed("No.").data == {"error": "No.", "runId": "run1"}
    assert run.failed("No.").status == run.cancelled().status == "error"
    counted = {"runId": "run1", "attempt": 1, "maxAttempts": 4, "stallAfterS": 30}
    assert (run.started().status, run.started().data) == ("pending", counted)
    sent = run.progress("1", 0.4, "Uploading", None)
    assert (sent.status, sent.data) == (
        "pending",
        {**counted, "progress": 0.4, "label": "Uploading"},
    )
    retrying = run.retrying(JobError("No paper."), retry_in_s=5.0)
    assert (retrying.status, retrying.data) == (
        "pending",
        {**counted, "attempt": 2, "error": "No paper.", "retryInS": 5.0, "stallAfterS": 35.0},
    )


def test_more_attempts_than_were_announced_are_no_contradiction() -> None:
    data = RunNotifications(NOTE_CREATION, "run1", attempt=5, max_attempts=4).started().data
    assert (data["attempt"], data["maxAttempts"]) == (5, 5)


@given(
    st.dictionaries(
        st.text(max_size=40),
        st.one_of(
            st.integers(0, 300_000).map("x".__mul__),
            st.sampled_from([object(), float("nan"), "\ud800", b"\xff", None, 7, [1, {"a": 2}]]),
        ),
        max_size=12,
    )
)
def test_any_result_is_truncated_to_fit_and_names_omissions(result: dict[str, object]) -> None:
    sent = RunNotifications(NOTE_CREATION, "r" * 60).completed(result)
    data = sent.data
    assert len(encode_json("data", sent.to_wire())) <= MAX_NOTIFICATION_BYTES
    if "truncated" in result or "omitted" in result:
        return
    missing = [name for name in result if name not in data]
    assert bool(missing) == bool(data.get("truncated"))
    assert len(data.get("omitted", [])) == len(missing)
    good = {k: v for k, v in result.items() if v is None or isinstance(v, int | list)}
    assert good.items() <= data.items()


def test_non_mapping_result_is_published_under_result() -> None:
    assert truncate_result(None) == {}
    assert truncate_result(7) == {"result": 7}
    assert truncate_result("x" * 300_000) == {"truncated": True, "omitted": ["result"]}


def test_only_user_facing_errors_are_published() -> None:
    assert user_facing_error(JobError("The storage is busy."), "r") == "The storage is busy."
    assert user_facing_error(InvalidInputError("It is empty."), "r") == "It is empty."
    secret = user_facing_error(RuntimeError("password=hunter2"), "run7")
    assert secret == "Something went wrong (run run7)."
    assert user_facing_error(JobError(), "run7") == secret
