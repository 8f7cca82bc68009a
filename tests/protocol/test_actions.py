"""PROTOCOL.md, "Many rooms on one connection": actions and errors."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from synap_realtime.protocol.actions import (
    Action,
    ActionError,
    Subscribe,
    Unsubscribe,
    parse_room_action,
)
from synap_realtime.protocol.control import Ack, Authenticate, ControlFrame
from synap_realtime.protocol.cursor import format_positions, parse_positions
from synap_realtime.protocol.rooms import Room

ROOM = Room("user_1")


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ({"action": "subscribe", "room": "user_1"}, Subscribe(ROOM)),
        (
            {
                "action": "subscribe", "room": "user_1", "after": "e-1", "device": "d",
                "presence": True, "token": "t", "unknown": [1],
            },
            Subscribe(ROOM, "e-1", "d", True, "t"),
        ),
        ({"action": "subscribe", "room": "user_1", "after": None}, Subscribe(ROOM)),
        ({"action": "unsubscribe", "room": "user_1"}, Unsubscribe(ROOM)),
        ({"action": "ack", "room": "user_1", "cursor": "e-7"}, Ack("e-7", ROOM)),
        ({"action": "authenticate", "token": "t"}, Authenticate("t")),
        ({"action": "authenticate", "token": "t", "room": "user_1"}, Authenticate("t", ROOM)),
    ],
)  # fmt: skip
def test_parses_each_action(message: object, action: Action) -> None:
    assert parse_room_action(json.dumps(message)) == action


def test_shows_no_token() -> None:
    assert "secret" not in repr(Subscribe(ROOM, token="secret"))
    assert "secret" not in repr(Authenticate("secret", ROOM))


@given(st.text() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_answers_every_other_text_with_an_error(text: str) -> None:
    with pytest.raises(ActionError) as error:
        parse_room_action(text)
    assert error.value.code == "invalid_request"


def test_error_is_a_frame() -> None:
    error = ActionError(
        "rate_limited", "too many", action="subscribe", room=ROOM, retry_after_s=1.5
    )
    assert json.loads(error.to_frame().encoded()) == {
        "type": "synap.error",
        "data": {
            "code": "rate_limited", "details": "too many", "action": "subscribe",
            "room": "user_1", "retryAfterMs": 1500,
        },
    }  # fmt: skip


def test_frame_names_its_room_once() -> None:
    frame = ControlFrame("synap.presence", {"event": "state"})
    assert frame.in_room(ROOM).data == {"room": "user_1", "event": "state"}
    assert frame.in_room(ROOM) is frame.in_room(ROOM), "encoded once for all connections"
    assert "room" not in frame.data


def test_positions_are_read_as_they_were_written() -> None:
    positions = {Room("user_a=b+c"): "e-1", Room("request_x|y"): "f-22"}
    assert parse_positions(format_positions(positions)) == positions
    for text in ("", "user_1", "user_1/", "/e-1", "user_1/e-1,", "user_1/latest", "e-1"):
        assert parse_positions(text) is None
