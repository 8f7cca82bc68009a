"""The sessions of this node: opened, tracked, and closed together when a token is revoked.

See PROTOCOL.md, "Subscribing" and "Revoking".
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from functools import partial

from ...protocol.actions import ActionError
from ...protocol.control import CloseCode
from ...protocol.rooms import Room, room_owner
from ..auth.authorization import AccessControl, require_scope
from ..auth.claims import UNRESTRICTED, Claims
from ..auth.limits import Limits, slot_of
from ..auth.revocations import Revocation, Revocations
from ..deadlines import TimerQueue
from ..logging import events
from ..metrics import Metrics
from ..resources.byte_budget import BacklogBudget
from ..stores.base import Store
from .connection import Connection
from .hub import Hub
from .presence import Presence
from .room_delivery import ConnectionBacklog, RoomSink, RoomSubscription
from .room_session import RoomSession
from .sessions import ClientConnection, Delivery, Session
from .subscription import Subscription


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
        self._connections: set[Connection] = set()  # each of their rooms is a session, too
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
        self._add(session)
        return session

    def _add(self, session: Session) -> None:
        """Track a session until :meth:`close`. Its user is present in the room."""
        self._open.add(session)
        events.log_opened(
            session.room, session.claims, session.address, session.device, session.transport
        )
        # Revoked since the request was authorized.
        if not self._access.is_still_valid(session.claims):
            session.close(CloseCode.REVOKED)
        if session.user is not None:
            self._presence.join(session.room, session.user, session.device)
        if session.wants_presence:
            count_read = partial(self._count_read, session.claims, session.address)
            self._presence.watch(session.room, session, count_read)

    async def open_connection(
        self, claims: Claims, address: str | None, *, transport: str
    ) -> Connection:
        """Open a connection without rooms. Call :meth:`close` when it has ended.

        Args:
            claims: of the client.
            transport: ``websocket`` or ``sse``.

        Raises:
            PermissionDeniedError: the credential does not allow subscribing.
            RateLimitedError: a connection limit is reached.
            UserConnectionLimitError: the user has too many connections.
            StoreUnavailableError: the connections of the user cannot be counted now.
        """
        require_scope(claims, "subscribe")
        await self._limits.admit(claims, None, address)
        self._metrics.connected(transport)
        connection = Connection(
            self, claims, self._access, self._limits, self._timers,
            address=address, transport=transport,
            backlog=ConnectionBacklog(self._backlogs),
        )  # fmt: skip
        self._connections.add(connection)
        events.log_opened(None, claims, address, None, transport)
        # Revoked since the request was authorized.
        if not self._access.is_still_valid(claims):
            connection.close(CloseCode.REVOKED)
        return connection

    def open_room(
        self,
        connection: Connection,
        room: Room,
        claims: Claims,
        *,
        device: str | None,
        wants_presence: bool,
        owns_claims: bool,
    ) -> RoomSession:
        """See :class:`connection.RoomOpener`."""
        self._limits.admit_room(room)
        device = claims.device or device
        sink = RoomSink(connection, room)
        sink.subscription = subscription = RoomSubscription(
            connection, self._store, self._hub, room, self._metrics,
            device=device, acknowledges=connection.transport == "websocket",
            budget=connection.backlog, claims=claims, address=connection.address,
            count_read=self._count_read,
        )  # fmt: skip
        session = RoomSession(
            connection, sink, subscription, claims, self._access, self._timers,
            owns_claims=owns_claims, device=device, wants_presence=wants_presence,
            # Without keys there are no identities: a user's room stands for its user.
            user=room_owner(room) if claims is UNRESTRICTED else claims.user,
        )  # fmt: skip
        self._add(session)
        return session

    def close(self, peer: ClientConnection) -> None:
        """Release what a session or a connection holds. It has ended.

        A second call has no effect.
        """
        if isinstance(peer, Session):
            self._close_session(peer)
        elif isinstance(peer, Connection):
            self._close_connection(peer)
        self._left.set()

    def _close_session(self, session: Session) -> None:
        if session not in self._open:
            return
        self._open.discard(session)
        session.end()
        subscription, room = session.subscription, session.room
        subscription.detach()
        if session.wants_presence:
            self._presence.unwatch(room, session)
        if session.user is not None:
            self._presence.leave(room, session.user, session.device)
        if session.is_connection:
            self._metrics.disconnected(session.transport)
            self._limits.release(slot_of(session.claims, room, session.address))
        else:
            self._limits.release_room(room)
        if (code := session.close_code) is not None:
            self._metrics.disconnected_by_server(code.name.lower())
        lasted_s = time.time() - session.began_at
        events.log_closed(
            room, session.claims, session.address, session.device, code, subscription.reason,
            lasted_s,
        )  # fmt: skip

    def _close_connection(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        connection.end()
        connection.detach()
        for session in connection.sessions():
            self._close_session(session)
        self._metrics.disconnected(connection.transport)
        self._limits.release(slot_of(connection.claims, None, connection.address))
        if (code := connection.close_code) is not None:
            self._metrics.disconnected_by_server(code.name.lower())
        lasted_s = time.time() - connection.began_at
        events.log_closed(
            None, connection.claims, connection.address, None, code, connection.reason, lasted_s
        )

    def close_soon(self, peer: ClientConnection) -> None:
        """Do the same without waiting for the peer to close the connection.

        Not immediately, as a broadcast to the room may be in progress.
        """
        asyncio.get_running_loop().call_soon(self.close, peer)

    def report(self, error: ActionError, connection: Connection) -> None:
        """See :class:`connection.RoomOpener`."""
        self._metrics.errored(error.code)
        if error.code not in ("rate_limited", "unavailable"):
            self._limits.count_rejection(connection.claims, connection.address)
        problem = {"error": "Invalid action", "code": error.code, "details": error.details}
        events.log_rejected(problem, connection.address, error.room, connection.claims)

    def in_room(self, room: Room) -> list[Session]:
        """Return the sessions of a room."""
        return [session for session in self._open if session.room == room]

    def count(self) -> dict[str, int]:
        """Return the number of sessions by transport."""
        found = {"websocket": 0, "sse": 0}
        for peer in self._peers():
            found[peer.transport] += 1
        return found

    def deliveries(self) -> list[Delivery]:
        """Return what delivers to each connection."""
        return [peer.delivery for peer in self._peers()]

    def _peers(self) -> list[ClientConnection]:
        """Return the connections."""
        alone: list[ClientConnection] = [session for session in self._open if session.is_connection]
        return alone + list(self._connections)

    def close_untrusted(self) -> int:
        """Close the connections whose signing key was removed. Return how many.

        The close code is 4401, not 4504: the user was not revoked, and can reconnect with a token
        that another key has signed.
        """
        return self._close_all(
            lambda claims: not self._access.vouches_for(claims),
            CloseCode.TOKEN_EXPIRED,
            "the token's key was removed",
        )

    async def wait_drained(self, end: float) -> None:
        """Wait until all sessions are closed.

        Args:
            end: stop waiting at this time of the event loop's clock.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                while self._open or self._connections:
                    self._left.clear()
                    await self._left.wait()

    def stop(self) -> None:
        """Stop the expiry timers."""
        self._timers.close()

    def _close_revoked(self, revocation: Revocation) -> int:
        return self._close_all(revocation.matches, CloseCode.REVOKED)

    def _close_all(
        self, matches: Callable[[Claims], bool], code: CloseCode, reason: str | None = None
    ) -> int:
        """Close what has claims that match. Return how many connections and rooms.

        A room that ends with its connection does not count.
        """
        count = 0
        peers: list[ClientConnection] = [*self._connections, *self._open]
        for peer in peers:
            if peer.owns_claims and peer.delivery.close_code is None and matches(peer.claims):
                peer.close(code, reason)
                count += 1
        return count
