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
    """The same, without reserved types."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]

    type: Required[Annotated[str, NAME, AfterValidator(not_reserved)]]


_check_wire = TypeAdapter(_Wire).validator.validate_python


def validate_wire(value: object) -> dict[str, Any]:
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


def decode_notification(content: bytes) -> tuple[object, bool]:
    """Decode the body of a publish to one room.

    Returns:
        The JSON value, and whether it is known to be a notification: decoded and validated in one
        pass. Its type may still be a reserved one. If it is not known, :func:`validate_wire`
        reports the error, or accepts it (a member that is null counts as absent).

    Raises:
        RequestError: 400, the body is not JSON.
    """
    wire = _validated(_read_notification, content)
    return (decode_json(content), False) if wire is None else (wire, True)


def decode_batch(content: bytes) -> tuple[list[Any], bool]:
    """Decode the body of a batch.

    Returns:
        The JSON values, and whether all of them are known to be notifications, as for
        :func:`decode_notification`. Then their ``rooms`` are lists of strings, else anything.

    Raises:
        RequestError: 400, the body is not a list of notifications, or the list is empty.
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
