"""Make any job result fit into a notification, and mark what was omitted."""

from __future__ import annotations

import dataclasses
import functools
import logging
import numbers
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Set
from typing import Any

import pydantic_core
from pydantic import BaseModel, RootModel

from ..protocol.notification import MAX_NOTIFICATION_BYTES, encode_json
from .strict import report_result
from .text import as_text

logger = logging.getLogger(__name__)

MAX_DATA_BYTES = MAX_NOTIFICATION_BYTES - 4096
"""Maximum size of ``data`` in bytes; the rest is reserved for a notification's other members."""

_MAX_NAMES = 50  # maximum number of listed members that did not fit


class _TooLargeError(Exception):
    """The value is larger than a notification; converting it would only waste memory."""


def truncate_result(result: object) -> dict[str, Any]:
    """Convert a job's return value to the ``data`` of a notification. Never raises.

    A mapping, a dataclass or a pydantic model becomes ``data``. Any other value becomes
    ``{"result": …}``, and None becomes ``{}``. Members that are not JSON, or exceed the size limit
    together with the others, are omitted: then ``truncated`` is true and ``omitted`` lists their
    names. The value itself is not changed. An iterator is omitted, because reading it would consume
    it.
    """
    try:
        data = _as_object(result)
        if len(encode_json("result", data)) <= MAX_DATA_BYTES:
            return data
        raise _TooLargeError
    except Exception as error:  # noqa: BLE001 - the application's types may raise anything
        return _truncate(result, error)


def _truncate(result: object, error: Exception) -> dict[str, Any]:
    names: list[str] = []
    problems: list[str] = []
    sized: dict[str, tuple[int, object]] = {}
    try:
        members = dict(_members(result))
    except Exception as unreadable:  # noqa: BLE001 - the application's mapping may raise anything
        members = {"result": functools.partial(_raise, unreadable)}
    for name, read in members.items():
        names.append(name)
        try:
            value = read()
            sized[name] = (len(encode_json("result", {name: value})), value)
        except _TooLargeError:
            pass
        except Exception as failed:  # noqa: BLE001 - the application's types may raise anything
            problems.append(f"{_printable(name)}: {_described(failed)}")
    left = MAX_DATA_BYTES - 1024 - 134 * _MAX_NAMES
    kept = set()
    for name, (size, _) in sorted(sized.items(), key=lambda item: item[1][0]):
        left -= size
        if left >= 0:
            kept.add(name)
    omitted = [_printable(name) for name in names if name not in kept][:_MAX_NAMES]
    if not problems and not isinstance(error, _TooLargeError):
        problems.append(_described(error))
    cause = "; ".join(problems[:3]) or f"it has more than {MAX_DATA_BYTES} bytes"
    logger.warning("job result truncated: omitted %s: %s", ", ".join(omitted) or "a part", cause)
    if problems:
        report_result(cause)
    data = {name: value for name, (_, value) in sized.items() if name in kept}
    return {**data, "truncated": True, "omitted": omitted}


def _members(result: object) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Return the result's members, each with the function that converts it to JSON data."""
    if isinstance(result, RootModel):
        yield from _members(result.root)
    elif isinstance(result, BaseModel):
        kind = type(result)
        for name, info in kind.model_fields.items():
            if getattr(result, name, None) is not None:
                yield info.serialization_alias or info.alias or name, _member_of(result, name)
        for name, computed in kind.model_computed_fields.items():
            yield computed.alias or name, _member_of(result, name)
    elif dataclasses.is_dataclass(result) and not isinstance(result, type):
        for field in dataclasses.fields(result):
            yield field.name, functools.partial(_plain, getattr(result, field.name, None))
    elif isinstance(result, Mapping):
        for key, value in result.items():
            yield str(key), functools.partial(_plain, value)
    else:
        yield "result", functools.partial(_plain, result)


def _member_of(model: BaseModel, name: str) -> Callable[[], Any]:
    def read() -> Any:
        _check_size(getattr(model, name))
        dumped = _dump(model, include={name})
        (value,) = dumped.values()
        return value

    return read


def _as_object(result: object) -> dict[str, Any]:
    if result is None:
        return {}
    plain = _plain(result)
    return plain if isinstance(plain, dict) else {"result": plain}


def _plain(value: object) -> Any:
    """Return JSON data. Raise what the value's types raise, and TypeError for other types."""
    _check_size(value)
    if isinstance(value, BaseModel):
        return _dump(value)
    return pydantic_core.to_jsonable_python(
        value, by_alias=True, inf_nan_mode="constants", fallback=_fallback
    )


def _dump(model: BaseModel, include: set[str] | None = None) -> Any:
    return model.model_dump(
        mode="json",
        by_alias=True,
        exclude_none=True,
        include=include,
        fallback=_fallback,
        warnings=False,
    )


def _fallback(value: object) -> Any:
    """Convert types that pydantic does not support."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Set | deque):  # older versions know no deque
        return list(value)
    if callable(getattr(type(value), "tolist", None)):  # NumPy arrays and scalars
        if getattr(value, "nbytes", 0) > 8 * MAX_DATA_BYTES:
            raise _TooLargeError
        return value.tolist()  # type: ignore[attr-defined]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if (text := as_text(value)) is not None:
        return text
    raise TypeError(f"{type(value).__name__} is not JSON-serializable")


def _check_size(value: object) -> None:
    """Check the size of a value before any of it is converted.

    Raises:
        _TooLargeError: the value is certainly larger than a notification, or contains itself.
        TypeError: the value holds an iterator.
    """
    left = MAX_DATA_BYTES
    stack = [value]
    while stack:
        each = stack.pop()
        left -= len(each) if isinstance(each, str | bytes | bytearray) else 2
        if left < 0:
            raise _TooLargeError
        if isinstance(each, Iterator | AsyncIterator):
            raise TypeError(f"{type(each).__name__} is an iterator, which can be read only once")
        if isinstance(each, Mapping | list | tuple | set | frozenset | deque):
            if len(each) > left:
                raise _TooLargeError
            if isinstance(each, Mapping):
                stack += each.keys()
                stack += each.values()
            else:
                stack += each
        elif isinstance(each, BaseModel) or dataclasses.is_dataclass(each):
            stack += getattr(each, "__dict__", {}).values() if not isinstance(each, type) else []


def _raise(error: Exception) -> Any:
    raise error


def _described(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:200].splitlines()[0]
    except Exception:  # noqa: BLE001 - the application's __str__ may raise anything
        return type(error).__name__


def _printable(name: str) -> str:
    return name[:32].encode(errors="replace").decode()
