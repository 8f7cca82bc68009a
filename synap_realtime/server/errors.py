"""The errors by which the server rejects a request, a handshake or a new token.

::

    RejectedError
    ├── PeerRejectedError          the peer, or the page that it shows, may not use this server
    ├── UnauthenticatedError       there is no credential, or it is not valid
    ├── PermissionDeniedError      the credential does not allow the action
    ├── RateLimitedError           a rate or another limit is reached
    │   └── UserConnectionLimitError
    ├── UnavailableError           not possible now; a later attempt may succeed
    └── ConflictError              the publish does not fit what the log has for its fold key

A store raises :class:`StoreUnavailableError`. None of them knows HTTP: ``messages.py`` gives
each its status, its code and its headers.
"""

from __future__ import annotations

from ..errors import SynapRealtimeError


class RejectedError(Exception):
    """A client gets nothing of what it asked for.

    Attributes:
        details: the cause, for the client and the log. It contains no secret.
    """

    def __init__(self, details: str) -> None:
        super().__init__(details)
        self.details = details


class PeerRejectedError(RejectedError):
    """The server answers no request of this peer, or of this page.

    Attributes:
        summary: what is wrong, in a few words.
    """

    def __init__(self, summary: str, details: str) -> None:
        super().__init__(details)
        self.summary = summary


class UnauthenticatedError(RejectedError):
    """There is no credential, or it is not valid.

    Attributes:
        is_invalid: there is one, and it is not valid.
        user: for the log, the user of a token that is signed by a key of this server and no longer
            valid. It allows nothing.
    """

    def __init__(self, details: str, *, is_invalid: bool = False, user: str | None = None) -> None:
        super().__init__(details)
        self.is_invalid = is_invalid
        self.user = user


class PermissionDeniedError(RejectedError):
    """The credential is valid and does not allow the action."""


class RateLimitedError(RejectedError):
    """A rate, or a limit of connections or bytes, is reached.

    Attributes:
        retry_after_s: when another attempt may succeed, in seconds.
    """

    def __init__(self, details: str, retry_after_s: float) -> None:
        super().__init__(details)
        self.retry_after_s = retry_after_s


class UserConnectionLimitError(RateLimitedError):
    """A user has the maximum number of connections."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"connection limit ({limit}) per user reached", 10.0)


class UnavailableError(RejectedError):
    """The server cannot do this now."""


class ConflictError(RejectedError):
    """A publish does not fit what the log has for its fold key. See PROTOCOL.md, "Folding".

    Attributes:
        code: as in PROTOCOL.md, "Errors".
        offset: where the next piece has to begin; None if that is not the cause.
        attempt: the attempt of the key; None if the key is not the cause.
    """

    def __init__(
        self, code: str, details: str, offset: int | None = None, attempt: int | None = None
    ) -> None:
        super().__init__(details)
        self.code = code
        self.offset = offset
        self.attempt = attempt


class StoreUnavailableError(SynapRealtimeError):
    """The store cannot write or read now. The client receives 503 and may retry."""
