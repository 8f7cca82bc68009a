"""The schemas of the payloads are exact for readers in other languages."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from synap_realtime import JobProgress, JobStarted, ResponseGenerated, TaskCreated
from synap_realtime.protocol.notification import to_json_object


def test_none_is_omitted_and_the_schema_has_no_null() -> None:
    task = TaskCreated(entity_id="e", title="t", status="open", priority="low")
    wire = to_json_object("data", task)
    schema = TaskCreated.model_json_schema(mode="serialization")
    assert set(schema["required"]) == set(wire) == {"entityId", "title", "status", "priority"}
    assert schema["properties"]["projectId"] == {"title": "Projectid", "type": "string"}
    assert TaskCreated.model_json_schema()["required"] == schema["required"]


def test_members_with_another_default_are_always_present() -> None:
    schema = ResponseGenerated.model_json_schema(mode="serialization")
    assert "fallback" in schema["required"]


@pytest.mark.parametrize("wrong", [{"progress": 1.1}, {"attempt": 0}, {"stallAfterS": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    good = {"runId": "r", "progress": 0.5, "stallAfterS": 60, "attempt": 1, "maxAttempts": 4}
    assert to_json_object("data", JobProgress.model_validate(good)) == good
    with pytest.raises(ValidationError):
        JobProgress.model_validate(good | wrong)


def test_the_names_are_camel_case() -> None:
    assert to_json_object("data", JobStarted(run_id="r", attempt=1, stall_after_s=60)) == {
        "runId": "r",
        "attempt": 1,
        "stallAfterS": 60.0,
    }
