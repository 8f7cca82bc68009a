"""Decode and validate published notifications. See PROTOCOL.md, "Notification"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Required

import pydantic
from pydantic import AfterValidator, ConfigDict, TypeAdapter
from pydantic_core import CoreConfig, SchemaValidator
from typing_extensions import TypedDict

from ..protocol.notification import (
    NAME,
    Status,
    not_reserved,
    parse_notification,
    to_utc_timestamp,
)
from .messages import bad_request, decode_json


class _RawWire(TypedDict, total=False):
    """What :class:`Notification` holds, as it travels; its type may be a reserved one."""

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
    """The same, checked."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    type: Required[Annotated[str, NAME, AfterValidator(not_reserved)]]


_check_wire = TypeAdapter(_Wire).validator.validate_python


def validate_wire(value: object) -> dict[str, Any]:
    """Check a decoded JSON value, and write it as it travels: ``parse_notification(…).to_wire()``
    in a third of the time.

    Raises:
        InvalidArgumentError: names the first member that is wrong.
    """
    try:
        wire: dict[str, Any] = _check_wire(value)
    except pydantic.ValidationError:  # or a member is null, which is as if it were not there
        return parse_notification(value).to_wire()
    return wire


class _BatchWire(_RawWire):
    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    rooms: Required[list[str]]


class _Batch(TypedDict):
    notifications: Annotated[list[_BatchWire], pydantic.Field(min_length=1)]


def _reader(kind: type) -> Callable[[bytes], Any]:
    # Ids come once: a table of the strings that were read would only take memory.
    schema = TypeAdapter(kind).core_schema
    return SchemaValidator(schema, CoreConfig(cache_strings="keys")).validate_json


_read_notification, _read_batch = _reader(_RawWire), _reader(_Batch)


def decode_notification(content: bytes) -> tuple[object, bool]:
    """Decode the body of a publish to one room.

    Returns:
        The JSON value, and whether it is known to be a notification: decoded and validated in one
        pass. Its type may still be a reserved one. If it is not known, :func:`validate_wire` tells
        what is wrong, or accepts it after all (a member that is null counts as absent).

    Raises:
        RequestError: 400, it is not JSON.
    """
    wire = _validated(_read_notification, content)
    return (decode_json(content), False) if wire is None else (wire, True)


def decode_batch(content: bytes) -> tuple[list[Any], bool]:
    """Decode the body of a batch: the same for each of its notifications. Their ``rooms`` are lists
    of strings if they are known to be notifications, else anything.

    Raises:
        RequestError: 400, it is not a list of notifications, or empty.
    """
    batch = _validated(_read_batch, content)
    if batch is not None:
        return batch["notifications"], True
    body = decode_json(content)
    items = body.get("notifications") if isinstance(body, dict) else None
    if not isinstance(items, list) or not items:
        raise bad_request("Invalid batch", "notifications: expected a list of at least one")
    return items, False


def _validated(read: Callable[[bytes], Any], content: bytes) -> dict[str, Any] | None:
    if b"NaN" in content or b"Infinity" in content:  # JSON has no such numbers; pydantic reads them
        return None
    try:
        wire: dict[str, Any] = read(content)
    except pydantic.ValidationError:
        return None
    return wire
