"""The retry policy of all clients, expressed with tenacity.

Connection errors, timeouts, 429 and 5xx are retried with exponential backoff and jitter, or after
the delay of ``Retry-After``, but never past the deadline. Errors that need a configuration change
are not retried.

tenacity is imported with the first request, and does not run for a request that succeeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from .responses import ApiResponse

if TYPE_CHECKING:
    from tenacity import RetryCallState

DEADLINE_S = 10.0
"""Default time limit of one broadcast in seconds."""

TIMEOUT_S = 5.0
"""Default timeout of one attempt in seconds."""

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 3.0
MAX_JITTER_S = 0.1


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed attempt is repeated.

    Attributes:
        max_backoff_s: maximum backoff in seconds, without the jitter.
        max_delay_s: maximum delay in seconds, also if the server asks for a longer one.
        retries_misconfigured: retry a server whose configuration is invalid, until its operator has
            fixed it. For a client whose callers do not wait.
        pauses_queue: a failure delays the whole queue, not only the notifications that failed. For
            a client without deadlines, which would otherwise retry each notification by itself
            during an outage.
    """

    max_backoff_s: float = MAX_PAUSE_S
    max_delay_s: float = math.inf
    retries_misconfigured: bool = False
    pauses_queue: bool = False

    def is_retriable(self, answer: ApiResponse) -> bool:
        """Return whether another attempt may succeed; see :attr:`ApiResponse.retriable`."""
        return answer.retriable or (self.retries_misconfigured and answer.is_misconfigured)

    def delay_s(self, answer: ApiResponse, attempts: int) -> float:
        """Return seconds before the next attempt: the server's ``Retry-After``, but at least the
        backoff. ``attempts`` is the number of attempts so far.
        """
        delay_s = max(answer.retry_after_s, backoff_s(attempts, self.max_backoff_s))
        return min(delay_s, self.max_delay_s)


def load() -> None:
    """Import the policy's dependencies before a thread or a forked child needs them."""
    _backoff(MAX_PAUSE_S)
    _state(1)


def backoff_s(attempts: int, max_backoff_s: float = MAX_PAUSE_S) -> float:
    """Return the backoff in seconds: about 0.1, 0.2, 0.4, … and at most the maximum."""
    return _backoff(max_backoff_s)(_state(attempts))


def last_error(answer: ApiResponse, error: str | None) -> str | None:
    """Return the error to report when the deadline allows no further attempt."""
    if answer.retry_after_s > 0:
        return f"{error}; it asked to retry after {answer.retry_after_s:g} s, past the deadline"
    return error


@cache
def _backoff(max_backoff_s: float) -> Callable[[RetryCallState], float]:
    from tenacity import wait_exponential, wait_random

    return wait_exponential(FIRST_PAUSE_S, max_backoff_s) + wait_random(0, MAX_JITTER_S)


def _state(attempts: int) -> RetryCallState:
    from tenacity import RetryCallState, Retrying

    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempts
    return state
