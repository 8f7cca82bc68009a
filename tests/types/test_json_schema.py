"""The document is valid JSON Schema 2020-12 and describes delivered notifications."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from pydantic import BaseModel, RootModel
from pydantic.alias_generators import to_camel

from synap_realtime import InvalidArgumentError, NoteCreated, Notification
from synap_realtime.jobs import JobType, RunNotifications
from synap_realtime.jobs.job_types import NOTE_CREATION
from synap_realtime.protocol.notification import MAX_NOTIFICATION_BYTES
from synap_realtime.types import build_catalog, to_json_schema
from synap_realtime.types.json_schema import MEMBERS

DELIVERED = {"timestamp": "2026-01-31T12:00:00.000Z", "room": "user_1", "cursor": "c"}


class TaskCreated(BaseModel):
    """Named as one of ours."""

    size: int


def schema_of(own: object = ()) -> dict[str, Any]:
    return to_json_schema(build_catalog({"own": own}), "how")


def check(type: str, data: object, own: object = (), **members: object) -> None:
    schema = schema_of(own)
    Draft202012Validator.check_schema(schema)
    notification = {"id": "n", **DELIVERED, "type": type, "data": data, **members}
    Draft202012Validator(schema).validate(notification)


@pytest.mark.parametrize("max_attempts", [None, 4])
def test_notifications_of_a_run_are_valid(max_attempts: int | None) -> None:
    note = NoteCreated(entity_id="e", title="t", file_url="u", file_path="p")
    run = RunNotifications(NOTE_CREATION, "r", 1, max_attempts)
    for sent in (
        run.started(),
        run.progress("1", 0.5, "Half.", None),
        run.progress("2", None, None, 5),
        run.suspended("sleep"),
        run.delta("s", 0, "Once"),
        run.retrying("No.", retry_in_s=1),
        run.retrying("No."),
        run.completed(note),
        run.completed({**note.model_dump(by_alias=True), "title": "t" * MAX_NOTIFICATION_BYTES}),
        run.failed("No."),
        run.cancelled(),
    ):
        check(sent.type, sent.data, id=sent.id, status=sent.status)
    assert "truncated" in run.completed({"x": "x" * MAX_NOTIFICATION_BYTES}).data


@pytest.mark.parametrize(
    ("type", "data", "members"),
    [
        ("note.creation.completed", {"title": "t"}, {}),
        ("note.creation.started", {"runId": "r", "attempt": 1, "stallAfterS": 0}, {}),
        ("note.creation.started", {"runId": "r", "attempt": 1, "stallAfterS": None}, {}),
        ("task.creation.completed", {"truncated": False}, {}),
        ("a.unknown", {}, {}),
        ("note.creation.failed", {"error": "No.", "runId": "r"}, {"status": "odd"}),
        ("note.creation.failed", {"error": "No.", "runId": "r"}, {"room": 1}),
    ],
)
def test_other_notifications_are_invalid(
    type: str, data: object, members: dict[str, object]
) -> None:
    with pytest.raises(ValidationError):
        check(type, data, **members)


@pytest.mark.parametrize("gone", ["type", "data", "id", "timestamp", "room", "cursor"])
def test_always_present_members_are_required(gone: str) -> None:
    data = {"error": "No.", "runId": "r"}
    notification = {"id": "n", **DELIVERED, "type": "note.creation.failed", "data": data}
    Draft202012Validator(schema_of()).validate(notification)
    del notification[gone]
    with pytest.raises(ValidationError):
        Draft202012Validator(schema_of()).validate(notification)


def test_a_users_own_holds_beside_ours_of_the_same_name() -> None:
    own = [JobType("report.creation", payload=TaskCreated), {"a.any": None}]
    check("report.creation.completed", {"size": 1}, own)
    check("report.creation.completed", {"truncated": True, "omitted": ["size"]}, own)
    check("a.any", {"x": [1]}, own)
    task = {"entityId": "e", "title": "t", "status": "open", "priority": "low"}
    check("task.creation.completed", task, own)
    with pytest.raises(ValidationError):
        check("report.creation.completed", task, own)


def test_the_members_are_those_of_a_notification() -> None:
    names = {to_camel(name) for name in Notification.model_fields}
    assert names | {"fold", "job"} == {*MEMBERS, "type", "data"}


class Uncallable(BaseModel):
    call: Callable[[], int]


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (int, "data must be a JSON object, and <class 'int'> is not"),
        (list[int], "data must be a JSON object"),
        (RootModel[list[int]], "data must be a JSON object"),
        (TaskCreated | int, "data must be a JSON object"),
        (Uncallable, "Cannot generate a JsonSchema"),
        (object(), "Unable to generate pydantic-core schema"),
        ("Gone", "Gone"),
        (3, "3"),
    ],
)
def test_a_payload_that_is_no_object_or_has_no_schema_is_named(
    payload: object, problem: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as raised:
        schema_of({"x.y": payload})
    assert str(raised.value).startswith("x.y: ")
    assert "\n" not in str(raised.value)


def test_a_choice_of_objects_is_an_object() -> None:
    check("x.y", {"size": 1}, {"x.y": TaskCreated | dict[str, str]})
    check("x.y", {"a": "b"}, {"x.y": TaskCreated | dict[str, str]})
