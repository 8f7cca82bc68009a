"""A connection with many rooms: its identity, its delivery, and the bounds that its rooms share.

Each room is a :class:`RoomSession`, with the same subscription as a connection of its own. It is
subscribed, authorized and ended by itself.

See PROTOCOL.md, "Many rooms on one connection".
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from ...protocol.actions import ActionError
from ...protocol.control import (
    CLOSING,
    MAX_ACTION_BYTES,
    PING,
    PONG,
    UNSUBSCRIBED,
    CloseCode,
    ControlFrame,
)
from ...protocol.cursor import format_positions, is_cursor
from ...protocol.rooms import Room
from ..auth.authorization import AccessControl, require_scope
from ..auth.claims import Claims
from ..auth.limits import Limits
from ..deadlines import TimerQueue
from ..errors import PermissionDeniedError
from ..resources.pacing import run_eagerly
from .backlog import MAX_BACKLOG_BYTES, NULL_SINK
from .connection_rooms import ConnectionRooms
from .connection_writer import ConnectionWriter
from .identity import Identity
from .room_actions import RoomActions
from .room_delivery import ConnectionBacklog, ConnectionSink, RoomSink
from .room_session import RoomSession
from .sessions import Delivery, next_number

CONCURRENT_REPLAYS = 4
"""How many rooms of a connection read their logs at a time. Each may hold a page in memory while
the peer does not read. The rooms alternate, one page each."""

MESSAGES_PER_COUNT = 4
"""So many messages of a connection with many rooms count as one of another connection."""


class RoomOpener(Protocol):
    """Opens and closes the rooms of connections."""

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
        """Open a session for an authorized room of a connection.

        Raises:
            RateLimitedError: a limit of rooms or of connections of the room is reached.
        """
        ...

    def close(self, peer: RoomSession) -> None:
        """Release what a room holds."""
        ...

    def close_soon(self, peer: RoomSession) -> None:
        """Do the same, but not during a broadcast to the room."""
        ...

    def report(self, error: ActionError, connection: Connection) -> None:
        """Count and log the error of an action."""
        ...


class Connection(Identity):
    """A connection that is subscribed to any number of rooms, up to :data:`MAX_ROOMS`.

    It implements :class:`sessions.ClientConnection` and :class:`sessions.Delivery`, as a session
    and its subscription do for a connection with one room.

    Attributes:
        backlog: counts what is not written to it, of all rooms.
        close_code: why it was closed; None while it is open, and if the client has ended it.
        is_draining: whether it accepts no new rooms and notifications.
        reason: the same as readable text; else empty.
        replays: the permits of the rooms that read their logs.
        transport: ``websocket`` or ``sse``.
        writer: writes to the socket.
    """

    __slots__ = (
        "_actions",
        "_denied",
        "_ended",
        "_limits",
        "_messages",
        "_number",
        "_opener",
        "_positions",
        "_rooms",
        "_starts",
        "backlog",
        "began_at",
        "close_code",
        "is_draining",
        "reason",
        "replays",
        "transport",
        "writer",
    )  # fmt: skip

    def __init__(
        self,
        opener: RoomOpener,
        claims: Claims,
        access: AccessControl,
        limits: Limits,
        timers: TimerQueue,
        *,
        address: str | None,
        transport: str,
        backlog: ConnectionBacklog,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """
        Args:
            opener: opens and closes the rooms.
            clock: seconds since 1970, as the claims' expiry is.
        """
        super().__init__(claims, address, access, timers, clock)
        self.backlog = backlog
        self.began_at = clock()
        self.close_code: CloseCode | None = None
        self.is_draining = False
        self.reason = ""
        self.replays = asyncio.Semaphore(CONCURRENT_REPLAYS)
        self.transport = transport
        self.writer = ConnectionWriter(self.close)
        self._limits = limits
        self._messages = 0
        self._number = next_number()
        self._opener = opener
        self._rooms = ConnectionRooms(partial(opener.open_room, self), self._on_unsubscribed)
        self._actions = RoomActions(self, self._rooms, access, limits, self._reject)
        self._ended: asyncio.Event | None = None  # during wait_closed()
        self._denied: dict[Room, PermissionDeniedError] = {}  # by the new claims
        self._starts: dict[Room, str | None] = {}  # of the rooms of an event stream
        self._positions: dict[Room, str] = {}  # the same, where they are now
        self._schedule()

    # ---- ClientConnection

    @property
    def delivery(self) -> Delivery:
        return self

    @property
    def owns_claims(self) -> bool:
        return True

    @property
    def ends_with_room(self) -> bool:
        """Whether the end of a room ends the connection: the client of a stream has no actions."""
        return self.transport == "sse"

    @property
    def position(self) -> str | None:
        if not self.ends_with_room:
            return None
        return format_positions(self._positions)

    def start(self, after: str | None, sink: ConnectionSink) -> asyncio.Task[None] | None:
        return run_eagerly(asyncio.get_running_loop(), self.run(after, sink))

    def on_client_message(self, message: str | bytes) -> str | None:
        """Handle a message from the client: ``ping``, or an action. Return the reply to a ping.

        A binary message, one over :data:`MAX_ACTION_BYTES` and one over the rate limit close the
        connection. Every other error is answered, and harms nothing.
        """
        if isinstance(message, bytes) or len(message.encode()) > MAX_ACTION_BYTES:
            self.close(CloseCode.PROTOCOL_VIOLATION, "expected text messages of at most 12 KiB")
        elif not self._allow_message():
            self.close(CloseCode.RATE_LIMITED)
        elif message == PING:
            return PONG
        elif self.close_code is None:
            self._actions.execute(message)
        return None

    def _reject(self, error: ActionError) -> None:
        self._opener.report(error, self)
        self.send_control(error.to_frame())

    def _on_unsubscribed(self, room: Room, session: RoomSession | None) -> None:
        if session is not None:
            self.writer.forget(session.sink)
            self._opener.close(session)
        self.send_control(ControlFrame(UNSUBSCRIBED, {"room": room}))

    def _allow_message(self) -> bool:
        self._messages += 1
        return self._messages % MESSAGES_PER_COUNT != 0 or self._limits.allow_message(self._number)

    # ---- Identity

    async def authorize(self, claims: Claims) -> None:
        require_scope(claims, "subscribe")
        denied: dict[Room, PermissionDeniedError] = {}
        checked: set[Room] = set()
        # More rooms may be subscribed during the check.
        while sessions := [each for each in self._sharing() if each.room not in checked]:
            rooms = [each.room for each in sessions]
            checked.update(rooms)
            watched = [each.room for each in sessions if each.wants_presence]
            try:
                denied |= await self._access.authorize_many(claims, "presence", watched)
            except PermissionDeniedError as error:
                denied |= dict.fromkeys(watched, error)
            denied |= await self._access.authorize_many(claims, "subscribe", rooms)
        self._denied = denied

    def _replace_claims(self, claims: Claims) -> None:
        super()._replace_claims(claims)
        denied, self._denied = self._denied, {}
        for session in self._sharing():
            session.share_claims(claims)
            if (error := denied.get(session.room)) is not None:
                session.close(CloseCode.FORBIDDEN, error.details)

    def _sharing(self) -> list[RoomSession]:
        """Return the rooms without a token of their own."""
        return [each for each in self.sessions() if not each.owns_claims]

    # ---- Delivery

    async def run(self, after: str | None, sink: ConnectionSink) -> None:  # noqa: ARG002 - see below
        """Start to deliver.

        Args:
            after: not used: each room has its position.
            sink: receives the notifications and control frames of all rooms.
        """
        if self.close_code is not None:  # revoked while the authorizer ran
            sink.close(self.close_code)
            return
        self.writer.sink = sink
        self.on_writable()
        for room, start in self._starts.items():
            if (session := self._rooms.find(room)) is not None:
                self._rooms.start_replay(session, start)

    def on_write_blocked(self) -> None:
        self.writer.on_write_blocked()

    def on_writable(self) -> None:
        self.writer.on_writable()
        if self.writer.is_writable:
            self._close_if_drained()

    def drain(self, reconnect_after_ms: int) -> None:
        if self.is_draining or self.close_code is not None:
            return
        self.is_draining = True
        data = {"code": int(CloseCode.DRAINING), "reconnectAfterMs": reconnect_after_ms}
        self.send_control(ControlFrame(CLOSING, data))
        self._rooms.abandon_unauthorized()
        for session in self.sessions():
            session.subscription.drain(reconnect_after_ms)
        self._close_if_drained()

    def close(self, code: CloseCode, reason: str | None = None) -> None:
        if self.close_code is not None:
            return
        self.close_code = code
        self.reason = reason or code.reason
        self._stop()
        for session in self.sessions():
            session.subscription.close(code, self.reason)
        if self._ended is not None:
            self._ended.set()
        self.writer.sink.close(code)

    async def wait_closed(self) -> CloseCode:
        if self._ended is None:
            self._ended = asyncio.Event()
        while self.close_code is None:
            await self._ended.wait()
        return self.close_code

    def detach(self) -> None:
        self._stop()
        self.writer.sink = NULL_SINK

    def _stop(self) -> None:
        self._rooms.stop()
        self.writer.stop()

    # ---- for the rooms

    def sessions(self) -> list[RoomSession]:
        """Return the rooms that are authorized."""
        return self._rooms.sessions()

    def moved(self, room: Room, cursor: str) -> None:
        """Note that everything in a room of a stream up to a cursor was written."""
        self._positions[room] = cursor

    def open_at(
        self, room: Room, after: str | None, *, device: str | None, wants_presence: bool
    ) -> None:
        """Add an authorized room of an event stream, whose rooms are fixed.

        Args:
            after: where it starts. A cursor is the room's position until it moves.
            device, wants_presence: see :meth:`RoomOpener.open_room`.

        Raises:
            RateLimitedError: see :meth:`RoomOpener.open_room`.
        """
        self._starts[room] = after
        if after is not None and is_cursor(after):
            self._positions[room] = after
        self._rooms.open(room, self.claims, device=device, wants_presence=wants_presence)

    def send_control(self, frame: ControlFrame) -> None:
        """Send a control frame as soon as the socket is writable, between notifications."""
        if self.close_code is None:
            self.writer.send_control(frame)

    def bound_backlog(self) -> None:
        """End the room with the largest backlog while the connection holds too much.

        The backlogs are folded before, so that no room ends whose texts need only to be joined.
        """
        if self.backlog.bytes <= MAX_BACKLOG_BYTES:
            return
        for session in self.sessions():
            session.subscription.fold_backlog()
        while self.backlog.bytes > MAX_BACKLOG_BYTES:
            largest = max(self.sessions(), key=lambda each: each.subscription.backlog_bytes)
            largest.close(CloseCode.SLOW_CONSUMER)

    def on_room_closed(self, sink: RoomSink, code: CloseCode) -> None:
        """End a room whose subscription was closed by the server."""
        session = self._rooms.find(sink.room)
        if self.close_code is not None or session is None or session.sink is not sink:
            return
        reason = session.subscription.reason
        self._rooms.remove(session)
        self.writer.forget(sink)
        self._opener.close_soon(session)
        if self.is_draining:
            self._close_if_drained()
        elif self.ends_with_room:
            self.close(code, reason)
        else:
            data = {"room": sink.room, "code": int(code), "reason": reason}
            if sink.resubscribe_after_ms is not None:
                data["reconnectAfterMs"] = sink.resubscribe_after_ms
            self.send_control(ControlFrame(UNSUBSCRIBED, data))

    def _close_if_drained(self) -> None:
        if self.is_draining and not self._rooms and not self.writer.has_pending_frames:
            self.close(CloseCode.DRAINING)
