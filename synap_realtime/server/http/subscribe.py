"""The handshakes of subscribers: from a WebSocket or event-stream request to a session.

See PROTOCOL.md, "Subscribing".
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from ...protocol.control import CloseCode
from ...protocol.cursor import is_cursor
from ...protocol.rooms import Room, key_of
from ..auth.authorization import AccessControl
from ..auth.claims import Claims
from ..auth.limits import Limits
from ..errors import (
    PermissionDeniedError,
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
from ..rooms.sessions import Session, SessionRegistry
from ..rooms.subscription import UNKNOWN_POSITION
from .in_flight import InFlight

SSE_RETRY_MS = 1000
"""The delay after which a browser reconnects when an event stream has ended, in milliseconds."""

_EVENT_STREAM = "text/event-stream; charset=utf-8"
_EVENT_STREAM_HEADERS = {
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # read by nginx and other proxies
}


@dataclass(frozen=True, slots=True)
class AcceptedSubscription:
    """A subscriber that was admitted.

    Attributes:
        session: pass it to :meth:`SessionRegistry.close` when the connection has ended.
        after: the position where it starts.
        head: the status and the headers of an event stream; None for a WebSocket.
    """

    session: Session
    after: str | None
    head: Response | None = None

    def with_headers(self, headers: Mapping[str, str]) -> AcceptedSubscription:
        """Return a copy whose event stream has these headers, too."""
        if self.head is None:
            return self
        return dataclasses.replace(self, head=self.head.with_headers(headers))


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

    async def accept_websocket(self, request: Request) -> AcceptedSubscription:
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
        self._in_flight.ensure_accepting()
        try:
            claims = await self._admit(request, params)
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
        try:
            session = await self._open(request, params, claims, "websocket")
        except UserConnectionLimitError as error:
            raise CloseHandshakeError(CloseCode.CONNECTION_LIMIT, error.details) from None
        return AcceptedSubscription(session, params.after)

    async def reject_plain_request(self, request: Request) -> NoReturn:
        """Handle a request for ``/rooms/{room}/subscribe`` that is not a WebSocket handshake.

        Raises:
            RequestError: 426, or another one.
        """
        self._limits.check_request(None, request.address)
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

    async def _admit(self, request: Request, params: SubscribeParams) -> Claims:
        """Authenticate and authorize a subscriber."""
        claims = await self._access.authenticate_counted(request)
        await self._access.authorize(claims, "subscribe", params.room)
        if params.wants_presence:
            await self._access.authorize(claims, "presence", params.room)
        # The log would show the room and the device.
        for name, text in (("room", key_of(params.room)), ("device", params.device)):
            if text is not None and self._access.is_credential(text):
                details = f"{name}: this is a credential; send it as Authorization: Bearer …"
                raise bad_request("Credential in the wrong place", details)
        return claims

    async def _open(
        self, request: Request, params: SubscribeParams, claims: Claims, transport: str
    ) -> Session:
        is_websocket = transport == "websocket"
        return await self._sessions.open(
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


@dataclass(frozen=True, slots=True)
class SubscribeParams:
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
    if after not in (None, "earliest", "latest"):
        parse_cursor_param(after)
    if (presence := query.get("presence", "0")) not in ("0", "1"):
        raise bad_request("Invalid presence", "presence: expected 0 or 1")
    return SubscribeParams(room, after, parse_device_param(query), wants_presence=presence == "1")
