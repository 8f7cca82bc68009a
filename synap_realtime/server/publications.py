"""From what a publisher sent to what a store keeps. See PROTOCOL.md, "Notification"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import uuid_utils
from pydantic_core import to_json

from ..errors import InvalidArgumentError
from ..protocol.notification import (
    MAX_NOTIFICATION_BYTES,
    RESERVED,
    encode_json,
    now_as_timestamp,
)
from ..protocol.rooms import Room
from ..tracing import NOTHING, Span, is_on
from .http import RequestError, malformed, room_of, too_large
from .spans import begin_publish
from .stores.base import Publication
from .wire import check_wire

_OURS = ("room", "cursor")  # members that mean nothing in a notification that is sent


def publication_of(room: Room, wire: dict[str, Any], timestamp: str) -> Publication | None:
    """A notification for a room.

    Args:
        wire: what :func:`read_wire` has read.
        timestamp: now.

    Returns:
        None: something is wrong with it: :func:`check` is slower, and says what.
    """
    if "room" in wire or "cursor" in wire or wire["type"].startswith(RESERVED):
        return None
    _complete(wire, timestamp)
    content = to_json(wire)
    # 1e999 is right JSON, and none of ours.
    if len(content) > MAX_NOTIFICATION_BYTES or b"Infinity" in content or b"NaN" in content:
        return None
    return Publication(room, wire["id"], content.decode())


def check(value: object, traceparent: str | None) -> tuple[str, str, Span]:
    """The id and the JSON of a notification, with what the server adds; its span has begun.

    Raises:
        RequestError: it is none, or too large.
    """
    try:
        if isinstance(value, dict):  # what a sender wrote there is replaced, whatever it is
            for name in _OURS:
                value.pop(name, None)
        wire = check_wire(value)
        _complete(wire, now_as_timestamp())
        span = begin_publish(wire, traceparent) if is_on() else NOTHING
        content = to_json(wire)
        if b"Infinity" in content or b"NaN" in content:  # perhaps a number
            content = encode_json("notification", wire)
    except InvalidArgumentError as error:
        raise malformed(
            "Invalid message format. Required: type, data", f"{error.field}: {error.problem}"
        ) from error
    if len(content) > MAX_NOTIFICATION_BYTES:
        raise too_large(f"a notification has at most {MAX_NOTIFICATION_BYTES} bytes")
    return wire["id"], content.decode(), span


def _complete(wire: dict[str, Any], timestamp: str) -> None:
    if "id" not in wire:
        wire["id"] = str(uuid_utils.uuid7())
    if "timestamp" not in wire:
        wire["timestamp"] = timestamp


def check_item(
    item: dict[str, Any],
    rooms: list[Room] | RequestError,
    verdicts: Mapping[Room, RequestError | None],
    traceparent: str | None,
    spans: list[Span],
) -> list[Publication] | RequestError:
    """One notification of a batch, once for each of its rooms, or what is wrong with it."""
    if isinstance(rooms, RequestError):
        return rooms
    for room in rooms:
        if (verdict := verdicts[room]) is not None:
            return verdict
    try:
        del item["rooms"]
        id, text, span = check(item, traceparent)
    except RequestError as error:
        return error
    if span is not NOTHING:
        spans.append(span)
    return [Publication(room, id, text) for room in rooms]


def has_rooms(item: object) -> bool:
    """Whether a notification of a batch names where it goes."""
    return isinstance(item, dict) and isinstance(item.get("rooms"), list) and bool(item["rooms"])


def rooms_of(item: object) -> list[Room] | RequestError:
    """The rooms of one notification of a batch, each once, or what is wrong with them."""
    try:
        if not isinstance(item, dict):
            raise malformed("Invalid notification", "expected a JSON object")
        if not has_rooms(item):
            raise malformed("Invalid notification", "rooms: expected a list of at least one")
        return [room_of(name) for name in dict.fromkeys(map(_room_name, item["rooms"]))]
    except RequestError as error:
        return error


def _room_name(value: object) -> str:
    if not isinstance(value, str):
        raise malformed("Invalid room id", "rooms: expected strings")
    return value
