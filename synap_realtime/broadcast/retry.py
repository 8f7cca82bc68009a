"""One retry policy for all clients, expressed with tenacity: when to try again, and when not.

Connection errors, timeouts, 429 and 5xx are tried again, with exponential waits and jitter, or
after what ``Retry-After`` asks for; never past the deadline. Errors that only a change of the
configuration can fix are not tried again.

tenacity is loaded with the first request, and nothing of it runs for one that succeeds at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from .encoding import ApiResponse

if TYPE_CHECKING:
    from tenacity import RetryCallState

DEADLINE_S = 10.0
"""How long one broadcast may take in all."""

TIMEOUT_S = 5.0
"""How long one attempt may take."""

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 3.0
MAX_JITTER_S = 0.1


def load() -> None:
    """Import what the policy needs, before a thread or a forked child needs it."""
    _backoff(MAX_PAUSE_S)


def arguments(deadline_s: float) -> dict[str, Any]:
    """The policy as the arguments of tenacity's ``Retrying`` and ``AsyncRetrying``.

    What they call returns an :class:`Answer`; they return the last one, with all attempts counted.

    Args:
        deadline_s: an attempt that would begin later than this from now is not made.
    """
    from tenacity import retry_if_result, stop_before_delay

    return {
        "retry": retry_if_result(is_retriable),
        "wait": wait_s,
        "stop": stop_before_delay(deadline_s),
        "retry_error_callback": lambda state: as_final(_answer(state)),
    }


def is_retriable(answer: ApiResponse) -> bool:
    """Return whether another attempt may succeed: see :attr:`Answer.retriable`."""
    return answer.retriable


def wait_s(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the server asked for, at least the backoff."""
    return max(_answer(state).retry_after_s, backoff_s(state))


def backoff_s(state: RetryCallState) -> float:
    """About 0.1, 0.2, 0.4, … s and at most 3 s."""
    return _backoff(MAX_PAUSE_S)(state)


@cache
def _backoff(max_pause_s: float) -> Callable[[RetryCallState], float]:
    from tenacity import wait_exponential, wait_random

    return wait_exponential(FIRST_PAUSE_S, max_pause_s) + wait_random(0, MAX_JITTER_S)


def wait_at_most_s(max_pause_s: float) -> Callable[[RetryCallState], float]:
    """:func:`try_acquire` for a client without a deadline: other bounds, the same shape."""

    def wait(state: RetryCallState) -> float:
        return min(max(_answer(state).retry_after_s, _backoff(max_pause_s)(state)), max_pause_s)

    return wait


def retry_delay_s(answer: ApiResponse, attempts: int, left_s: float) -> float | None:
    """Seconds before the attempt that follows the given number of them; None if the policy stops.

    For a sender that serves many callers at once, each with a deadline of its own.

    Args:
        left_s: until the deadline.
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
    """Return the answer to report when the deadline allows no further attempt."""
    return replace(answer, error=last_error(answer, answer.error))


def last_error(answer: ApiResponse, error: str | None) -> str | None:
    if answer.retry_after_s > 0:
        return f"{error}; it asked to wait {answer.retry_after_s:g} s, past the deadline"
    return error


def _answer(state: RetryCallState) -> ApiResponse:
    assert state.outcome is not None  # noqa: S101 - asked only after an attempt
    answer: ApiResponse = state.outcome.result()
    return answer
