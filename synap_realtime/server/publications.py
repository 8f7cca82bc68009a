"""Validate published notifications and encode them for the store.

See PROTOCOL.md, "Notification".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import uuid_utils
from pydantic_core import to_json

from ..errors import InvalidArgumentError
from ..protocol.notification import (
    MAX_NOTIFICATION_BYTES,
    RESERVED_PREFIX,
    encode_json,
    now_as_timestamp,
)
from ..protocol.rooms import Room
from ..tracing import NOOP_SPAN, Span, is_enabled
from .messages import RequestError, bad_request, parse_room_param, payload_too_large
from .stores.base import Publication
from .tracing import start_publish_span
from .wire import validate_wire

_SERVER_FIELDS = ("room", "cursor")  # members that a publisher cannot set


def validate_notification(
    value: Any, traceparent: str | None, *, is_valid: bool
) -> tuple[str, str, Span]:
    """Validate a notification, fill in its defaults, and start its span.

    Args:
        is_valid: see :func:`decode_notification`.

    Returns:
        The id, the JSON and the span.

    Raises:
        RequestError: the notification is invalid or too large.
    """
    try:
        if isinstance(value, dict):  # values of the publisher are replaced on delivery
            for name in _SERVER_FIELDS:
                value.pop(name, None)
        is_known = is_valid and not value["type"].startswith(RESERVED_PREFIX)
        wire = value if is_known else validate_wire(value)
        _fill_defaults(wire)
        span = start_publish_span(wire, traceparent) if is_enabled() else NOOP_SPAN
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


def _fill_defaults(wire: dict[str, Any]) -> None:
    if "id" not in wire:
        wire["id"] = str(uuid_utils.uuid7())
    if "timestamp" not in wire:
        wire["timestamp"] = now_as_timestamp()


def validate_item(
    item: dict[str, Any],
    rooms: list[Room] | RequestError,
    verdicts: Mapping[Room, RequestError | None],
    traceparent: str | None,
    spans: list[Span],
    *,
    is_valid: bool,
    published_at: float,
) -> list[Publication] | RequestError:
    """Return one notification of a batch for each of its rooms, or the error."""
    if isinstance(rooms, RequestError):
        return rooms
    for room in rooms:
        if (verdict := verdicts[room]) is not None:
            return verdict
    try:
        del item["rooms"]
        id, text, span = validate_notification(item, traceparent, is_valid=is_valid)
    except RequestError as error:
        return error
    if span is not NOOP_SPAN:
        spans.append(span)
    return [Publication(room, id, text, published_at) for room in rooms]


def has_room_list(item: object) -> bool:
    """Return whether a notification of a batch has a list of rooms."""
    return isinstance(item, dict) and isinstance(item.get("rooms"), list) and bool(item["rooms"])


def parse_item_rooms(item: object) -> list[Room] | RequestError:
    """Return the rooms of one notification of a batch, each once, or the error."""
    try:
        if not isinstance(item, dict):
            raise bad_request("Invalid notification", "expected a JSON object")
        if not has_room_list(item):
            raise bad_request("Invalid notification", "rooms: expected a list of at least one")
        names = item["rooms"]
        if len(names) > 1:
            names = dict.fromkeys(map(_room_name, names))
        return [parse_room_param(_room_name(name)) for name in names]
    except RequestError as error:
        return error


def _room_name(value: object) -> str:
    if not isinstance(value, str):
        raise bad_request("Invalid room id", "rooms: expected strings")
    return value
