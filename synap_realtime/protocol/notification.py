"""The notification, which is published to rooms. See PROTOCOL.md, "Notification"."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core
from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel

from ..errors import InvalidArgumentError

MAX_NOTIFICATION_BYTES = 256 * 1024
"""The largest notification, as UTF-8 JSON."""

MAX_BATCH_BYTES = 1024 * 1024
MAX_BATCH_NOTIFICATIONS = 1000
MAX_BATCH_FANOUT_BYTES = 16 * 1024 * 1024
"""The largest batch, with each notification counted once for each of its rooms."""

_RFC_3339 = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]([01]\d|2[0-3]):\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)

Status = Literal["pending", "success", "error"]
"""The state of the job. Progress and retries are ``pending``."""


RESERVED_PREFIX = "synap."
"""The prefix of types that only the server publishes."""


def not_reserved(value: str) -> str:
    if value.startswith(RESERVED_PREFIX):
        raise ValueError("the prefix 'synap.' is reserved")
    return value


def to_utc_timestamp(value: str) -> str:
    """Convert an RFC 3339 time to UTC with milliseconds and ``Z``.

    Raises:
        ValueError: it is not an RFC 3339 date and time with an offset.
    """
    try:
        if not _RFC_3339.fullmatch(value):
            raise ValueError("not the shape of RFC 3339, section 5.6")
        moment = datetime.fromisoformat(value.upper())
        if len(value) == 24 and value[10] == "T" and value[23] == "Z":  # it has that form already
            return value
        return format_timestamp(moment)
    except (ValueError, OverflowError):
        raise ValueError("expected an RFC 3339 time such as 2026-01-31T12:00:00.000Z") from None


def format_timestamp(moment: datetime) -> str:
    """Format an aware datetime as ``2026-01-31T12:00:00.000Z``."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def now_as_timestamp() -> str:
    """Return the current time as :func:`format_timestamp` does, cached for speed."""
    return _timestamp(time.time_ns() // 1_000_000)


@lru_cache(2)
def _timestamp(milliseconds: int) -> str:
    return f"{_second(milliseconds // 1000)}.{milliseconds % 1000:03d}Z"


@lru_cache(2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _is_unicode(value: str) -> str:
    """Reject lone surrogates, which JSON can escape but UTF-8 cannot encode."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("contains a lone surrogate, which is not Unicode text") from None
    return value


NAME = StringConstraints(min_length=1, max_length=128)
"""The constraints of a type and of an id."""

_Name = Annotated[str, NAME, AfterValidator(_is_unicode)]


class WireModel(BaseModel):
    """snake_case in Python, camelCase on the wire; both spellings are read."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class Notification(WireModel):
    """A notification for the subscribers of a room.

    Unknown members are kept and delivered (``notification.model_extra``).

    Attributes:
        type: 1 to 128 characters, dotted: ``note.creation.completed``.
        data: the payload, a JSON object. A notification is at most 256 KiB encoded.
        id: 1 to 128 characters. Publishing the same id again delivers nothing new. The SDK
            generates a UUIDv7 by default.
        request_id: the request that this notification answers.
        status: ``pending``, ``success`` or ``error``.
        timestamp: RFC 3339 in UTC with milliseconds; the server fills it in.
        room, cursor: added by the server on delivery.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    type: Annotated[_Name, AfterValidator(not_reserved)]
    data: dict[str, Any]
    id: _Name | None = None
    request_id: str | None = None
    status: Status | None = None
    timestamp: Annotated[str, AfterValidator(to_utc_timestamp)] | None = None
    room: str | None = None
    cursor: str | None = None

    @property
    def fold(self) -> Mapping[str, Any] | None:
        """The member ``fold``: what the notification is folded into. See PROTOCOL.md, "Folding"."""
        return self._object("fold")

    @property
    def job(self) -> Mapping[str, Any] | None:
        """The member ``job`` of a lifecycle notification. See PROTOCOL.md, "Jobs"."""
        return self._object("job")

    def _object(self, name: str) -> Mapping[str, Any] | None:
        value = (self.model_extra or {}).get(name)
        return value if isinstance(value, dict) else None

    def to_wire(self) -> dict[str, Any]:
        """Return the JSON object: camelCase, without the members that are not set."""
        known = {
            wire: value for name, wire in _WIRE_NAMES if (value := getattr(self, name)) is not None
        }
        return {**known, **(self.model_extra or {})}


_WIRE_NAMES = [(name, to_camel(name)) for name in Notification.model_fields]


def parse_notification(value: object) -> Notification:
    """Validate a decoded JSON value.

    Raises:
        InvalidArgumentError: names the first invalid member, by its wire name.
    """
    if not isinstance(value, Mapping):
        raise InvalidArgumentError("notification", "expected a JSON object")
    try:
        # By wire names only: another spelling is an unknown member, and unknown members are kept.
        return Notification.model_validate(value, by_alias=True, by_name=False)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "notification"
        raise InvalidArgumentError(field, first["msg"].removeprefix("Value error, ")) from None


def to_json_object(field: str, value: object) -> dict[str, Any]:
    """Convert a mapping or a model to plain JSON data. Dates, UUIDs and the like become strings.

    Raises:
        InvalidArgumentError: it is neither, or a value in it has no JSON form.
    """
    if not isinstance(value, Mapping | BaseModel):
        raise InvalidArgumentError(
            field, f"expected a mapping or a pydantic model, got {type(value).__name__}"
        )
    try:
        if isinstance(value, BaseModel):
            return value.model_dump(mode="json", by_alias=True, exclude_none=True)
        plain = pydantic_core.to_jsonable_python(
            dict(value), by_alias=True, inf_nan_mode="constants"
        )
    except (
        ValueError,
        TypeError,
        RecursionError,
    ) as error:  # PydanticSerializationError is a ValueError
        raise InvalidArgumentError(field, f"cannot be JSON: {error}") from error
    assert isinstance(plain, dict)  # noqa: S101 - a mapping in, a mapping out
    return plain


# ``json.dumps`` makes an encoder for each call.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def encode_json(field: str, value: object) -> bytes:
    """Encode strict UTF-8 JSON: no NaN, no lone surrogates.

    Raises:
        InvalidArgumentError: the value cannot be encoded.
    """
    try:
        return _ENCODER.encode(value).encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(field, "contains a lone surrogate, which is not text") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(field, f"cannot be JSON: {error}") from error
