"""Notifications as they travel, checked as fast as can be. See PROTOCOL.md, "Notification"."""

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


def check_wire(value: object) -> dict[str, Any]:
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


_read_wire, _read_batch = _reader(_RawWire), _reader(_Batch)


def read_wire(content: bytes) -> dict[str, Any] | None:
    """:func:`check_wire` of JSON, in one step.

    Returns:
        None: it is not right, or a member is null. Not looked at: whether its type is reserved, and
        whether a number is one of JSON's (``NaN``).
    """
    try:
        wire: dict[str, Any] = _read_wire(content)
    except pydantic.ValidationError:
        return None
    return wire


def read_wires(content: bytes) -> list[dict[str, Any]] | None:
    """The same of a batch; each has its ``rooms``, which are any strings."""
    try:
        wires: list[dict[str, Any]] = _read_batch(content)["notifications"]
    except pydantic.ValidationError:
        return None
    return wires
