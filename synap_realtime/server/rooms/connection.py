"""A connection with many rooms: each is subscribed, authorized and ended by itself.

Each room is a :class:`RoomSession`, with the same subscription as a connection of its own. The
connection has what its rooms share: the socket, the identity, and the bounds.

See PROTOCOL.md, "Many rooms on one connection".
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from operator import attrgetter
from typing import Any, Protocol

from ...errors import InvalidArgumentError
from ...protocol.actions import (
    Action,
    ActionError,
    Subscribe,
    Unsubscribe,
    parse_room_action,
)
from ...protocol.control import (
    CLOSING,
    MAX_ACTION_BYTES,
    MAX_ROOMS,
    PING,
    PONG,
    UNSUBSCRIBED,
    Ack,
    Authenticate,
    CloseCode,
    ControlFrame,
)
from ...protocol.cursor import format_positions, is_cursor, parse_cursor
from ...protocol.rooms import Room, key_of
from ...tokens import parse_device
from ..auth.authorization import AccessControl, require_scope
from ..auth.claims import Claims
from ..auth.limits import Limits
from ..deadlines import TimerQueue
from ..errors import (
    PermissionDeniedError,
    RateLimitedError,
    RejectedError,
    StoreUnavailableError,
    UnauthenticatedError,
)
from ..resources.pacing import run_eagerly
from .backlog import MAX_BACKLOG_BYTES, NULL_SINK, SLOW_CONSUMER_TIMEOUT_S
from .identity import Identity
from .room_delivery import ConnectionBacklog, ConnectionSink, RoomSink
from .room_session import RoomSession
from .sessions import Delivery, next_number

MAX_PENDING_FRAMES = 1000
"""A connection with more unsent control frames is closed as a slow consumer."""

CONCURRENT_REPLAYS = 4
"""How many rooms of a connection read their logs at a time. Each may hold a page in memory while
the peer does not read. The rooms alternate, one page each."""

MESSAGES_PER_COUNT = 4
"""So many messages of a connection with many rooms count as one of another connection."""

RETRY_AFTER_S = 1.0
"""When a client should repeat an action that the server cannot serve now."""


class Rooms(Protocol):
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
        sink: the writing side of the connection.
        transport: ``websocket`` or ``sse``.
    """

    __slots__ = (
        "_denied",
        "_ended",
        "_frames",
        "_limits",
        "_messages",
        "_number",
        "_positions",
        "_registry",
        "_rooms",
        "_slow_timer",
        "_starts",
        "_tasks",
        "_ungrouped",
        "_waiting",
        "_writes",
        "backlog",
        "began_at",
        "close_code",
        "is_draining",
        "reason",
        "replays",
        "sink",
        "transport",
    )  # fmt: skip

    def __init__(
        self,
        rooms: Rooms,
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
            rooms: opens and closes the rooms.
            clock: seconds since 1970, as the claims' expiry is.
        """
        super().__init__(claims, address, access, timers, clock)
        self.backlog = backlog
        self.began_at = clock()
        self.close_code: CloseCode | None = None
        self.is_draining = False
        self.reason = ""
        self.replays = asyncio.Semaphore(CONCURRENT_REPLAYS)
        self.sink: ConnectionSink = NULL_SINK
        self.transport = transport
        self._frames: deque[ControlFrame] = deque()  # until the sink is writable
        self._limits = limits
        self._messages = 0
        self._number = next_number()
        self._registry = rooms
        # A room is None from its action on until it is authorized.
        self._rooms: dict[Room, RoomSession | None] = {}
        self._tasks: dict[Room, asyncio.Task[None]] = {}  # they authorize a room and replay its log
        self._waiting: set[RoomSink] = set()  # they found the sink blocked
        self._ungrouped: set[RoomSink] = set()  # they left their fan-out groups when it blocked
        self._writes = 0
        self._slow_timer: asyncio.TimerHandle | None = None  # while the socket is blocked
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
            try:
                self._act(parse_room_action(message))
            except ActionError as error:
                self._reject(error)
        return None

    def _allow_message(self) -> bool:
        self._messages += 1
        return self._messages % MESSAGES_PER_COUNT != 0 or self._limits.allow_message(self._number)

    # ---- actions

    def _act(self, action: Action) -> None:
        match action:
            case Subscribe(room):
                self._start_room(action)
            case Unsubscribe(room):
                self._unsubscribe(room)
            case Ack(cursor, room) if room is not None:
                session = self._session_of(room, "ack")
                if session is not None:
                    session.subscription.acknowledge(parse_cursor(cursor))
            case Authenticate(token, None):
                self.reauthenticate(token)
            case Authenticate(token, room) if room is not None:
                session = self._session_of(room, "authenticate")
                if session is None:
                    raise _not_subscribed("authenticate", room)
                session.reauthenticate(token)

    def _session_of(self, room: Room, action: str) -> RoomSession | None:
        """Return the session of a room; None if it is not authorized yet.

        Raises:
            ActionError: the connection is not subscribed to the room.
        """
        if room not in self._rooms:
            raise _not_subscribed(action, room)
        return self._rooms[room]

    def _start_room(self, action: Subscribe) -> None:
        room = action.room
        if room in self._rooms:
            details = "room: the connection is subscribed to it; unsubscribe first"
            raise ActionError("already_subscribed", details, action="subscribe", room=room)
        if len(self._rooms) >= MAX_ROOMS:
            details = f"room: a connection has at most {MAX_ROOMS} rooms; open another one"
            raise ActionError("too_many_rooms", details, action="subscribe", room=room)
        if self.is_draining:
            raise ActionError(
                "unavailable", "the server is shutting down",
                action="subscribe", room=room, retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        self._check_names(action)
        self._rooms[room] = None
        self._run_room(room, self._subscribe(action))

    def _check_names(self, action: Subscribe) -> None:
        """Check the device, and that neither name is a credential: presence and the log show them.

        Raises:
            ActionError: a name is invalid.
        """
        room, device = action.room, action.device
        try:
            if device is not None:
                parse_device(device)
        except InvalidArgumentError as error:
            details = f"device: {error.problem}"
            raise ActionError("invalid_request", details, action="subscribe", room=room) from None
        for name, text in (("room", key_of(room)), ("device", device)):
            if text is not None and self._access.is_credential(text):
                details = f"{name}: this is a credential; send it as token"
                raise ActionError("invalid_request", details, action="subscribe", room=room)

    def _run_room(self, room: Room, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks[room] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda done: self._forget_task(room, done))

    def _forget_task(self, room: Room, task: asyncio.Task[None]) -> None:
        if self._tasks.get(room) is task:
            del self._tasks[room]

    async def _subscribe(self, action: Subscribe) -> None:
        """Authorize a room, and replay its log."""
        room = action.room
        try:
            claims = await self._admit(action)
            session = self.open_room(
                room, claims, device=action.device, wants_presence=action.wants_presence,
                owns_claims=action.token is not None,
            )  # fmt: skip
        except (RejectedError, StoreUnavailableError) as error:
            del self._rooms[room]
            self._reject(_to_action_error(error, room))
            return
        await self._replay(session, action.after)

    async def _admit(self, action: Subscribe) -> Claims:
        """Authenticate and authorize a room. Return its claims.

        Raises:
            RejectedError, StoreUnavailableError: it is not allowed, or not now.
        """
        access, room = self._access, action.room
        claims = self.claims
        if action.token is None:
            self._limits.check_request(claims, self.address)
        else:
            claims = await access.authenticate_renewed(action.token, claims, self.address)
            if claims.user != self.claims.user:
                raise PermissionDeniedError("the token is another user's")
        while True:
            await access.authorize(claims, "subscribe", room)
            if action.wants_presence:
                await access.authorize(claims, "presence", room)
            if action.token is not None or claims is self.claims:
                return claims
            claims = self.claims  # renewed in the meantime

    def open_room(
        self,
        room: Room,
        claims: Claims,
        *,
        device: str | None = None,
        wants_presence: bool = False,
        owns_claims: bool = False,
    ) -> RoomSession:
        """Add an authorized room; see :meth:`Rooms.open_room`."""
        session = self._registry.open_room(
            self, room, claims,
            device=device, wants_presence=wants_presence, owns_claims=owns_claims,
        )  # fmt: skip
        self._rooms[room] = session
        return session

    async def _replay(self, session: RoomSession, after: str | None) -> None:
        """Replay the log of a room. Then it is live. Other rooms do not wait for it."""
        try:
            await session.subscription.run(after, session.sink)
        except StoreUnavailableError:
            session.close(CloseCode.DRAINING, "the log of the room cannot be read now")

    def _unsubscribe(self, room: Room) -> None:
        session = self._session_of(room, "unsubscribe")
        del self._rooms[room]
        if (task := self._tasks.pop(room, None)) is not None:
            task.cancel()
        if session is not None:
            self._forget(session)
            self._registry.close(session)
        self.send_control(ControlFrame(UNSUBSCRIBED, {"room": room}))

    def _reject(self, error: ActionError) -> None:
        if error.room is not None and self._access.is_credential(key_of(error.room)):
            error.room = None
        self._registry.report(error, self)
        self.send_control(error.to_frame())

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

    async def run(self, after: str | None, sink: ConnectionSink) -> None:
        """Start to deliver.

        Args:
            after: not used: each room has its position.
            sink: receives the notifications and control frames of all rooms.
        """
        if self.close_code is not None:  # revoked while the authorizer ran
            sink.close(self.close_code)
            return
        self.sink = sink
        self.on_writable()
        for room, after in self._starts.items():
            if (session := self._rooms.get(room)) is not None:
                self._run_room(room, self._replay(session, after))

    def on_write_blocked(self) -> None:
        if self._slow_timer is None:
            loop = asyncio.get_running_loop()
            self._slow_timer = loop.call_later(
                SLOW_CONSUMER_TIMEOUT_S, self.close, CloseCode.SLOW_CONSUMER
            )

    def on_writable(self) -> None:
        """Write control frames, then let the rooms write that wait, the longest waiting first."""
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
        while self._frames and self.sink.is_writable:
            self.sink.send_control(self._frames.popleft())
        for sink in sorted(self._waiting, key=attrgetter("last_write")):
            if not self.is_writable:
                break
            self._waiting.discard(sink)
            sink.subscription.on_writable()
        if self.is_writable:
            ungrouped, self._ungrouped = self._ungrouped, set()
            for sink in ungrouped:
                sink.subscription.join_group()
            self._close_if_drained()

    def drain(self, reconnect_after_ms: int) -> None:
        if self.is_draining or self.close_code is not None:
            return
        self.is_draining = True
        data = {"code": int(CloseCode.DRAINING), "reconnectAfterMs": reconnect_after_ms}
        self.send_control(ControlFrame(CLOSING, data))
        for room, session in tuple(self._rooms.items()):
            if session is None:
                self._tasks.pop(room).cancel()
                del self._rooms[room]
            else:
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
        self.sink.close(code)

    async def wait_closed(self) -> CloseCode:
        if self._ended is None:
            self._ended = asyncio.Event()
        while self.close_code is None:
            await self._ended.wait()
        return self.close_code

    def detach(self) -> None:
        self._stop()
        self.sink = NULL_SINK

    def _stop(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            task.cancel()
        self._frames.clear()
        self._waiting.clear()
        self._ungrouped.clear()

    # ---- for the rooms

    @property
    def is_writable(self) -> bool:
        """Whether a notification can be written now. Control frames are written before."""
        return not self._frames and self.sink.is_writable

    def sessions(self) -> list[RoomSession]:
        """Return the rooms that are authorized."""
        return [session for session in self._rooms.values() if session is not None]

    def wait_writable(self, sink: RoomSink) -> None:
        """Call ``on_writable`` of the room's subscription once the connection is writable."""
        self._waiting.add(sink)

    def regroup(self, sink: RoomSink) -> None:
        """Let the room join its fan-out group again once the connection is writable."""
        self._ungrouped.add(sink)

    def count_write(self) -> int:
        """Return the number of one more write of a room."""
        self._writes += 1
        return self._writes

    def moved(self, room: Room, cursor: str) -> None:
        """Note that everything in a room of a stream up to a cursor was written."""
        self._positions[room] = cursor

    def start_at(self, room: Room, after: str | None) -> None:
        """Set where a room of an event stream starts. A cursor is its position until it moves."""
        self._starts[room] = after
        if after is not None and is_cursor(after):
            self._positions[room] = after

    def send_control(self, frame: ControlFrame) -> None:
        """Send a control frame as soon as the socket is writable, between notifications."""
        if self.close_code is not None:
            return
        if self.is_writable:
            self.sink.send_control(frame)
            return
        self._frames.append(frame)
        if len(self._frames) > MAX_PENDING_FRAMES:
            self.close(CloseCode.SLOW_CONSUMER)

    def bound_backlog(self) -> None:
        """End the room with the largest backlog while the connection holds too much."""
        while self.backlog.bytes > MAX_BACKLOG_BYTES:
            sessions = self.sessions()
            largest = max(sessions, key=lambda each: each.subscription.backlog_bytes, default=None)
            if largest is None or not largest.subscription.backlog_bytes:
                return  # it holds pages of replays only, whose number is bounded
            largest.close(CloseCode.SLOW_CONSUMER)

    def on_room_closed(self, sink: RoomSink, code: CloseCode) -> None:
        """End a room whose subscription was closed by the server."""
        session = self._rooms.get(sink.room)
        if self.close_code is not None or session is None or session.sink is not sink:
            return
        reason = session.subscription.reason
        del self._rooms[sink.room]
        self._forget(session)
        self._registry.close_soon(session)
        if self.is_draining:
            self._close_if_drained()
        elif self.ends_with_room:
            self.close(code, reason)
        else:
            data = {"room": sink.room, "code": int(code), "reason": reason}
            if sink.resubscribe_after_ms is not None:
                data["reconnectAfterMs"] = sink.resubscribe_after_ms
            self.send_control(ControlFrame(UNSUBSCRIBED, data))

    def _forget(self, session: RoomSession) -> None:
        self._waiting.discard(session.sink)
        self._ungrouped.discard(session.sink)

    def _close_if_drained(self) -> None:
        if self.is_draining and not self._rooms and not self._frames:
            self.close(CloseCode.DRAINING)


def _not_subscribed(action: str, room: Room) -> ActionError:
    details = "room: the connection is not subscribed to it"
    return ActionError("not_subscribed", details, action=action, room=room)


def _to_action_error(error: RejectedError | StoreUnavailableError, room: Room) -> ActionError:
    """Return the error that answers a subscribe action."""
    details, action = str(error), "subscribe"
    match error:
        case UnauthenticatedError():
            return ActionError("unauthorized", details, action=action, room=room)
        case PermissionDeniedError():
            return ActionError("forbidden", details, action=action, room=room)
        case RateLimitedError():
            after_s = error.retry_after_s
            return ActionError(
                "rate_limited", details, action=action, room=room, retry_after_s=after_s
            )
        case _:
            after_s = RETRY_AFTER_S
            return ActionError(
                "unavailable", details, action=action, room=room, retry_after_s=after_s
            )
