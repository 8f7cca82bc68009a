"""The handshakes of subscribers: from a WebSocket or event-stream request to a session.

See PROTOCOL.md, "Subscribing".
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Mapping
from typing import NamedTuple, NoReturn

from ...protocol.control import MAX_STREAM_ROOMS, CloseCode
from ...protocol.cursor import is_cursor, parse_positions
from ...protocol.rooms import Room, key_of
from ..auth.authorization import AccessControl, Action
from ..auth.claims import Claims
from ..auth.limits import Limits
from ..errors import (
    PermissionDeniedError,
    RejectedError,
    StoreUnavailableError,
    UnauthenticatedError,
    UserConnectionLimitError,
)
from ..messages import (
    Request,
    RequestError,
    Response,
    bad_request,
    parse_cursor_param,
    parse_device_param,
    parse_room_param,
)
from ..rooms.registry import SessionRegistry
from ..rooms.replay import UNKNOWN_POSITION
from ..rooms.sessions import ClientConnection, Session
from .in_flight import InFlight

SSE_RETRY_MS = 1000
"""The delay after which a browser reconnects when an event stream has ended, in milliseconds."""

MAX_STREAM_ROOM_CHARACTERS = 1536
"""The maximum length of all rooms of a stream together. They are part of the id of each event."""

_EVENT_STREAM = "text/event-stream; charset=utf-8"
_EVENT_STREAM_HEADERS = {
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # read by nginx and other proxies
}


class AcceptedSubscription(NamedTuple):
    """A subscriber that was admitted.

    Attributes:
        session: pass it to :meth:`SessionRegistry.close` when the connection has ended.
        after: the position where it starts; None if it has many rooms.
        head: the status and the headers of an event stream; None for a WebSocket.
    """

    session: ClientConnection
    after: str | None
    head: Response | None = None

    def with_headers(self, headers: Mapping[str, str]) -> AcceptedSubscription:
        """Return a copy whose event stream has these headers, too."""
        if self.head is None:
            return self
        return self._replace(head=self.head.with_headers(headers))


class CloseHandshakeError(Exception):
    """A handshake that has to be accepted and then closed with a code.

    A page cannot read the response to a rejected handshake. It can read a close code, which says
    whether to reconnect.

    Attributes:
        code: the close code.
        reason: the cause, as text.
        user: for the log, the user of a token that is no longer valid.
    """

    def __init__(self, code: CloseCode, reason: str, *, user: str | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.reason = reason
        self.user = user


class SubscribeService:
    """Admits the subscribers of one node."""

    def __init__(
        self,
        sessions: SessionRegistry,
        access: AccessControl,
        in_flight: InFlight,
        limits: Limits,
    ) -> None:
        self._sessions = sessions
        self._access = access
        self._in_flight = in_flight
        self._limits = limits

    def accept_websocket(self, request: Request) -> Awaitable[AcceptedSubscription]:
        """Handle the WebSocket handshake of ``/rooms/{room}/subscribe``.

        Raises:
            CloseHandshakeError: accept the handshake, then close it with this code.
            RequestError, RejectedError, StoreUnavailableError: reject the handshake.
        """
        params = parse_subscribe_params(request.path_segments[1], request.query)
        if params.wants_presence and not request.supports_control_frames:
            raise bad_request(
                "Presence requires subprotocol synap.v1",
                "presence: offer the subprotocol synap.v1",
            )
        return self._or_close(request, self._accept_room(request, params))

    async def accept_connection(self, request: Request) -> AcceptedSubscription:
        """Handle the WebSocket handshake of ``/subscribe``: a connection with many rooms.

        Raises:
            CloseHandshakeError, RequestError, RejectedError, StoreUnavailableError: as
                :meth:`accept_websocket`.
        """
        if not request.supports_control_frames:
            raise bad_request(
                "Subprotocol synap.v2 required",
                "offer the subprotocol synap.v2, or subscribe at /rooms/{room}/subscribe",
            )
        return await self._or_close(request, self._accept_connection(request))

    async def _accept_room(self, request: Request, params: SubscribeParams) -> AcceptedSubscription:
        self._in_flight.ensure_accepting()
        claims = await self._admit(request, params)
        session = await self._open(request, params, claims, "websocket")
        return AcceptedSubscription(session, params.after)

    async def _accept_connection(self, request: Request) -> AcceptedSubscription:
        self._in_flight.ensure_accepting()
        claims = await self._access.authenticate_counted(request)
        connection = await self._sessions.open_connection(
            claims, request.address, transport="websocket"
        )
        return AcceptedSubscription(connection, None)

    async def _or_close(
        self, request: Request, accepting: Awaitable[AcceptedSubscription]
    ) -> AcceptedSubscription:
        """Accept a WebSocket. Translate the errors that a page has to be able to read."""
        try:
            return await accepting
        except UserConnectionLimitError as error:
            raise CloseHandshakeError(CloseCode.CONNECTION_LIMIT, error.details) from None
        except UnauthenticatedError as error:
            if "origin" not in request.headers:
                raise
            raise CloseHandshakeError(
                CloseCode.UNAUTHORIZED, error.details, user=error.user
            ) from None
        except PermissionDeniedError as error:
            if "origin" not in request.headers:
                raise
            raise CloseHandshakeError(CloseCode.FORBIDDEN, error.details) from None

    async def reject_plain_request(self, request: Request) -> NoReturn:
        """Handle a request for ``…/subscribe`` that is not a WebSocket handshake.

        Raises:
            RequestError: 426, or another one.
        """
        self._limits.check_request(None, request.address)
        if len(request.path_segments) > 1:
            parse_room_param(request.path_segments[1])
        raise RequestError(
            426,
            "upgrade_required",
            "Expected WebSocket upgrade",
            "open this address as a WebSocket, ws:// or wss://",
            {"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    async def accept_event_stream(self, request: Request) -> Response | AcceptedSubscription:
        """Handle ``GET /rooms/{room}/events``.

        Raises:
            RequestError, RejectedError, StoreUnavailableError: reject the request.
        """
        if last := request.headers.get("last-event-id"):
            # A page cannot choose this header. So an invalid one is a lost position, not a 400.
            request.query["after"] = last if is_cursor(last) else "earliest"
        params = parse_subscribe_params(request.path_segments[1], request.query)
        after = UNKNOWN_POSITION if last and not is_cursor(last) else params.after
        claims = await self._admit(request, params)
        if request.method == "HEAD":
            return _event_stream()
        if self._in_flight.is_draining:
            return _ended_event_stream()
        try:
            session = await self._open(request, params, claims, "sse")
        except StoreUnavailableError:
            return _ended_event_stream()
        return AcceptedSubscription(session, after, _event_stream())

    async def accept_stream_of_rooms(self, request: Request) -> Response | AcceptedSubscription:
        """Handle ``GET /events``: an event stream with many rooms.

        Raises:
            RequestError, RejectedError, StoreUnavailableError: reject the request.
        """
        params = parse_stream_params(request)
        claims = await self._access.authenticate_counted(request)
        rooms = list(params)
        actions: list[Action] = ["subscribe"]
        if params[rooms[0]].wants_presence:
            actions.append("presence")
        for action in actions:
            denied = await self._access.authorize_many(claims, action, rooms)
            for error in denied.values():
                raise error
        for each in params.values():
            self._check_names(each)
        if request.method == "HEAD":
            return _event_stream()
        if self._in_flight.is_draining:
            return _ended_event_stream()
        try:
            connection = await self._sessions.open_connection(
                claims, request.address, transport="sse"
            )
        except StoreUnavailableError:
            return _ended_event_stream()
        try:
            for room, each in params.items():
                connection.open_at(
                    room, each.after, device=each.device, wants_presence=each.wants_presence
                )
        except RejectedError:
            self._sessions.close(connection)
            raise
        return AcceptedSubscription(connection, None, _event_stream())

    async def _admit(self, request: Request, params: SubscribeParams) -> Claims:
        """Authenticate and authorize a subscriber."""
        claims = await self._access.authenticate_counted(request)
        await self._access.authorize(claims, "subscribe", params.room)
        if params.wants_presence:
            await self._access.authorize(claims, "presence", params.room)
        self._check_names(params)
        return claims

    def _check_names(self, params: SubscribeParams) -> None:
        """Check that neither the room nor the device is a credential: the log would show them.

        Raises:
            RequestError: 400.
        """
        for name, text in (("room", key_of(params.room)), ("device", params.device)):
            if text is not None and self._access.is_credential(text):
                details = f"{name}: this is a credential; send it as Authorization: Bearer …"
                raise bad_request("Credential in the wrong place", details)

    def _open(
        self, request: Request, params: SubscribeParams, claims: Claims, transport: str
    ) -> Awaitable[Session]:
        is_websocket = transport == "websocket"
        return self._sessions.open(
            params.room,
            claims,
            request.address,
            transport=transport,
            device=params.device,
            acknowledges=is_websocket and request.supports_control_frames,
            wants_presence=params.wants_presence,
        )


def _event_stream(body: bytes = b"") -> Response:
    return Response(200, body, _EVENT_STREAM_HEADERS, _EVENT_STREAM)


def _ended_event_stream() -> Response:
    """Return an event stream that ends. A browser reconnects after it, but not after a 503."""
    return _event_stream(f"retry: {SSE_RETRY_MS + secrets.randbelow(SSE_RETRY_MS)}\n\n".encode())


class SubscribeParams(NamedTuple):
    """The parameters of a subscription: room, position, device, and whether it wants presence."""

    room: Room
    after: str | None
    device: str | None
    wants_presence: bool


def parse_subscribe_params(segment: str, query: dict[str, str]) -> SubscribeParams:
    """Parse the parameters of a subscription.

    Raises:
        RequestError: a parameter is invalid.
    """
    room = parse_room_param(segment)
    after = query.get("after")
    if after not in (None, *_POSITIONS):
        parse_cursor_param(after)
    return SubscribeParams(room, after, parse_device_param(query), _parse_presence(query))


def parse_stream_params(request: Request) -> dict[Room, SubscribeParams]:
    """Parse the parameters of an event stream with many rooms. Return those of each room.

    Raises:
        RequestError: a parameter is invalid.
    """
    query = request.query
    rooms = dict.fromkeys(parse_room_param(text) for text in request.values("room"))
    if not 1 <= len(rooms) <= MAX_STREAM_ROOMS:
        details = f"room: expected 1 to {MAX_STREAM_ROOMS} parameters; got {len(rooms)}"
        raise bad_request("Invalid room", details)
    if sum(map(len, rooms)) > MAX_STREAM_ROOM_CHARACTERS:
        details = f"room: expected at most {MAX_STREAM_ROOM_CHARACTERS} characters in all rooms"
        raise bad_request("Invalid room", details)
    start, positions = _parse_stream_start(request)
    device, wants_presence = parse_device_param(query), _parse_presence(query)
    return {
        room: SubscribeParams(room, positions.get(room, start), device, wants_presence)
        for room in rooms
    }


def _parse_stream_start(request: Request) -> tuple[str | None, dict[str, str]]:
    """Return where the rooms of a stream start, and the cursors of those that have one.

    Raises:
        RequestError: ``after`` is invalid.
    """
    if last := request.headers.get("last-event-id"):
        # A page cannot choose this header. So an invalid one is a lost position, not a 400.
        positions = parse_positions(last)
        return (UNKNOWN_POSITION, {}) if positions is None else (None, positions)
    after = request.query.get("after")
    if after is None or after in _POSITIONS:
        return after, {}
    positions = parse_positions(after)
    if positions is None:
        details = "after: expected room/cursor,room/cursor…, 'earliest' or 'latest'"
        raise bad_request("Invalid positions", details)
    return None, positions


_POSITIONS = ("earliest", "latest")


def _parse_presence(query: Mapping[str, str]) -> bool:
    if (presence := query.get("presence", "0")) not in ("0", "1"):
        raise bad_request("Invalid presence", "presence: expected 0 or 1")
    return presence == "1"
