"""Validate room ids. See PROTOCOL.md, "Terminology"."""

from __future__ import annotations

import re
from typing import NewType
from uuid import UUID

from ..errors import InvalidArgumentError
from ..redaction import redacted

Room = NewType("Room", str)
"""A validated room id: ``user_42``, ``request_7f3a``, ``workspace_7``."""

_CHARACTER = r"[A-Za-z0-9._~:@|=+\-]"
KEY_PATTERN = rf"{_CHARACTER}{{1,200}}"
ROOM_PATTERN = rf"(?!synap_)[a-z][a-z0-9-]{{0,31}}_{KEY_PATTERN}"
_ROOM = re.compile(ROOM_PATTERN)
_PATTERN = re.compile(rf"{ROOM_PATTERN}|{_CHARACTER}{{0,200}}\*")
_ALLOWED = "1 to 200 of A-Z a-z 0-9 . _ ~ : @ | = + -"


def parse_room(text: str) -> Room:
    """Validate a room id: a kind, ``_`` and a key.

    Raises:
        InvalidArgumentError: it is not one.
    """
    _require_text("room", text)
    if not _ROOM.fullmatch(text):
        kind, _, key = text.partition("_")
        lower = kind.lower()
        if lower == "synap":
            raise InvalidArgumentError(
                "room", f"the kind 'synap' is reserved; got {_abbreviate(text)}"
            )
        if _ROOM.fullmatch(f"{lower}_{key}"):
            # The corrected kind is not shown: it would be a part of an API key given by mistake.
            raise InvalidArgumentError(
                "room", f"expected a kind in lowercase before '_'; got {_abbreviate(text)}"
            )
        raise InvalidArgumentError(
            "room",
            f"expected a kind, '_' and a key of {_ALLOWED}, such as 'user_42'; got "
            f"{_abbreviate(text)}",
        )
    return Room(text)


def parse_pattern(text: str) -> str:
    """Validate a pattern of rooms: a room id, or the beginning of one and a ``*``.

    Raises:
        InvalidArgumentError: it is neither.
    """
    _require_text("rooms", text)
    if not _PATTERN.fullmatch(text):
        raise InvalidArgumentError(
            "rooms",
            f"expected a room id or its beginning and '*', such as 'request_*'; got "
            f"{_abbreviate(text)}",
        )
    return text


def matches(pattern: str, room: Room) -> bool:
    """Return whether a room matches a pattern. Only a ``*`` at its end is special."""
    if pattern.endswith("*"):
        return room.startswith(pattern[:-1])
    return room == pattern


UserId = str | int | UUID
"""The types of ids in applications. A primary key is often a number or a UUID."""


def id_text(field: str, value: object) -> str:
    """Convert an id to text: a string is unchanged, an ``int`` or a UUID is passed to ``str()``.

    Raises:
        InvalidArgumentError: it has another type, such as ``bool``.
    """
    if isinstance(value, str):
        return value
    # Database drivers and libraries define further UUID classes.
    is_uuid = isinstance(value, UUID) or type(value).__name__ == "UUID"
    if is_uuid or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise InvalidArgumentError(
        field, f"expected a string, an int or a UUID, got {type(value).__name__}"
    )


def user_room(user_id: UserId) -> Room:
    """Return the room of a user."""
    return _room_of("user", "user_id", user_id)


def request_room(request_id: UserId) -> Room:
    """Return the room of a request, whose log a late subscriber replays from the start."""
    return _room_of("request", "request_id", request_id)


def room_owner(room: Room) -> str | None:
    """Return the id of the user whose room it is; None for a room of another kind."""
    kind, _, key = room.partition("_")
    return key if kind == "user" else None


def key_of(room: Room) -> str:
    """Return the key, which follows the kind."""
    return room.partition("_")[2]


def is_request_room(room: Room) -> bool:
    return room.startswith("request_")


def is_control_room(room: Room) -> bool:
    """Return whether only the server publishes to the room.

    No client can name such a room: see :func:`parse_room`.
    """
    return room.startswith("synap_")


def _room_of(kind: str, field: str, value: object) -> Room:
    key = id_text(field, value)
    if not re.fullmatch(KEY_PATTERN, key):
        raise InvalidArgumentError(field, f"expected {_ALLOWED}; got {_abbreviate(key)}")
    return Room(f"{kind}_{key}")


def _require_text(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidArgumentError(field, f"expected a string, got {type(value).__name__}")


def _abbreviate(value: object) -> str:
    """Return a value for an error message: short, and without credentials."""
    text = redacted(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
