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
    from tenacity import RetryCallState, Retrying

DEADLINE_S = 10.0
"""Default time limit of one broadcast in seconds."""

TIMEOUT_S = 5.0
"""Default timeout of one attempt in seconds."""

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 3.0
MAX_JITTER_S = 0.1

_FOREVER_S = 365 * 86_400.0  # for a caller without a deadline


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

    max_backoff_s: float = MAX_BACKOFF_S
    max_delay_s: float = math.inf
    retries_misconfigured: bool = False
    pauses_queue: bool = False

    def retrying(self, left_s: float = math.inf) -> Retrying:
        """Return the policy for an attempt whose caller waits for another ``left_s`` seconds.

        The queue evaluates its ``retry``, ``wait`` and ``stop`` after each failed attempt. Its loop
        does not run: a batch has many callers, each with its own deadline.
        """
        from tenacity import Retrying, retry_if_result, stop_before_delay

        return Retrying(
            retry=retry_if_result(self._may_succeed_later),
            wait=self._wait_s,
            stop=stop_before_delay(min(left_s, _FOREVER_S)),
        )

    def is_retriable(self, answer: ApiResponse) -> bool:
        """Return whether another attempt may succeed; see :attr:`ApiResponse.retriable`."""
        policy = self.retrying()
        return policy.retry(_state(policy, answer))

    def delay_s(self, answer: ApiResponse, attempts: int) -> float:
        """Return seconds before the next attempt. ``attempts`` is the number of attempts so far."""
        policy = self.retrying()
        return policy.wait(_state(policy, answer, attempts))

    def stops(self, answer: ApiResponse, delay_s: float, left_s: float) -> bool:
        """Return whether an attempt after this delay would be too late for its caller."""
        policy = self.retrying(left_s)
        return policy.stop(_state(policy, answer, delay_s=delay_s))

    def _may_succeed_later(self, answer: ApiResponse) -> bool:
        return answer.retriable or (self.retries_misconfigured and answer.is_misconfigured)

    def _wait_s(self, state: RetryCallState) -> float:
        """Return the delay that the server asks for, but at least the backoff."""
        delay_s = max(_answer(state).retry_after_s, backoff_s(state, self.max_backoff_s))
        return min(delay_s, self.max_delay_s)


def load() -> None:
    """Import the policy's dependencies before a thread or a forked child needs them."""
    _backoff(MAX_BACKOFF_S)
    RetryPolicy().delay_s(ApiResponse(), 1)


def backoff_s(state: RetryCallState, max_backoff_s: float) -> float:
    """Return the backoff in seconds: about 0.1, 0.2, 0.4, … and at most the maximum."""
    return _backoff(max_backoff_s)(state)


def last_error(answer: ApiResponse, error: str | None) -> str | None:
    """Return the error to report when the deadline allows no further attempt."""
    if answer.retry_after_s > 0:
        return f"{error}; it asked to retry after {answer.retry_after_s:g} s, past the deadline"
    return error


@cache
def _backoff(max_backoff_s: float) -> Callable[[RetryCallState], float]:
    from tenacity import wait_exponential, wait_random

    return wait_exponential(FIRST_BACKOFF_S, max_backoff_s) + wait_random(0, MAX_JITTER_S)


def _state(
    policy: Retrying, answer: ApiResponse, attempts: int = 1, delay_s: float = 0.0
) -> RetryCallState:
    """Return the state of a call that was answered just now."""
    from tenacity import RetryCallState

    state = RetryCallState(policy, None, (), {})
    state.attempt_number = attempts
    state.set_result(answer)
    state.start_time = state.outcome_timestamp or 0.0
    state.upcoming_sleep = delay_s
    return state


def _answer(state: RetryCallState) -> ApiResponse:
    assert state.outcome is not None  # noqa: S101 - see _state
    answer: ApiResponse = state.outcome.result()
    return answer
