"""One retry policy for all clients: when to try again, and when not.

Connection errors, timeouts, 429 and 5xx are tried again, with exponential waits and jitter, or
after what ``Retry-After`` asks for; never past the deadline.
"""

from __future__ import annotations

import random
from dataclasses import replace

from .requests import Answer

DEADLINE_S = 10.0
"""How long one broadcast may take in all."""

TIMEOUT_S = 5.0
"""How long one attempt may take."""

MAX_PAUSE_S = 3.0


def backoff_s(attempts: int) -> float:
    """Seconds before the next attempt: about 0.1, 0.2, 0.4, … and at most 3."""
    jitter_s = random.uniform(0, 0.1)  # noqa: S311 - no secret
    return min(MAX_PAUSE_S, 0.1 * 2.0 ** min(attempts - 1, 10) + jitter_s)


def pause_s(answer: Answer, attempts: int) -> float:
    """Seconds before the attempt that follows this answer."""
    return max(answer.retry_after_s, backoff_s(attempts))


def counted(answer: Answer, attempts: int) -> Answer:
    return replace(answer, attempts=attempts)


def last(answer: Answer) -> Answer:
    """The same, to be told because the deadline does not let it be tried again."""
    return replace(answer, error=last_error(answer, answer.error))


def last_error(answer: Answer, error: str | None) -> str | None:
    if answer.retry_after_s > 0:
        return f"{error}; it asked to wait {answer.retry_after_s:g} s, past the deadline"
    return error
