"""The translation of the server's errors to HTTP. See PROTOCOL.md, "Errors"."""

from __future__ import annotations

import pytest

from synap_realtime.server import StoreUnavailableError
from synap_realtime.server.errors import (
    ConflictError,
    PeerRejectedError,
    PermissionDeniedError,
    RateLimitedError,
    RejectedError,
    UnauthenticatedError,
    UnavailableError,
    UserConnectionLimitError,
)
from synap_realtime.server.messages import bad_request, to_request_error

CASES: list[tuple[RejectedError | StoreUnavailableError, int, str, dict[str, str]]] = [
    (UnauthenticatedError("x"), 401, "unauthorized", {"WWW-Authenticate": "Bearer"}),
    (
        UnauthenticatedError("x", is_invalid=True),
        401,
        "unauthorized",
        {"WWW-Authenticate": 'Bearer error="invalid_token"'},
    ),
    (PermissionDeniedError("x"), 403, "forbidden", {}),
    (PeerRejectedError("Origin not allowed", "x"), 403, "forbidden", {}),
    (RateLimitedError("x", 0.001), 429, "rate_limited", {"Retry-After": "1"}),
    (RateLimitedError("x", 1.5), 429, "rate_limited", {"Retry-After": "2"}),
    (UserConnectionLimitError(5), 429, "rate_limited", {"Retry-After": "10"}),
    (ConflictError("stale_attempt", "x", attempt=2), 409, "stale_attempt", {}),
    (ConflictError("payload_too_large", "x"), 413, "payload_too_large", {}),
    (UnavailableError("x"), 503, "unavailable", {"Retry-After": "1"}),
    (StoreUnavailableError("x"), 503, "unavailable", {"Retry-After": "1"}),
]


@pytest.mark.parametrize(("error", "status", "code", "headers"), CASES)
def test_each_error_has_its_status_code_and_headers(
    error: RejectedError | StoreUnavailableError, status: int, code: str, headers: dict[str, str]
) -> None:
    answer = to_request_error(error)
    assert (answer.response.status, answer.body["code"]) == (status, code)
    assert answer.response.headers == headers
    assert answer.body["details"] == str(error)


def test_every_kind_of_error_has_a_case() -> None:
    def kinds(kind: type[Exception]) -> set[type[Exception]]:
        return {kind}.union(*map(kinds, kind.__subclasses__()))

    assert kinds(RejectedError) - {RejectedError} <= {type(error) for error, *_ in CASES}


def test_a_conflict_names_the_offset_and_the_attempt_that_are_known() -> None:
    mismatch = to_request_error(ConflictError("offset_mismatch", "x", 0, 2)).body
    assert mismatch == {
        "error": "Conflict",
        "details": "x",
        "code": "offset_mismatch",
        "offset": 0,
        "attempt": 2,
    }
    assert to_request_error(ConflictError("too_many_keys", "x")).body.keys() == {
        "error",
        "details",
        "code",
    }


def test_an_error_of_http_stays_the_same() -> None:
    error = bad_request("Invalid path", "it is not UTF-8")
    assert to_request_error(error) is error
