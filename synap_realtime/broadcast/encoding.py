"""Encode notifications and requests. Pure; shared by all clients. See PROTOCOL.md, "HTTP"."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import uuid_utils
from pydantic import BaseModel

from ..errors import InvalidArgumentError
from ..protocol.notification import (
    MAX_BATCH_BYTES,
    MAX_BATCH_FANOUT_BYTES,
    MAX_BATCH_NOTIFICATIONS,
    MAX_NOTIFICATION_BYTES,
    Notification,
    encode_json,
    format_timestamp,
    parse_notification,
    to_json_object,
)
from ..protocol.rooms import Room, UserId, id_text, request_room, user_room
from ..tracing import TRACEPARENT, Span, current_traceparent, start_span

_EMPTY_BATCH = b'{"notifications":[]}'


class ApiRequest(NamedTuple):
    """One ``POST``: a path below the server's URL and a JSON body."""

    path: str
    body: bytes


def rooms_for(user_id: UserId | None, request_id: UserId | None) -> tuple[Room, ...]:
    """Return the user's room and the request's room, whichever is given."""
    rooms = []
    if user_id is not None:
        rooms.append(user_room(user_id))
    if request_id is not None:
        rooms.append(request_room(request_id))
    if not rooms:
        raise InvalidArgumentError("user_id", "give user_id, request_id or both")
    return tuple(rooms)


def normalize(
    message: Notification | Mapping[str, Any], request_id: UserId | None = None
) -> Notification:
    """Validate a message, and add an id and a timestamp."""
    if isinstance(message, Notification):
        wire = message.to_wire()
    elif isinstance(message, Mapping):
        wire = dict(message)
    else:
        raise InvalidArgumentError(
            "message", f"expected a Notification or a mapping, got {type(message).__name__}"
        )
    if (snake := wire.pop("request_id", None)) is not None:
        wire["requestId"] = snake
    if "data" in wire:
        wire["data"] = to_json_object("data", wire["data"])
    if wire.get("requestId") is None and request_id is not None:
        wire["requestId"] = id_text("request_id", request_id)
    if wire.get("id") is None:
        wire["id"] = str(uuid_utils.uuid7())
    if wire.get("timestamp") is None:
        wire["timestamp"] = format_timestamp(datetime.now(UTC))
    return parse_notification(wire)


def success_message(
    type: str, data: Mapping[str, Any] | BaseModel, id: str | None
) -> dict[str, Any]:
    """Return the message of ``broadcast_success``; :func:`normalize` checks it."""
    return {"id": id, "type": type, "data": data, "status": "success"}


def error_message(type: str, error: str, id: str | None) -> dict[str, Any]:
    """Return the message of ``broadcast_error``. Its ``data`` is as specified by the original
    report; :func:`normalize` checks the rest.
    """
    if not isinstance(error, str):
        raise InvalidArgumentError(
            "error", f"expected a text for the user, got {builtins.type(error).__name__}"
        )
    return {"id": id, "type": type, "data": {"error": error}, "status": "error"}


class EncodedNotification(NamedTuple):
    """A validated notification with its rooms, encoded for the wire."""

    rooms: tuple[Room, ...]
    id: str
    body: bytes

    @property
    def as_batch_item(self) -> bytes:
        """Return the notification as a member of a batch, including ``rooms``."""
        # No character of a room id needs an escape in JSON.
        return b'%b,"rooms":["%b"]}' % (self.body[:-1], '","'.join(self.rooms).encode())


class BatchBudget:
    """The size of one request, limited as in PROTOCOL.md, "HTTP", "Many"."""

    def __init__(self, most: int = MAX_BATCH_NOTIFICATIONS) -> None:
        """Create an empty budget for at most this number of notifications."""
        self._most = most
        self._count = 0
        self._rooms = 0
        self._bytes = len(_EMPTY_BATCH)
        self._spread_bytes = 0

    def add(self, encoded: EncodedNotification) -> bool:
        """Add a notification if it fits. The first always fits, because it could not be sent
        otherwise.
        """
        rooms = self._rooms + len(encoded.rooms)
        size = len(encoded.body) + sum(len(room) + 3 for room in encoded.rooms) + 12
        spread = self._spread_bytes + size * len(encoded.rooms)
        if self._count and (
            self._count >= self._most
            or rooms > MAX_BATCH_NOTIFICATIONS
            or self._bytes + size > MAX_BATCH_BYTES
            or spread > MAX_BATCH_FANOUT_BYTES
        ):
            return False
        self._count += 1
        self._rooms = rooms
        self._bytes += size
        self._spread_bytes = spread
        return True


def encode(rooms: tuple[Room, ...], notification: Notification) -> EncodedNotification:
    """Encode a notification."""
    wire = notification.to_wire()
    if TRACEPARENT not in wire and (traceparent := current_traceparent()) is not None:
        wire[TRACEPARENT] = traceparent
    body = encode_json("data", wire)
    if len(body) > MAX_NOTIFICATION_BYTES:
        raise InvalidArgumentError(
            "data",
            f"the notification has {len(body)} bytes; at most {MAX_NOTIFICATION_BYTES} are "
            "allowed. Send a link to large data instead",
        )
    return EncodedNotification(rooms, str(notification.id), body)


def start_broadcast_span(notification: Notification) -> Span:
    """Start the span of one broadcast, from the call to its result."""
    return start_span(
        "broadcast",
        "producer",
        messaging__system="synap_realtime",
        messaging__operation__name="send",
        messaging__message__id=str(notification.id),
    )


def batch_request(batch: Sequence[EncodedNotification]) -> ApiRequest:
    """Build one request for all notifications."""
    notifications = b",".join([encoded.as_batch_item for encoded in batch])
    return ApiRequest("/broadcast", b'{"notifications":[%b]}' % notifications)
