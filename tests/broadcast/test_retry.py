"""The one retry policy: tenacity's rules, the same for a single call and for a batch."""

from __future__ import annotations

import pytest
import tenacity

from synap_realtime.broadcast import retry
from synap_realtime.broadcast.responses import ApiResponse

AWAY = ApiResponse(error="away")


def state_of(answer: ApiResponse, attempts: int) -> tenacity.RetryCallState:
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempts
    state.set_result(answer)
    return state


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (AWAY, True),
        (ApiResponse(status=429), True),
        (ApiResponse(status=503), True),
        (ApiResponse(status=404), False),
        (ApiResponse(status=200), False),
        (ApiResponse(error="no TLS", is_permanent=True), False),
    ],
)
def test_retries_transient_failures(answer: ApiResponse, expected: bool) -> None:
    assert retry.arguments(10)["retry"](state_of(answer, 1)) is expected


@pytest.mark.parametrize(("attempts", "least"), [(1, 0.1), (2, 0.2), (3, 0.4), (9, 3), (10**6, 3)])
def test_pauses_double_up_to_a_bound(
    attempts: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the short waits of the other tests
    assert least <= retry.wait_s(state_of(AWAY, attempts)) <= least + retry.MAX_JITTER_S


def test_retry_after_is_waited_for() -> None:
    assert retry.wait_s(state_of(ApiResponse(status=503, retry_after_s=7), 1)) == 7
    assert retry.retry_delay_s(ApiResponse(status=503, retry_after_s=7), 1, left_s=8) == 7


def test_nothing_begins_past_the_deadline() -> None:
    assert retry.retry_delay_s(ApiResponse(status=503, retry_after_s=7), 1, left_s=6) is None


def test_a_client_without_a_deadline_has_a_longest_pause() -> None:
    wait = retry.wait_at_most_s(15)
    assert wait(state_of(ApiResponse(status=503, retry_after_s=999), 1)) == 15
    assert 0.1 <= wait(state_of(AWAY, 1)) <= 0.2


def test_refused_clients_retry_with_jitter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert len({retry.wait_s(state_of(AWAY, 1)) for _ in range(10)}) > 1


@pytest.mark.parametrize("answer", [AWAY, ApiResponse(status=503, error="busy", retry_after_s=999)])
def test_a_deadline_that_has_passed_leaves_the_last_answer(answer: ApiResponse) -> None:
    """The caller gets a result instead of a library's exception."""
    found: ApiResponse = tenacity.Retrying(**retry.arguments(0))(lambda: answer)
    assert found == retry.as_final(answer)
    assert ("it asked to retry after 999 s" in str(found.error)) == (answer.retry_after_s > 0)
