"""What the user hears of a run, and what not."""

from __future__ import annotations

import pytest

from synap_realtime import InvalidArgumentError, InvalidInputError, JobError, NoteCreated
from synap_realtime.jobs import Family, Lifecycle
from synap_realtime.jobs.family import CONVERSATION_MESSAGE, NOTE_CREATION
from synap_realtime.jobs.lifecycle import readable_error


def test_a_familys_names_come_from_its_own() -> None:
    assert NOTE_CREATION.requested == "note.creation.requested"
    assert NOTE_CREATION.started == "note.creation.started"
    assert NOTE_CREATION.retrying == "note.creation.retrying"
    assert NOTE_CREATION.completed == "note.creation.completed"
    assert NOTE_CREATION.failed == "note.creation.failed"
    assert NOTE_CREATION.progress == "note.creation.progress"
    assert NOTE_CREATION.cancelled == "note.creation.cancelled"


def test_a_payload_is_a_class() -> None:
    assert NOTE_CREATION.payload is NoteCreated
    assert Family("a.b").payload is None
    with pytest.raises(InvalidArgumentError, match="payload: expected a class"):
        Family("a.b", payload={"x": int})  # type: ignore[arg-type]


def test_the_missions_names_stay() -> None:
    assert CONVERSATION_MESSAGE.requested == "conversation.message.sent"
    assert CONVERSATION_MESSAGE.completed == "conversation.response.generated"
    assert CONVERSATION_MESSAGE.failed == "conversation.message.failed"


def test_ids_are_stable_and_differ() -> None:
    def ids() -> list[str | None]:
        run = Lifecycle(NOTE_CREATION, "run1")
        return [
            run.started().id,
            run.retrying(2, 4, "No.", "upload").id,
            run.retrying(3, 4, "No.", "upload").id,
            run.completed({}).id,
            run.failed("No.").id,
        ]

    assert ids() == ids()
    assert len(set(ids())) == 5
    assert ids()[0] == "run1:note.creation.started"


def test_a_long_id_is_cut_to_what_the_wire_takes_and_stays_distinct() -> None:
    run = Lifecycle(Family("a" * 100), "r" * 40)
    ids = [run.retrying(n, 9, "", "step").id or "" for n in range(2, 9)]
    assert len(set(ids)) == 7
    assert all(len(id) <= 128 for id in ids)


def test_the_payloads_are_camel_case_and_the_status_is_the_missions() -> None:
    run = Lifecycle(NOTE_CREATION, "run1")
    payload = NoteCreated(entity_id="e", title="t", file_url="u", file_path="p")
    assert run.completed(payload).data["entityId"] == "e"
    assert run.completed(payload).status == "success"
    assert run.failed("No.").data == {"error": "No.", "runId": "run1"}
    assert run.failed("No.").status == "error"
    assert run.started().status == run.retrying(2, 4, "No.", "s").status == "pending"
    assert run.retrying(2, 4, "No.", "s").data["maxAttempts"] == 4


def test_a_user_reads_only_what_was_written_for_users() -> None:
    assert readable_error(JobError("The storage is busy."), "r") == "The storage is busy."
    assert readable_error(InvalidInputError("It is empty."), "r") == "It is empty."
    secret = readable_error(RuntimeError("password=hunter2"), "run7")
    assert secret == "Something went wrong (run run7)."
    assert readable_error(JobError(), "run7") == secret
