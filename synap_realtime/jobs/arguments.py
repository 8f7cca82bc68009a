"""Convert the arguments of ``progress()`` and ``delta()`` to the members that are published."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from ..errors import InvalidArgumentError
from .strict import reject
from .text import as_text

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_DELTA = 16 * 1024
"""Maximum length of one delta, in characters. A longer text is split."""


def check_progress(
    fraction: object, label: object, stall_after_s: object
) -> tuple[float | None, str | None, float | None] | None:
    """Convert the arguments of :func:`synap_realtime.progress` to the published members.

    Every value with a clear meaning is converted: any real number (including NumPy scalars and
    Decimal), a lazy string, a timedelta. An invalid argument is omitted, and logged once for each
    call site.

    Returns:
        None if nothing is left to publish.

    Raises:
        InvalidArgumentError: in strict mode; names the invalid argument.
    """
    errors: list[InvalidArgumentError] = []
    arguments = (
        _checked(_fraction, fraction, errors),
        _checked(_label, label, errors),
        _checked(_seconds, stall_after_s, errors),
    )
    reject(errors)
    if errors and arguments == (None, None, None):
        return None
    return arguments


def check_delta(text: object) -> list[str]:
    """Return the text of :func:`synap_realtime.delta` in pieces that fit one notification.

    A value that is not text is omitted, and logged once for each call site.

    Raises:
        InvalidArgumentError: in strict mode, if the value is not text.
    """
    errors: list[InvalidArgumentError] = []
    piece = _checked(_piece, text, errors)
    reject(errors)
    if piece is None:
        return []
    piece = piece.encode(errors="replace").decode()
    return [piece[start : start + MAX_DELTA] for start in range(0, len(piece), MAX_DELTA)]


def check_stall_after_s(value: object) -> float:
    """Convert a job type's ``stall_after_s`` when the job type is defined.

    Raises:
        InvalidArgumentError: the value is not a positive, finite number of seconds.
    """
    seconds = _seconds(value)
    if seconds is None:
        raise InvalidArgumentError("stall_after_s", "expected seconds, got None")
    return seconds


def _checked(
    convert: Callable[[Any], T | None], value: object, errors: list[InvalidArgumentError]
) -> T | None:
    try:
        return convert(value)
    except InvalidArgumentError as error:
        errors.append(error)
    return None


def _fraction(value: object) -> float | None:
    if value is None:
        return None
    number = _number(value)
    if number is None or math.isnan(number):
        problem = f"expected a number from 0 to 1, got {_shown(value)}"
        raise InvalidArgumentError("fraction", problem)
    if not 0 <= number <= 1:
        logger.debug("progress(%r) is outside the range 0 to 1", number)
    return min(max(number, 0.0), 1.0)


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    number = value.total_seconds() if isinstance(value, timedelta) else _number(value)
    if number is None or not 0 < number < math.inf:
        raise InvalidArgumentError(
            "stall_after_s", f"expected seconds, more than 0 and finite; got {_shown(value)}"
        )
    return number


def _label(value: object) -> str | None:
    return None if value is None else _text("label", value)


def _piece(value: object) -> str:
    return _text("text", value)


def _text(field: str, value: object) -> str:
    try:
        text = as_text(value)
    except Exception as error:  # a lazy string may raise when it is evaluated
        raise InvalidArgumentError(
            field,
            f"evaluating {type(value).__name__} as text raised {type(error).__name__}",
        ) from error
    if text is None:
        raise InvalidArgumentError(field, f"expected text, got {type(value).__name__}")
    return text


def _number(value: object) -> float | None:
    """Return a real number as a float; None for any other value."""
    if isinstance(value, bool | str | bytes | bytearray):
        return None
    if not hasattr(type(value), "__float__") and not hasattr(type(value), "__index__"):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]
    except Exception:  # noqa: BLE001 - the application's type may raise anything
        return None


def _shown(value: object) -> str:
    try:
        return repr(value)[:80]
    except Exception:  # noqa: BLE001 - the application's __repr__ may raise anything
        return type(value).__name__
