"""PROTOCOL.md, "Notification"."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from synap_realtime import InvalidArgumentError, NoteCreated, Notification
from synap_realtime.protocol.notification import (
    encode_json,
    parse_notification,
    to_json_object,
    to_utc_timestamp,
)


def test_encodes_camel_case_and_omits_unset_members() -> None:
    notification = Notification(type="a.b", data={"x": None}, request_id="r1", status="success")
    assert notification.to_wire() == {
        "type": "a.b",
        "data": {"x": None},
        "requestId": "r1",
        "status": "success",
    }


def test_unknown_members_are_kept() -> None:
    wire = {"type": "a.b", "data": {}, "priority": 3, "nothing": None}
    assert parse_notification(wire).to_wire() == wire


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("type", None), ("type", ""), ("type", "x" * 129), ("type", 1), ("type", "synap.closing"),
        ("type", "\ud800"), ("data", None), ("data", []), ("data", "x"), ("id", ""), ("id", 7),
        ("id", "x" * 129), ("status", "done"), ("status", 1), ("requestId", 1),
        ("timestamp", "yesterday"), ("timestamp", "2026-01-31"), ("timestamp", 5),
        ("timestamp", "2026-01-31T12:00:00"),
    ],
)  # fmt: skip
def test_invalid_member_is_named(field: str, value: object) -> None:
    wire: dict[str, Any] = {"type": "a.b", "data": {}, field: value}
    with pytest.raises(InvalidArgumentError) as caught:
        parse_notification(wire)
    assert caught.value.field == field


def test_missing_member_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match=r"^data: Field required"):
        parse_notification({"type": "a.b"})


@pytest.mark.parametrize(
    "given",
    ["2026-01-31T12:00:00Z", "2026-01-31T14:00:00+02:00", "2026-01-31T12:00:00.000000+00:00"],
)
def test_a_timestamp_becomes_utc_with_milliseconds(given: str) -> None:
    assert to_utc_timestamp(given) == "2026-01-31T12:00:00.000Z"


def test_data_may_hold_any_json_serializable_value() -> None:
    moment = datetime(2026, 1, 31, tzinfo=UTC)
    data = to_json_object("data", {"when": moment, "how_long": timedelta(seconds=2), 1: {"a"}})
    assert data == {"when": "2026-01-31T00:00:00Z", "how_long": "PT2S", "1": ["a"]}
    payload = NoteCreated(entity_id="e", title="t", file_url="u", file_path="p")
    assert to_json_object("data", payload)["entityId"] == "e"


@pytest.mark.parametrize("data", [None, [1], "x", {"f": object()}])
def test_data_without_a_json_form_is_refused(data: object) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        to_json_object("data", data)
    assert caught.value.field == "data"


@pytest.mark.parametrize("value", [math.nan, math.inf, "\udfff", {"a": [math.nan]}])
def test_the_encoding_is_strict(value: object) -> None:
    with pytest.raises(InvalidArgumentError):
        encode_json("data", value)
