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
from .messages import RequestError, bad_request, payload_too_large, room_of
from .spans import begin_publish
from .stores.base import Publication
from .wire import check_wire

_OURS = ("room", "cursor")  # members that mean nothing in a notification that is sent


def check(value: Any, traceparent: str | None, *, is_valid: bool) -> tuple[str, str, Span]:
    """The id and the JSON of a notification, with what the server adds; its span has begun.

    Args:
        is_valid: see :func:`decode_notification`.

    Raises:
        RequestError: it is none, or too large.
    """
    try:
        if isinstance(value, dict):  # what a sender wrote there is replaced, whatever it is
            for name in _OURS:
                value.pop(name, None)
        is_known = is_valid and not value["type"].startswith(RESERVED)
        wire = value if is_known else check_wire(value)
        _complete(wire)
        span = begin_publish(wire, traceparent) if is_on() else NOTHING
        content = to_json(wire)
        if b"Infinity" in content or b"NaN" in content:  # perhaps a number
            content = encode_json("notification", wire)
    except InvalidArgumentError as error:
        raise bad_request(
            "Invalid message format. Required: type, data", f"{error.field}: {error.problem}"
        ) from error
    if len(content) > MAX_NOTIFICATION_BYTES:
        raise payload_too_large(f"a notification has at most {MAX_NOTIFICATION_BYTES} bytes")
    return wire["id"], content.decode(), span


def _complete(wire: dict[str, Any]) -> None:
    if "id" not in wire:
        wire["id"] = str(uuid_utils.uuid7())
    if "timestamp" not in wire:
        wire["timestamp"] = now_as_timestamp()


def check_item(
    item: dict[str, Any],
    rooms: list[Room] | RequestError,
    verdicts: Mapping[Room, RequestError | None],
    traceparent: str | None,
    spans: list[Span],
    *,
    is_valid: bool,
) -> list[Publication] | RequestError:
    """One notification of a batch, once for each of its rooms, or what is wrong with it."""
    if isinstance(rooms, RequestError):
        return rooms
    for room in rooms:
        if (verdict := verdicts[room]) is not None:
            return verdict
    try:
        del item["rooms"]
        id, text, span = check(item, traceparent, is_valid=is_valid)
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
            raise bad_request("Invalid notification", "expected a JSON object")
        if not has_rooms(item):
            raise bad_request("Invalid notification", "rooms: expected a list of at least one")
        names = item["rooms"]
        if len(names) > 1:
            names = dict.fromkeys(map(_room_name, names))
        return [room_of(_room_name(name)) for name in names]
    except RequestError as error:
        return error


def _room_name(value: object) -> str:
    if not isinstance(value, str):
        raise bad_request("Invalid room id", "rooms: expected strings")
    return value
