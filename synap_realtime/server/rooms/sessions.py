"""Sessions: the identity, the token lifetime and the commands of each connection of this node.

See PROTOCOL.md, "Subscribing".
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from ...errors import InvalidArgumentError
from ...protocol.control import (
    MAX_CLIENT_TEXT_BYTES,
    PING,
    PONG,
    TOKEN_EXPIRING,
    Ack,
    Authenticate,
    CloseCode,
    ControlFrame,
    parse_action,
)
from ...protocol.cursor import parse_cursor
from ...protocol.notification import format_timestamp
from ...protocol.rooms import Room, room_owner
from ..auth.authorization import AccessControl
from ..auth.claims import UNRESTRICTED, Claims
from ..auth.limits import Limits, slot_of
from ..auth.revocations import Revocation, Revocations
from ..deadlines import TimerQueue
from ..errors import (
    PermissionDeniedError,
    RateLimitedError,
    StoreUnavailableError,
    UnauthenticatedError,
    UnavailableError,
)
from ..logging import events
from ..metrics import Metrics
from ..resources.byte_budget import BacklogBudget
from ..resources.pacing import run_eagerly
from ..stores.base import Store
from .backlog import Sink
from .hub import Hub
from .presence import Presence
from .subscription import Subscription

EXPIRY_WARNING_S = 30.0
EXPIRY_WARNING_SHARE = 2 / 3
"""A client is warned ``EXPIRY_WARNING_S`` before its token expires, or when this share of the
lifetime that the token had left on arrival remains, whichever is later. Without the share, a client
would renew a token that is valid for 30 s, or a cached one that arrives late, over and over."""

# Rate limits identify a session by a number. Its id() is reused after it has ended, and the next
# client would be closed for messages of the previous one.
_numbers = itertools.count()


class Session:
    """One connection: its subscription, its claims, the expiry of its token, and its commands.

    Attributes:
        ignored: the number of client messages that were neither valid nor an error.
        is_over: whether the connection has ended.
    """

    __slots__ = (
        "_access",
        "_allow_message",
        "_clock",
        "_expiry_announced",
        "_next_timer_at",
        "_number",
        "_renewal",
        "_timers",
        "_warns_at",
        "address",
        "began_at",
        "claims",
        "device",
        "ignored",
        "is_over",
        "room",
        "subscription",
        "transport",
        "user",
        "wants_presence",
    )  # fmt: skip

    def __init__(
        self,
        subscription: Subscription,
        room: Room,
        claims: Claims,
        access: AccessControl,
        timers: TimerQueue,
        *,
        user: str | None = None,
        address: str | None = None,
        device: str | None = None,
        transport: str = "",
        wants_presence: bool = False,
        allow_message: Callable[[int], bool] = lambda _: True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            user: the user that the connection makes present; None if it makes none present.
            wants_presence: the client asked for presence frames.
            allow_message: called with the number of the session; returns whether its client is
                within its rate limit.
            clock: seconds since 1970, as the claims' expiry is.
        """
        self.user = user
        self.subscription = subscription
        self.room = room
        self.claims = claims
        self.address = address
        self.device = device
        self.transport = transport
        self.began_at = clock()
        self.ignored = 0
        self.is_over = False
        self._allow_message = allow_message
        self._number = next(_numbers)
        self._access = access
        self._timers = timers
        self.wants_presence = wants_presence
        self._clock = clock
        self._next_timer_at = math.inf  # by the clock, when the next scheduled timer fires
        self._expiry_announced = False
        self._warns_at = math.inf  # by the clock, when the client is warned of the expiry
        self._renewal: asyncio.Task[None] | None = None
        self._schedule()

    def start(self, after: str | None, sink: Sink) -> asyncio.Task[None] | None:
        """Run the subscription; see :meth:`Subscription.run`.

        If the log cannot be read, the subscription is closed with ``DRAINING``.

        Returns:
            The task; None if the subscription is live already.
        """
        return run_eagerly(asyncio.get_running_loop(), self._run(after, sink))

    async def _run(self, after: str | None, sink: Sink) -> None:
        try:
            await self.subscription.run(after, sink)
        except StoreUnavailableError:
            self.subscription.close(CloseCode.DRAINING)

    def on_client_message(self, message: str | bytes) -> str | None:
        """Handle a message from the client. Return the reply, if there is one.

        Valid messages are ``ping`` and the actions; other texts are ignored. A binary message, one
        over 4 KiB or one over the rate limit closes the subscription.
        """
        if isinstance(message, bytes) or len(message.encode()) > MAX_CLIENT_TEXT_BYTES:
            self.subscription.close(CloseCode.PROTOCOL_VIOLATION)
        elif not self._allow_message(self._number):
            self.subscription.close(CloseCode.RATE_LIMITED)
        elif message == PING:
            return PONG
        elif not (self.subscription.acknowledges and self._act(message)):
            self.ignored += 1
        return None

    def _act(self, text: str) -> bool:
        match parse_action(text):
            case Ack(cursor):
                return self._acknowledge(cursor)
            case Authenticate(token):
                self.reauthenticate(token)
                return True
        return False

    def _acknowledge(self, text: str) -> bool:
        try:
            cursor = parse_cursor(text)
        except InvalidArgumentError:
            return False
        return self.subscription.acknowledge(cursor)

    def reauthenticate(self, token: str) -> None:
        """Replace the token. An invalid new token closes the connection."""
        if self.is_over:
            return
        if self._renewal is not None:
            self._renewal.cancel()
        self._renewal = asyncio.create_task(self._reauthenticate(token))

    def end(self) -> None:
        """Cancel the timers and the renewal. The connection has ended."""
        self.is_over = True
        if self._next_timer_at != math.inf:
            self._timers.discard()
        if self._renewal is not None:
            self._renewal.cancel()

    async def _reauthenticate(self, token: str) -> None:
        close = self.subscription.close
        try:
            claims = await self._access.authenticate_renewed(token, self.claims, self.address)
            if claims.user != self.claims.user:
                return close(CloseCode.FORBIDDEN, "the new token is another user's")
            await self._access.authorize(claims, "subscribe", self.room)
            if self.wants_presence:
                await self._access.authorize(claims, "presence", self.room)
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
            previous, self.claims = self.claims, claims
            self.subscription.claims = claims
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
        if self.claims.expires_at is not None:
            left_s = self.claims.expires_at - self._clock()
            self._warns_at = self.claims.expires_at - min(
                EXPIRY_WARNING_S, left_s * EXPIRY_WARNING_SHARE
            )
        self._check_expiry()

    def _check_expiry(self) -> None:
        """Warn before the token expires, close when it has expired, and schedule the next check."""
        ends_at = self.claims.expires_at
        if ends_at is None:
            return
        now = self._clock()
        if ends_at <= now:
            self.subscription.close(CloseCode.TOKEN_EXPIRED)
            return
        if self._warns_at <= now and not self._expiry_announced:
            self._expiry_announced = True
            when = format_timestamp(datetime.fromtimestamp(ends_at, UTC))
            self.subscription.send_control(ControlFrame(TOKEN_EXPIRING, {"expiresAt": when}))
        next_at = ends_at if self._expiry_announced else min(ends_at, self._warns_at)
        # A timer that fires earlier checks again, so it is not cancelled.
        if next_at < self._next_timer_at:
            self._next_timer_at = next_at
            self._timers.schedule(next_at - now, self)


