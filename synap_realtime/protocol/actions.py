"""The actions of a client whose connection has many rooms, and the errors that answer them.

See PROTOCOL.md, "Many rooms on one connection".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InvalidArgumentError
from .control import ERROR, Ack, Authenticate, ControlFrame
from .cursor import is_cursor
from .rooms import Room, parse_room


@dataclass(frozen=True, slots=True)
class Subscribe:
    """``{"action":"subscribe","room":…}``: one more room on the connection.

    Attributes:
        after: a cursor, ``earliest`` or ``latest``; None: the default of the room.
        device: the user's device; None: the client names none.
        wants_presence: the client wants presence frames of the room.
        token: of the room; None: that of the connection.
    """

    room: Room
    after: str | None = None
    device: str | None = None
    wants_presence: bool = False
    token: str | None = None

    def __repr__(self) -> str:
        return f"Subscribe({self.room!r}, …)"


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """``{"action":"unsubscribe","room":…}``: the end of a room's subscription."""

    room: Room


Action = Subscribe | Unsubscribe | Ack | Authenticate

ErrorCode = Literal[
    "invalid_request", "too_many_rooms", "already_subscribed", "not_subscribed", "unauthorized",
    "forbidden", "rate_limited", "unavailable",
]  # fmt: skip
"""The codes of ``synap.error``. See PROTOCOL.md, "Many rooms on one connection"."""


class ActionError(Exception):
    """An action of a client failed. Its connection and its other rooms are not affected.

    Attributes:
        code: the kind of error, for programs.
        details: the cause; names the member that is invalid. It contains no secret.
        action: the name of the action; None if the message has none that is known.
        room: the room; None if the message has no valid one.
        retry_after_s: when another attempt may succeed, in seconds; None if none can.
    """

    def __init__(
        self,
        code: ErrorCode,
        details: str,
        *,
        action: str | None = None,
        room: Room | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(details)
        self.code = code
        self.details = details
        self.action = action
        self.room = room
        self.retry_after_s = retry_after_s

    def to_frame(self) -> ControlFrame:
        data: dict[str, Any] = {"code": self.code, "details": self.details}
        if self.action is not None:
            data["action"] = self.action
        if self.room is not None:
            data["room"] = self.room
        if self.retry_after_s is not None:
            data["retryAfterMs"] = round(self.retry_after_s * 1000)
        return ControlFrame(ERROR, data)


def parse_room_action(text: str) -> Action:
    """Parse a message on a connection with many rooms. Unknown members are ignored.

    Raises:
        ActionError: it is no action, or a member of it is missing or invalid.
    """
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise ActionError("invalid_request", "expected a JSON object with an action, or ping")
    name = message.get("action")
    if not isinstance(name, str) or (parse := _ACTIONS.get(name)) is None:
        raise ActionError("invalid_request", f"action: expected one of {', '.join(_ACTIONS)}")
    members = _Members(name, message)
    return parse(members)


class _Members:
    """The members of an action. An error names the one that is wrong, and repeats no value."""

    def __init__(self, action: str, values: Mapping[str, object]) -> None:
        self._action = action
        self._values = values
        self._room: Room | None = None

    def room(self, *, is_optional: bool = False) -> Room | None:
        """Return the room, which is part of all later errors."""
        if is_optional and self._values.get("room") is None:
            return None
        text = self.text("room", "a room id")
        try:
            self._room = parse_room(text)
        except InvalidArgumentError as error:
            raise self._error("room", error.problem) from None
        return self._room

    def required_room(self) -> Room:
        room = self.room()
        assert room is not None  # noqa: S101 - it is not optional
        return room

    def text(self, name: str, expected: str) -> str:
        value = self._values.get(name)
        if not isinstance(value, str) or not value:
            raise self._error(name, f"expected {expected}")
        return value

    def optional_text(self, name: str, expected: str) -> str | None:
        return None if self._values.get(name) is None else self.text(name, expected)

    def position(self, name: str, *words: str) -> str:
        expected = " or ".join(("a cursor", *words))
        text = self.text(name, expected)
        if text not in words and not is_cursor(text):
            raise self._error(name, f"expected {expected}")
        return text

    def flag(self, name: str) -> bool:
        value = self._values.get(name, False)
        if not isinstance(value, bool):
            raise self._error(name, "expected true or false")
        return value

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def _error(self, name: str, problem: str) -> ActionError:
        return ActionError(
            "invalid_request", f"{name}: {problem}", action=self._action, room=self._room
        )


def _parse_subscribe(members: _Members) -> Subscribe:
    return Subscribe(
        members.required_room(),
        members.position("after", "earliest", "latest") if members.has("after") else None,
        members.optional_text("device", "text"),
        members.flag("presence"),
        members.optional_text("token", "a token"),
    )


def _parse_unsubscribe(members: _Members) -> Unsubscribe:
    return Unsubscribe(members.required_room())


def _parse_ack(members: _Members) -> Ack:
    room = members.required_room()
    return Ack(members.position("cursor"), room)


def _parse_authenticate(members: _Members) -> Authenticate:
    room = members.room(is_optional=True)
    return Authenticate(members.text("token", "a token"), room)


_ACTIONS: dict[str, Callable[[_Members], Action]] = {
    "subscribe": _parse_subscribe,
    "unsubscribe": _parse_unsubscribe,
    "ack": _parse_ack,
    "authenticate": _parse_authenticate,
}
