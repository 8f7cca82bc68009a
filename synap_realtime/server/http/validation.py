"""Validate published notifications and encode them for the store.

A body is decoded and validated in one pass where that is possible. Otherwise it is decoded first
and then validated, which accepts a null member as absent and names the member that is invalid.

See PROTOCOL.md, "Notification".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Required

import pydantic
import uuid_utils
from pydantic import AfterValidator, ConfigDict, TypeAdapter
from pydantic_core import CoreConfig, SchemaValidator, to_json
from typing_extensions import TypedDict

from ...errors import InvalidArgumentError
from ...protocol.notification import (
    MAX_BATCH_NOTIFICATIONS,
    MAX_NOTIFICATION_BYTES,
    NAME,
    RESERVED_PREFIX,
    Status,
    encode_json,
    not_reserved,
    now_as_timestamp,
    parse_notification,
    to_utc_timestamp,
)
from ...protocol.rooms import Room
from ...tracing import NOOP_SPAN, Span, is_enabled
from ..messages import RequestError, bad_request, decode_json, parse_room_param, payload_too_large
from ..tracing import start_publish_span

_SERVER_FIELDS = ("room", "cursor")  # members that a publisher cannot set


class _RawWire(TypedDict, total=False):
    """A :class:`Notification` on the wire, whose type may be a reserved one."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    type: Required[Annotated[str, NAME]]
    data: Required[dict[str, Any]]
    id: Annotated[str, NAME]
    requestId: str
    status: Status
    timestamp: Annotated[str, AfterValidator(to_utc_timestamp)]
    room: str
    cursor: str


