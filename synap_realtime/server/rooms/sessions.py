"""Sessions: the identity, the token lifetime and the commands of each connection of this node.

See PROTOCOL.md, "Subscribing".
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar, Protocol

from ...errors import InvalidArgumentError
from ...protocol.control import (
    MAX_CLIENT_TEXT_BYTES,
    PING,
    PONG,
    Ack,
    Authenticate,
    CloseCode,
    ControlFrame,
    parse_action,
)
from ...protocol.cursor import parse_cursor
from ...protocol.rooms import Room
from ..auth.authorization import AccessControl
from ..auth.claims import Claims
from ..deadlines import TimerQueue
from ..errors import StoreUnavailableError
from ..resources.pacing import run_eagerly
from .backlog import Sink
from .identity import Identity
from .room_delivery import ConnectionSink
from .subscription import Subscription

# Rate limits identify a session by a number. Its id() is reused after it has ended, and the next
# client would be closed for messages of the previous one.
next_number = partial(next, itertools.count())


class Delivery(Protocol):
    """What a connection receives, and whether it is closed: of one room, or of many.

    Attributes:
        close_code: why it was closed; None while it is open, and if the client has ended it.
        reason: the same as readable text; else empty.
    """

    close_code: CloseCode | None
    reason: str

    async def run(self, after: str | None, sink: ConnectionSink) -> None:
        """Start to deliver. See :meth:`Subscription.run`."""

    def on_write_blocked(self) -> None:
        """Stop writing: the socket is blocked or closed."""

    def on_writable(self) -> None:
        """Continue writing: the peer has read what was written."""

    def drain(self, reconnect_after_ms: int) -> None:
        """Accept no new entries, send a closing frame and the backlog, then close."""

    def close(self, code: CloseCode, reason: str | None = None) -> None:
        """Close. The first code wins; pending writes are still sent."""

    async def wait_closed(self) -> CloseCode:
        """Wait until it is closed. Return its close code."""

    def detach(self) -> None:
        """Write nothing more. The connection has ended."""


class ClientConnection(Protocol):
    """A connection of this node, with one room or with many.

    Attributes:
        claims: of the connection.
        transport: ``websocket`` or ``sse``.
    """

    claims: Claims
    transport: str

    @property
    def delivery(self) -> Delivery:
        """What the connection receives."""

    @property
    def owns_claims(self) -> bool:
        """Whether it ends when its claims are revoked. (A room may end with its connection.)"""

    @property
    def position(self) -> str | None:
        """The id of the next event of a stream with many rooms; None: the cursor is its id."""

    def start(self, after: str | None, sink: ConnectionSink) -> asyncio.Task[None] | None:
        """Start to deliver. Return the task, if one is left."""

    def on_client_message(self, message: str | bytes) -> str | None:
        """Handle a message from the client. Return the reply, if there is one."""

    def close(self, code: CloseCode, reason: str | None = None) -> None:
        """Close the connection."""


class Session(Identity):
    """One connection to a room: its subscription, its claims, and its commands.

    Attributes:
        ignored: the number of client messages that were neither valid nor an error.
        is_connection: whether the session is a connection of its own; else it is one of many rooms
            on a connection.
    """

    is_connection: ClassVar[bool] = True

    __slots__ = (
        "_allow_message",
        "_number",
        "began_at",
        "device",
        "ignored",
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
        super().__init__(claims, address, access, timers, clock)
        self.user = user
        self.subscription = subscription
        self.room = room
        self.device = device
        self.transport = transport
        self.began_at = clock()
        self.ignored = 0
        self._allow_message = allow_message
        self._number = next_number()
        self.wants_presence = wants_presence
        self._schedule()

    @property
    def delivery(self) -> Delivery:
        """See :class:`ClientConnection`."""
        return self.subscription

    @property
    def owns_claims(self) -> bool:
        """See :class:`ClientConnection`."""
        return True

    @property
    def position(self) -> str | None:
        """See :class:`ClientConnection`."""
        return None

    @property
    def close_code(self) -> CloseCode | None:
        """Why the server has ended the session; None if it has not, or the connection as well."""
        return self.subscription.close_code

    def close(self, code: CloseCode, reason: str | None = None) -> None:
        self.subscription.close(code, reason)

    def send_control(self, frame: ControlFrame) -> None:
        self.subscription.send_control(frame)

    def _replace_claims(self, claims: Claims) -> None:
        self.subscription.claims = claims
        super()._replace_claims(claims)

    async def authorize(self, claims: Claims) -> None:
        await self._access.authorize(claims, "subscribe", self.room)
        if self.wants_presence:
            await self._access.authorize(claims, "presence", self.room)

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
