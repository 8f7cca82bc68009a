"""Room ids: who may hear a notification. See PROTOCOL.md, "Terminology"."""

from __future__ import annotations

import re
from typing import NewType
from uuid import UUID

from ..errors import InvalidArgumentError
from ..redaction import redacted

Room = NewType("Room", str)
"""A checked room id: ``user_42``, ``request_7f3a``, ``workspace_7``."""

_CHARACTER = r"[A-Za-z0-9._~:@|=+\-]"
_KEY = rf"{_CHARACTER}{{1,200}}"
ROOM_PATTERN = rf"(?!synap_)[a-z][a-z0-9-]{{0,31}}_{_KEY}"
_ROOM = re.compile(ROOM_PATTERN)
_PATTERN = re.compile(rf"{ROOM_PATTERN}|{_CHARACTER}{{0,200}}\*")
_ALLOWED = "1 to 200 of A-Z a-z 0-9 . _ ~ : @ | = + -"


def parse_room(text: str) -> Room:
    """Check a room id.

    Raises:
        InvalidArgumentError: it is not a kind, ``_`` and a key.
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
            # The kind is not repeated: of a key that was given as a room, it would be a part.
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
    """Check what a token opens: a room, or the beginning of some and a ``*``.

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
    """Whether a room is one of those that a pattern means; only a ``*`` at its end is special."""
    if pattern.endswith("*"):
        return room.startswith(pattern[:-1])
    return room == pattern


UserId = str | int | UUID
"""An id as applications have it: a primary key is often a number or a UUID."""


def id_text(field: str, value: object) -> str:
    """An id as text: a string as it is, an ``int`` or a UUID by ``str()``.

    Raises:
        InvalidArgumentError: it is of another type. ``bool`` is one: ``True`` is nobody's id.
    """
    if isinstance(value, str):
        return value
    # Drivers and libraries have UUID classes of their own.
    is_uuid = isinstance(value, UUID) or type(value).__name__ == "UUID"
    if is_uuid or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise InvalidArgumentError(
        field, f"expected a string, an int or a UUID, got {type(value).__name__}"
    )


def user_room(user_id: UserId) -> Room:
    """The room of everything that concerns one user."""
    return _room_of("user", "user_id", user_id)


def request_room(request_id: UserId) -> Room:
    """The room of one request: it replays from its start to whoever comes late."""
    return _room_of("request", "request_id", request_id)


def room_owner(room: Room) -> str | None:
    """The id of the user whose room it is; None for a room of another kind."""
    kind, _, key = room.partition("_")
    return key if kind == "user" else None


def key_of(room: Room) -> str:
    """What follows the kind."""
    return room.partition("_")[2]


def is_request_room(room: Room) -> bool:
    return room.startswith("request_")


def is_control_room(room: Room) -> bool:
    """Whether the server itself publishes to the room. No client can name one: see
    :func:`parse_room`."""
    return room.startswith("synap_")


def _room_of(kind: str, field: str, value: object) -> Room:
    key = id_text(field, value)
    if not re.fullmatch(_KEY, key):
        raise InvalidArgumentError(field, f"expected {_ALLOWED}; got {_abbreviate(key)}")
    return Room(f"{kind}_{key}")


def _require_text(field: str, value: object) -> None:
    if not isinstance(value, str):
        raise InvalidArgumentError(field, f"expected a string, got {type(value).__name__}")


def _abbreviate(value: object) -> str:
    """A value short enough for an error message, without a token that was given in its place."""
    text = redacted(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
