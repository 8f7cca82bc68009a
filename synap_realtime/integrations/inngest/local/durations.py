"""Time strings such as ``1h30m`` (Inngest SDK specification, section 1.3.2)."""

from __future__ import annotations

import re

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")


def seconds(duration: str) -> float:
    """Return the seconds of a time string.

    Raises:
        ValueError: it is not a time string.
    """
    parts = _PART.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise ValueError(f"{duration!r} is not a duration")
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))