class _Wire(_RawWire, total=False):
    """A notification from a publisher, without reserved types."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    type: Required[Annotated[str, NAME, AfterValidator(not_reserved)]]


class _BatchWire(_RawWire):
    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    rooms: Required[list[str]]


class _Batch(TypedDict):
    notifications: Annotated[list[_BatchWire], pydantic.Field(min_length=1)]


def _reader(kind: type) -> Callable[[bytes], Any]:
    # Caching keys only: values such as ids are unique, and a cache of them would waste memory.
    schema = TypeAdapter(kind).core_schema
    return SchemaValidator(schema, CoreConfig(cache_strings="keys")).validate_json


_read_notification, _read_batch = _reader(_RawWire), _reader(_Batch)
_check_wire = TypeAdapter(_Wire).validator.validate_python


def validate_notification(content: bytes, traceparent: str | None) -> tuple[str, str, Span]:
    """Validate the body of a publish to one room, fill in its defaults, and start its span.

    Args:
        content: the body.
        traceparent: the ``traceparent`` of the request.

    Returns:
        The id, the JSON for the store, and the span.

    Raises:
        RequestError: 400 or 413, the notification is invalid or too large.
    """
    value, is_checked = decode_notification(content)
    return encode_notification(value, traceparent, is_checked=is_checked)


class BatchItem:
    """One notification of a batch.

    Attributes:
        rooms: where it goes, each room once; none if they are invalid.
        problem: why they are invalid.
    """

    __slots__ = ("_is_checked", "_value", "problem", "rooms")

    def __init__(self, value: Any, *, is_checked: bool) -> None:
        self.rooms: list[Room] = []
        self.problem: RequestError | None = None
        try:
            self.rooms = _parse_rooms(value)
        except RequestError as error:
            self.problem = error
        self._value = value
        self._is_checked = is_checked

    def validate(self, traceparent: str | None) -> tuple[str, str, Span]:
        """Validate it, as :func:`validate_notification` does. Its rooms must be valid."""
        del self._value["rooms"]
        return encode_notification(self._value, traceparent, is_checked=self._is_checked)


def parse_batch(content: bytes) -> list[BatchItem]:
    """Decode the body of a batch.

    Raises:
        RequestError: 400 or 413, the body is not a list of notifications, or the list is empty or
            too long.
    """
    values, is_checked = decode_batch(content)
    if len(values) > MAX_BATCH_NOTIFICATIONS:
        raise payload_too_large(f"a batch has at most {MAX_BATCH_NOTIFICATIONS} notifications")
    pairs = sum(len(value["rooms"]) for value in values if _has_room_list(value))
    if pairs > MAX_BATCH_NOTIFICATIONS:
        raise payload_too_large(
            f"a batch goes to at most {MAX_BATCH_NOTIFICATIONS} rooms, over all its notifications"
        )
    return [BatchItem(value, is_checked=is_checked) for value in values]


def decode_notification(content: bytes) -> tuple[object, bool]:
    """Decode the body of a publish to one room.

    Returns:
        The JSON value, and whether it was checked in the same pass. Its type may still be a
        reserved one.

    Raises:
        RequestError: 400, the body is not JSON.
    """
    wire = _read(_read_notification, content)
    return (decode_json(content), False) if wire is None else (wire, True)


def decode_batch(content: bytes) -> tuple[list[Any], bool]:
    """Decode the body of a batch.

    Returns:
        The JSON values, and whether all of them were checked, as for :func:`decode_notification`.
        Then their ``rooms`` are lists of strings, else anything.

    Raises:
        RequestError: 400, the body is not a list of notifications, or the list is empty.
    """
    batch = _read(_read_batch, content)
    if batch is not None:
        return batch["notifications"], True
    body = decode_json(content)
    values = body.get("notifications") if isinstance(body, dict) else None
    if not isinstance(values, list) or not values:
        raise bad_request("Invalid batch", "notifications: expected a list of at least one")
    return values, False


def encode_notification(
    value: Any, traceparent: str | None, *, is_checked: bool
) -> tuple[str, str, Span]:
    """Validate a decoded notification and encode it; see :func:`validate_notification`.

    Args:
        is_checked: see :func:`decode_notification`.
    """
    span = NOOP_SPAN
    try:
        if isinstance(value, dict):  # values of the publisher are replaced on delivery
            for name in _SERVER_FIELDS:
                value.pop(name, None)
        is_valid = is_checked and not value["type"].startswith(RESERVED_PREFIX)
        wire = value if is_valid else _to_wire(value)
        if "id" not in wire:
            wire["id"] = str(uuid_utils.uuid7())
        if "timestamp" not in wire:
            wire["timestamp"] = now_as_timestamp()
        if is_enabled():
            span = start_publish_span(wire, traceparent)
        content = to_json(wire)
        if b"Infinity" in content or b"NaN" in content:  # perhaps a number
            content = encode_json("notification", wire)
    except InvalidArgumentError as error:
        span.end("invalid")
        raise bad_request(
            "Invalid message format. Required: type, data", f"{error.field}: {error.problem}"
        ) from error
    if len(content) > MAX_NOTIFICATION_BYTES:
        span.end("too large")
        raise payload_too_large(f"a notification has at most {MAX_NOTIFICATION_BYTES} bytes")
    return wire["id"], content.decode(), span


def _read(read: Callable[[bytes], Any], content: bytes) -> dict[str, Any] | None:
    """Decode and validate in one pass. Return None if that takes two."""
    if b"NaN" in content or b"Infinity" in content:  # JSON has no such numbers; pydantic reads them
        return None
    try:
        wire: dict[str, Any] = read(content)
    except pydantic.ValidationError:
        return None
    return wire


def _to_wire(value: object) -> dict[str, Any]:
    """Validate a decoded JSON value, and return its wire form.

    The result is that of ``parse_notification(…).to_wire()``, in a third of the time.

    Raises:
        InvalidArgumentError: names the first member that is invalid.
    """
    try:
        wire: dict[str, Any] = _check_wire(value)
    except pydantic.ValidationError:  # or a member is null, which counts as absent
        return parse_notification(value).to_wire()
    return wire


def _has_room_list(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("rooms"), list) and bool(value["rooms"])


def _parse_rooms(value: object) -> list[Room]:
    """Return the rooms of one notification of a batch, each once."""
    if not isinstance(value, dict):
        raise bad_request("Invalid notification", "expected a JSON object")
    if not _has_room_list(value):
        raise bad_request("Invalid notification", "rooms: expected a list of at least one")
    names = value["rooms"]
    if len(names) > 1:
        names = dict.fromkeys(map(_room_name, names))
    return [parse_room_param(_room_name(name)) for name in names]


def _room_name(value: object) -> str:
    if not isinstance(value, str):
        raise bad_request("Invalid room id", "rooms: expected strings")
    return value
