"""The claims of a connection: the expiry of its token, and its renewal.

See PROTOCOL.md, "WebSocket" and "Many rooms on one connection".
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from datetime import UTC, datetime

from ...protocol.control import TOKEN_EXPIRING, CloseCode, ControlFrame
from ...protocol.notification import format_timestamp
from ..auth.authorization import AccessControl
from ..auth.claims import Claims
from ..deadlines import TimerQueue
from ..errors import (
    PermissionDeniedError,
    RateLimitedError,
    StoreUnavailableError,
    UnauthenticatedError,
    UnavailableError,
)

EXPIRY_WARNING_S = 30.0
EXPIRY_WARNING_SHARE = 2 / 3
"""A client is warned ``EXPIRY_WARNING_S`` before its token expires, or when this share of the
lifetime that the token had left on arrival remains, whichever is later. Without the share, a client
would renew a token that is valid for 30 s, or a cached one that arrives late, over and over."""


class Identity:
    """The claims of a connection, or of one room on it: their lifetime and their renewal.

    Attributes:
        claims: the current ones.
        address: of the peer.
        is_over: whether the connection or the room has ended.
    """

    __slots__ = (
        "_access",
        "_clock",
        "_expiry_announced",
        "_next_timer_at",
        "_renewal",
        "_timers",
        "_warns_at",
        "address",
        "claims",
        "is_over",
    )  # fmt: skip

    def __init__(
        self,
        claims: Claims,
        address: str | None,
        access: AccessControl,
        timers: TimerQueue,
        clock: Callable[[], float],
    ) -> None:
        self.claims = claims
        self.address = address
        self.is_over = False
        self._access = access
        self._timers = timers
        self._clock = clock
        self._next_timer_at = math.inf  # by the clock, when the next scheduled timer fires
        self._expiry_announced = False
        self._warns_at = math.inf  # by the clock, when the client is warned of the expiry
        self._renewal: asyncio.Task[None] | None = None

    def close(self, code: CloseCode, reason: str | None = None) -> None:
        """End what the claims allow: the connection, or the room."""
        raise NotImplementedError

    def send_control(self, frame: ControlFrame) -> None:
        """Send a control frame about the claims."""
        raise NotImplementedError

    async def authorize(self, claims: Claims) -> None:
        """Check that new claims allow what the previous ones allowed.

        Raises:
            PermissionDeniedError: they do not.
        """
        raise NotImplementedError

    def reauthenticate(self, token: str) -> None:
        """Replace the token. An invalid new token closes the connection."""
        if self.is_over:
            return
        if self._renewal is not None:
            self._renewal.cancel()
        self._renewal = asyncio.create_task(self._reauthenticate(token))

    def end(self) -> None:
        """Cancel the timers and the renewal."""
        self.is_over = True
        if self._next_timer_at != math.inf:
            self._timers.discard()
        if self._renewal is not None:
            self._renewal.cancel()

    async def _reauthenticate(self, token: str) -> None:
        close = self.close
        try:
            claims = await self._access.authenticate_renewed(token, self.claims, self.address)
            if claims.user != self.claims.user:
                return close(CloseCode.FORBIDDEN, "the new token is another user's")
            await self.authorize(claims)
        except RateLimitedError as error:
            close(CloseCode.RATE_LIMITED, error.details)
        except PermissionDeniedError as error:
            close(CloseCode.FORBIDDEN, error.details)
        except UnauthenticatedError as error:
            close(CloseCode.UNAUTHORIZED, error.details)
        except (UnavailableError, StoreUnavailableError):
            pass  # not verifiable now: keep the old token
        else:
            # Revoked while the authorizer ran.
            if not self._access.is_still_valid(claims):
                return close(CloseCode.REVOKED)
            self._replace_claims(claims)

    def _replace_claims(self, claims: Claims) -> None:
        previous, self.claims = self.claims, claims
        # Do not warn again for a token that expires no later: the client has no newer one.
        if _end_of(claims) > _end_of(previous):
            self._schedule()
        else:
            self._check_expiry()

    def on_timer(self) -> None:
        """See :class:`deadlines.TimerTarget`."""
        self._next_timer_at = math.inf
        self._check_expiry()

    def _schedule(self) -> None:
        self._expiry_announced = False
        ends_at = self.claims.expires_at
        if ends_at is not None:
            now = self._clock()
            warning_s = (ends_at - now) * EXPIRY_WARNING_SHARE
            self._warns_at = ends_at - min(EXPIRY_WARNING_S, warning_s)
            self._check_expiry_at(now)

    def _check_expiry(self) -> None:
        self._check_expiry_at(self._clock())

    def _check_expiry_at(self, now: float) -> None:
        """Warn before the token expires, close when it has expired, and schedule the next check."""
        ends_at = self.claims.expires_at
        if ends_at is None:
            return
        if ends_at <= now:
            self.close(CloseCode.TOKEN_EXPIRED)
            return
        if self._warns_at <= now and not self._expiry_announced:
            self._expiry_announced = True
            when = format_timestamp(datetime.fromtimestamp(ends_at, UTC))
            self.send_control(ControlFrame(TOKEN_EXPIRING, {"expiresAt": when}))
        next_at = ends_at if self._expiry_announced else min(ends_at, self._warns_at)
        # A timer that fires earlier checks again, so it is not cancelled.
        if next_at < self._next_timer_at:
            self._next_timer_at = next_at
            self._timers.schedule(next_at - now, self)


def _end_of(claims: Claims) -> float:
    return math.inf if claims.expires_at is None else claims.expires_at
