"""One retry policy, for tenacity's ``Retrying`` and ``AsyncRetrying``.

Connection errors, timeouts, 429 and 5xx are tried again, with exponential waits and jitter, or
after what ``Retry-After`` asks for; never past the deadline.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tenacity

from .requests import Answer

DEADLINE_S = 10.0
"""How long one broadcast may take in all."""

TIMEOUT_S = 5.0
"""How long one attempt may take."""

backoff_s = tenacity.wait_exponential_jitter(multiplier=0.1, max=3.0, jitter=0.1)
"""Seconds before the next attempt: about 0.1, 0.2, 0.4, … and at most 3."""


def policy(remaining_s: float) -> dict[str, Any]:
    """The arguments of ``Retrying`` or ``AsyncRetrying`` around a function that gives an Answer.

    The last answer is returned, whatever it is, with the number of attempts in it.
    """
    return {
        "retry": tenacity.retry_if_result(lambda answer: answer.retriable),
        "wait": _wait,
        "stop": tenacity.stop_before_delay(max(0.0, remaining_s)),
        "retry_error_callback": _last_answer,
    }


def counted(answer: Answer, attempts: int) -> Answer:
    return replace(answer, attempts=attempts)


def _wait(state: tenacity.RetryCallState) -> float:
    asked = state.outcome.result().retry_after_s if state.outcome else 0.0
    return max(asked, backoff_s(state))


def _last_answer(state: tenacity.RetryCallState) -> Answer:
    assert state.outcome is not None  # noqa: S101 - tenacity calls this after an attempt
    answer: Answer = state.outcome.result()
    if answer.retry_after_s > 0:
        note = f"{answer.error}; it asked to wait {answer.retry_after_s:g} s, past the deadline"
        answer = replace(answer, error=note)
    return answer