def _end_of(claims: Claims) -> float:
    return math.inf if claims.expires_at is None else claims.expires_at


class SessionRegistry:
    """Opens, tracks and closes the sessions of this node."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        presence: Presence,
        access: AccessControl,
        revocations: Revocations,
        limits: Limits,
        backlogs: BacklogBudget,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._hub = hub
        self._presence = presence
        self._access = access
        self._revocations = revocations
        self._limits = limits
        # Each access to a method creates an object, which the connection would keep.
        self._allow_message, self._count_read = limits.allow_message, limits.count_read
        self._backlogs = backlogs
        self._metrics = metrics
        self._timers = TimerQueue()
        self._open: set[Session] = set()
        self._left = asyncio.Event()
        revocations.on_revoked = self._close_revoked

    async def open(
        self,
        room: Room,
        claims: Claims,
        address: str | None,
        *,
        transport: str,
        device: str | None,
        acknowledges: bool,
        wants_presence: bool,
    ) -> Session:
        """Open a session for an authorized connection. Call :meth:`close` when it has ended.

        Args:
            transport: ``websocket`` or ``sse``.
            device: the device that the client names; a device in the token overrides it.
            acknowledges: the client acknowledges what it has received.
            wants_presence: the client asked for presence frames.

        Raises:
            RateLimitedError: a connection limit is reached.
            UserConnectionLimitError: the user has too many connections.
            StoreUnavailableError: the connections of the user cannot be counted now.
        """
        device = claims.device or device
        await self._limits.admit(claims, room, address)
        self._metrics.connected(transport)
        subscription = Subscription(
            self._store,
            self._hub,
            room,
            self._metrics,
            device=device,
            acknowledges=acknowledges,
            budget=self._backlogs,
            claims=claims,
            address=address,
            count_read=self._count_read,
        )
        session = Session(
            subscription, room, claims, self._access, self._timers,
            # Without keys there are no identities: a user's room stands for its user.
            user=room_owner(room) if claims is UNRESTRICTED else claims.user,
            address=address, device=device, transport=transport, wants_presence=wants_presence,
            allow_message=self._allow_message,
        )  # fmt: skip
        self._open.add(session)
        events.log_opened(room, claims, address, device, transport)
        # Revoked since the request was authorized.
        if not self._access.is_still_valid(claims):
            subscription.close(CloseCode.REVOKED)
        if session.user is not None:
            self._presence.join(room, session.user, device)
        if wants_presence:
            count_read = partial(self._count_read, claims, address)
            self._presence.watch(room, subscription, count_read)
        return session

    def close(self, session: Session) -> None:
        """Release what a session holds. Its connection has ended; a second call has no effect."""
        if session not in self._open:
            return
        self._open.discard(session)
        session.end()
        subscription, room = session.subscription, session.room
        subscription.detach()
        if session.wants_presence:
            self._presence.unwatch(room, subscription)
        if session.user is not None:
            self._presence.leave(room, session.user, session.device)
        self._metrics.disconnected(session.transport)
        self._limits.release(slot_of(session.claims, room, session.address))
        if (code := subscription.close_code) is not None:
            self._metrics.disconnected_by_server(code.name.lower())
        lasted_s = time.time() - session.began_at
        events.log_closed(
            room, session.claims, session.address, session.device, code, subscription.reason,
            lasted_s,
        )  # fmt: skip
        self._left.set()

    def close_soon(self, session: Session) -> None:
        """Close a session without waiting for the peer to close the connection.

        Not immediately, as a broadcast to the room may be in progress.
        """
        asyncio.get_running_loop().call_soon(self.close, session)

    def in_room(self, room: Room) -> list[Session]:
        """Return the sessions of a room."""
        return [session for session in self._open if session.room == room]

    def count(self) -> dict[str, int]:
        """Return the number of sessions by transport."""
        found = {"websocket": 0, "sse": 0}
        for session in self._open:
            found[session.transport] += 1
        return found

    def subscriptions(self) -> list[Subscription]:
        return [session.subscription for session in self._open]

    def close_untrusted(self) -> int:
        """Close the connections whose signing key was removed. Return how many.

        The close code is 4401, not 4504: the user was not revoked, and can reconnect with a token
        that another key has signed.
        """
        found = [each for each in self._open if not self._access.vouches_for(each.claims)]
        for session in found:
            session.subscription.close(CloseCode.TOKEN_EXPIRED, "the token's key was removed")
        return len(found)

    async def wait_drained(self, end: float) -> None:
        """Wait until all sessions are closed.

        Args:
            end: stop waiting at this time of the event loop's clock.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while self._open:
                    self._left.clear()
                    await self._left.wait()

    def stop(self) -> None:
        """Stop the expiry timers."""
        self._timers.close()

    def _close_revoked(self, revocation: Revocation) -> int:
        revoked = [session for session in self._open if revocation.matches(session.claims)]
        for session in revoked:
            session.subscription.close(CloseCode.REVOKED)
        return len(revoked)
