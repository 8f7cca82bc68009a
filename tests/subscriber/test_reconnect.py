"""PROTOCOL.md, "Close codes" and "Clients": reconnect delays, without waiting."""

from __future__ import annotations

from typing import Any

import pytest

from synap_realtime import SubscriptionError
from synap_realtime.subscriber.reconnect import (
    Failure,
    ReconnectPolicy,
    from_close_frame,
    from_http_response,
)
from tests.support.waits import SetWaits

LOST = Failure("lost")


@pytest.fixture(autouse=True)
def _real_delays(set_waits: SetWaits, _short_delays: None) -> None:
    set_waits(initial_delay_s=1.0, max_delay_s=16.0)


def after(policy: ReconnectPolicy, failure: Failure = LOST, up_s: float = 0.0) -> float:
    return policy.delay_after(failure, up_s, "http://x")


def test_the_delays_double_up_to_16_s_and_5_attempts() -> None:
    policy = ReconnectPolicy(5, lambda: 0.0)
    assert [after(policy) for _ in range(5)] == [1, 2, 4, 8, 16]
    with pytest.raises(SubscriptionError, match="after 5 attempts") as caught:
        after(policy)
    assert caught.value.retriable


def test_retries_every_16_s_without_a_limit() -> None:
    policy = ReconnectPolicy(None, lambda: 0.0)
    assert [after(policy) for _ in range(2000)][-1] == 16


def test_each_delay_has_up_to_a_quarter_of_jitter() -> None:
    policy = ReconnectPolicy(5, lambda: 1.0)
    assert [after(policy) for _ in range(5)] == [1.25, 2.5, 5, 10, 20]


def test_the_count_resets_only_after_5_s_up() -> None:
    policy = ReconnectPolicy(5, lambda: 0.0)
    assert [after(policy), after(policy, up_s=4.9), after(policy, up_s=5.0)] == [1, 2, 1]


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1012, 4000, 4008, 4009, 4012, 4499])
def test_reconnects_after_close_code(code: int) -> None:
    assert after(ReconnectPolicy(1, lambda: 0.0), from_close_frame(code, "")) == 1


@pytest.mark.parametrize("code", [1009, 4500, 4501, 4540, 4999])
def test_does_not_reconnect_after_close_code(code: int) -> None:
    with pytest.raises(SubscriptionError, match=str(code)) as caught:
        after(ReconnectPolicy(None, lambda: 0.0), from_close_frame(code, "no"))
    assert caught.value.code == code
    assert not caught.value.retriable


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 200])
def test_reconnects_after_status(status: int) -> None:
    assert after(ReconnectPolicy(1, lambda: 0.0), from_http_response(status, {}, b"")) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 426])
def test_does_not_reconnect_after_status(status: int) -> None:
    body = b'{"error":"No","details":"because"}'
    with pytest.raises(SubscriptionError, match=f"{status}: No: because") as caught:
        after(ReconnectPolicy(None, lambda: 0.0), from_http_response(status, {}, body))
    assert caught.value.code == status


@pytest.mark.parametrize(
    ("header", "delay"), [("7", 7.0), ("0", 1.0), ("999999", 60.0), ("soon", 1.0), ("\x1d7", 1.0)]
)
def test_retry_after_is_obeyed_within_reason(header: str, delay: float) -> None:
    assert (
        after(
            ReconnectPolicy(1, lambda: 0.0), from_http_response(503, {"Retry-After": header}, b"")
        )
        == delay
    )


@pytest.mark.parametrize(("asked", "delay"), [(0.0, 0.0), (0.3, 0.3), (30.0, 30.0), (1e6, 60.0)])
def test_draining_server_sets_the_reconnect_delay(asked: float, delay: float) -> None:
    failure = Failure("drains", close_code=4012, retry_after_s=asked)
    assert after(ReconnectPolicy(1, lambda: 1.0), failure) == delay


def test_server_text_cannot_control_a_terminal() -> None:
    answer: Any = b'{"error":"\\u001b[31m","details":"\\n"}'
    assert from_http_response(500, {}, answer).reason.isprintable()
    assert from_close_frame(4001, "\x1b[2J").reason.isprintable()
