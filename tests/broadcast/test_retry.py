"""The one retry policy: the same for a single call and for a batch, with or without a deadline."""

from __future__ import annotations

import pytest

from synap_realtime.broadcast.batch_queue import BatchQueue, QueuedNotification
from synap_realtime.broadcast.encoding import encode, normalize
from synap_realtime.broadcast.endpoint import Endpoint
from synap_realtime.broadcast.responses import ApiResponse
from synap_realtime.broadcast.result import BroadcastResult
from synap_realtime.broadcast.retry import MAX_JITTER_S, RetryPolicy
from synap_realtime.protocol.rooms import user_room

AWAY = ApiResponse(error="away")
BUSY = ApiResponse(status=503, error="busy", retry_after_s=7)


def outcome_at(answer: ApiResponse, left_s: float, *, has_batch_route: bool) -> QueuedNotification:
    """Return a notification to which the server answered so long before its deadline."""
    endpoint = Endpoint("http://rooms.test", None)
    endpoint.has_batch_route = has_batch_route
    queue = BatchQueue(endpoint)
    encoded = encode((user_room("1"),), normalize({"type": "a", "data": {}}))
    item = QueuedNotification(encoded, deadline=100.0 + left_s)
    queue.add(item)
    batch = queue.next_batch(100.0)
    queue.begin(batch)
    assert queue.apply_response(batch, answer, 100.0) is None
    queue.release(batch)
    return item


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
    assert RetryPolicy().is_retriable(answer) is expected


@pytest.mark.parametrize(("attempts", "least"), [(1, 0.1), (2, 0.2), (3, 0.4), (9, 3), (10**6, 3)])
def test_pauses_double_up_to_a_bound(
    attempts: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the short waits of the other tests
    assert least <= RetryPolicy().delay_s(AWAY, attempts) <= least + MAX_JITTER_S


@pytest.mark.parametrize("has_batch_route", [True, False])
def test_retry_after_is_waited_for(has_batch_route: bool) -> None:
    assert RetryPolicy().delay_s(BUSY, 1) == 7
    item = outcome_at(BUSY, left_s=8, has_batch_route=has_batch_route)
    assert (item.result, item.due) == (None, 107.0)


@pytest.mark.parametrize("has_batch_route", [True, False])
@pytest.mark.parametrize("left_s", [6, 0, -1])
@pytest.mark.parametrize("answer", [AWAY, BUSY])
def test_nothing_begins_past_the_deadline(
    has_batch_route: bool, left_s: float, answer: ApiResponse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller gets a result with the last answer."""
    monkeypatch.setattr("synap_realtime.broadcast.retry.backoff_s", lambda *_: 6.0)
    result = outcome_at(answer, left_s=left_s, has_batch_route=has_batch_route).result
    assert isinstance(result, BroadcastResult)
    assert answer.error is not None
    assert answer.error in (result.error or "")
    assert ("it asked to retry after 7 s" in (result.error or "")) == (answer is BUSY)


def test_a_client_without_a_deadline_has_a_longest_pause() -> None:
    policy = RetryPolicy(15, 15)
    assert policy.delay_s(ApiResponse(status=503, retry_after_s=999), 1) == 15


@pytest.mark.parametrize(("attempts", "least"), [(1, 0.1), (7, 6.4), (8, 12.8), (99, 15)])
def test_a_client_without_a_deadline_backs_off_further(
    attempts: int, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert least <= RetryPolicy(15, 15).delay_s(AWAY, attempts) <= min(least + MAX_JITTER_S, 15)


def test_only_a_client_without_waiting_callers_retries_a_misconfigured_server() -> None:
    answer = ApiResponse(status=500, error="no", body={"code": "misconfigured"})
    assert not RetryPolicy().is_retriable(answer)
    assert RetryPolicy(retries_misconfigured=True).is_retriable(answer)


def test_refused_clients_retry_with_jitter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert len({RetryPolicy().delay_s(AWAY, 1) for _ in range(10)}) > 1
