"""PROTOCOL.md, "Terminology": room ids."""

from __future__ import annotations

import pytest

from synap_realtime import InvalidArgumentError
from synap_realtime.protocol.rooms import (
    is_request_room,
    parse_room,
    request_room,
    user_room,
)


@pytest.mark.parametrize(
    "room",
    ["user_42", "request_7f-3a", "workspace_7", "user_auth0|5f", "user_a@b.c", "user_" + "x" * 200],
)
def test_a_room_is_a_kind_and_a_key(room: str) -> None:
    assert parse_room(room) == room


@pytest.mark.parametrize(
    "room",
    ["", "user", "user_", "_42", "User_42", "user_a/b", "user_a b", "user_\0", "user_é",
     "user_42\n", "user_" + "x" * 201, "x" * 10_000, "a" * 33 + "_1"],
)  # fmt: skip
def test_other_values_are_refused_with_a_short_message(room: str) -> None:
    with pytest.raises(InvalidArgumentError, match="expected a kind") as caught:
        parse_room(room)
    assert caught.value.field == "room"
    assert len(str(caught.value)) < 300


def test_users_and_requests_have_their_rooms() -> None:
    assert user_room("42") == "user_42"
    assert request_room("r1") == "request_r1"
    assert is_request_room(request_room("r1"))
    assert not is_request_room(user_room("r1"))


@pytest.mark.parametrize("user_id", ["", "a/b", True, 4.2, None, b"x"])
def test_invalid_user_id_is_named(user_id: object) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^user_id: expected") as caught:
        user_room(user_id)  # type: ignore[arg-type]
    assert caught.value.field == "user_id"


def test_uppercase_kind_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="a kind in lowercase before '_'; got 'User_"):
        parse_room("User_42")
