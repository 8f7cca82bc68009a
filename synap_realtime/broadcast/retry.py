"""The retry policy of all clients, expressed with tenacity.

Connection errors, timeouts, 429 and 5xx are retried with exponential backoff and jitter, or after
the delay of ``Retry-After``, but never past the deadline. Errors that need a configuration change
are not retried.

tenacity is imported with the first request, and does not run for a request that succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

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


def load() -> None:
    """Import the policy's dependencies before a thread or a forked child needs them."""
    _backoff(MAX_PAUSE_S)


def arguments(deadline_s: float) -> dict[str, Any]:
    """Return the policy as arguments of tenacity's ``Retrying`` and ``AsyncRetrying``.

    The retried function returns an :class:`ApiResponse`. The retrying call returns the last one,
    with all attempts counted.

    Args:
        deadline_s: seconds from now; no attempt starts after it.
    """
    from tenacity import retry_if_result, stop_before_delay

    return {
        "retry": retry_if_result(is_retriable),
        "wait": wait_s,
        "stop": stop_before_delay(deadline_s),
        "retry_error_callback": lambda state: as_final(_answer(state)),
    }


def is_retriable(answer: ApiResponse) -> bool:
    """Return whether another attempt may succeed; see :attr:`ApiResponse.retriable`."""
    return answer.retriable


def wait_s(state: RetryCallState) -> float:
    """Return seconds before the next attempt: the server's ``Retry-After``, but at least the
    backoff.
    """
    return max(_answer(state).retry_after_s, backoff_s(state))


def backoff_s(state: RetryCallState) -> float:
    """Return the backoff in seconds: about 0.1, 0.2, 0.4, … and at most 3."""
    return _backoff(MAX_PAUSE_S)(state)


@cache
def _backoff(max_pause_s: float) -> Callable[[RetryCallState], float]:
    from tenacity import wait_exponential, wait_random

    return wait_exponential(FIRST_PAUSE_S, max_pause_s) + wait_random(0, MAX_JITTER_S)


def wait_at_most_s(max_pause_s: float) -> Callable[[RetryCallState], float]:
    """Return the backoff for a client without a deadline: the same curve with another maximum."""

    def wait(state: RetryCallState) -> float:
        return min(max(_answer(state).retry_after_s, _backoff(max_pause_s)(state)), max_pause_s)

    return wait


def retry_delay_s(answer: ApiResponse, attempts: int, left_s: float) -> float | None:
    """Return seconds before the attempt after ``attempts``; None if the policy stops.

    For a sender that serves several callers, each with its own deadline.

    Args:
        left_s: seconds until the deadline.
    """
    from tenacity import RetryCallState, Retrying

    policy = Retrying(**arguments(left_s))
    state = RetryCallState(policy, None, (), {})
    state.attempt_number = attempts
    state.set_result(answer)
    state.start_time = state.outcome_timestamp or 0.0
    state.upcoming_sleep = wait_s(state)
    return None if policy.stop(state) else state.upcoming_sleep


def with_attempts(answer: ApiResponse, attempts: int) -> ApiResponse:
    return replace(answer, attempts=attempts)


def as_final(answer: ApiResponse) -> ApiResponse:
    """Return the response to report when the deadline allows no further attempt."""
    return replace(answer, error=last_error(answer, answer.error))


def last_error(answer: ApiResponse, error: str | None) -> str | None:
    if answer.retry_after_s > 0:
        return f"{error}; it asked to retry after {answer.retry_after_s:g} s, past the deadline"
    return error


def _answer(state: RetryCallState) -> ApiResponse:
    assert state.outcome is not None  # noqa: S101 - only called after an attempt
    answer: ApiResponse = state.outcome.result()
    return answer
