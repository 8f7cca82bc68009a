"""Parse whitespace, digits and dates as RFC 9110 defines them.

Python's own functions accept more: ``str.strip`` also removes control characters and U+00A0,
``str.isdigit`` is true for ``²``, which ``int`` rejects, and ``int`` rejects 5,000 zeros.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

OWS = " \t"
"""Optional whitespace, for ``str.strip`` (section 5.6.3)."""

MAX_NUMBER = 10**18
"""Every larger number is parsed as this one. No length and no duration comes near it."""

_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_TIME = "[0-9]{2}:[0-9]{2}:[0-9]{2}"
_DATE = re.compile(
    f"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), [0-9]{{2}} {_MONTH} [0-9]{{4}} {_TIME} GMT"
    f"|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, [0-9]{{2}}-{_MONTH}-[0-9]{{2}} {_TIME} GMT"
    f"|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) {_MONTH} [0-9 ][0-9] {_TIME} [0-9]{{4}}"
)


def parse_digits(text: str) -> int | None:
    """Return the number that a text of ASCII digits stands for; None for any other text."""
    if not (text.isascii() and text.isdigit()):
        return None
    digits = text.lstrip("0")
    return int(digits or 0) if len(digits) <= 18 else MAX_NUMBER


def parse_date(text: str) -> datetime | None:
    """Return the time of an HTTP-date, in any of its three forms (section 5.6.7); else None."""
    if not _DATE.fullmatch(text):
        return None
    try:
        return parsedate_to_datetime(text).replace(tzinfo=UTC)
    except ValueError:  # such as 30 February
        return None
