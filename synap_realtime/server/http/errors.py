"""Translate the errors of the server to HTTP: status, code and headers.

See PROTOCOL.md, "Errors".
"""

from __future__ import annotations

import math

from ..errors import (
    PeerRejectedError,
    PermissionDeniedError,
    RateLimitedError,
    RejectedError,
    StoreUnavailableError,
    UnauthenticatedError,
)
from ..messages import RETRY_AFTER_S, RequestError

DomainError = RejectedError | StoreUnavailableError
"""An error that :func:`to_request_error` translates."""

ERRORS = (RequestError, RejectedError, StoreUnavailableError)
"""The errors that answer a request."""


def to_request_error(error: RequestError | DomainError) -> RequestError:
    """Return the error of HTTP that answers a request."""
    if isinstance(error, RequestError):
        return error
    details = str(error)
    match error:
        case UnauthenticatedError():  # RFC 6750, section 3
            challenge = 'Bearer error="invalid_token"' if error.is_invalid else "Bearer"
            headers = {"WWW-Authenticate": challenge}
            return RequestError(401, "unauthorized", "Unauthorized", details, headers)
        case PermissionDeniedError():
            return RequestError(403, "forbidden", "Forbidden", details)
        case PeerRejectedError():
            return RequestError(403, "forbidden", error.summary, details)
        case RateLimitedError():
            headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
            return RequestError(429, "rate_limited", "Too many requests", details, headers)
        case _:
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return RequestError(503, "unavailable", "Try again later", details, headers)
