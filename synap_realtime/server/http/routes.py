"""The routes: one table from a path to its handler, and the dispatcher of all requests.

See PROTOCOL.md, "HTTP".
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from ...loopback import forwarded_for, is_visit
from ...protocol.control import CloseCode
from ...protocol.rooms import key_of
from ..auth.authorization import AccessControl, PeerInfo
from ..auth.limits import Limits
from ..errors import UnauthenticatedError
from ..logging import events
from ..messages import (
    ERRORS,
    DomainError,
    Request,
    RequestError,
    Response,
    method_not_allowed,
    to_request_error,
)
from ..metrics import Metrics
from .admin import Admin
from .jobs import JobReads
from .monitoring import MonitoringService
from .publish import PublishService
from .reads import RoomReads
from .revoke import RevokeService
from .subscribe import AcceptedSubscription, CloseHandshakeError, SubscribeService

_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "authorization, content-type, last-event-id",
    "Access-Control-Max-Age": "600",
}
_FIELD_NAMES = re.compile(r"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)
"""Comma-separated names of header fields (RFC 9110, section 5.6.2)."""
_MAX_FIELD_NAMES = 1024

RouteHandler = Callable[[Request], Awaitable[Response | AcceptedSubscription]]


class Route(NamedTuple):
    """The handlers of a path.

    Attributes:
        method: the method that the path supports; ``GET`` includes ``HEAD``.
        handle: handles a request.
        accept_websocket: handles a WebSocket handshake; None if the path supports none.
    """

    method: str
    handle: RouteHandler
    accept_websocket: Callable[[Request], Awaitable[AcceptedSubscription]] | None = None


def route_table(
    publishing: PublishService,
    subscribing: SubscribeService,
    reads: RoomReads,
    jobs: JobReads,
    revoking: RevokeService,
    monitoring: MonitoringService,
    admin: Admin | None,
) -> dict[str, Route]:
    """Return the route of each path.

    A name in braces stands for any segment of a path with two or three, and ``*`` for any other
    path.

    Args:
        admin: None disables the admin page.
    """
    routes = {
        "/rooms/{room}/broadcast": Route("POST", publishing.broadcast),
        "/rooms/{room}/subscribe": Route(
            "GET", subscribing.reject_plain_request, subscribing.accept_websocket
        ),
        "/rooms/{room}/events": Route("GET", subscribing.accept_event_stream),
        "/subscribe": Route("GET", subscribing.reject_plain_request, subscribing.accept_connection),
        "/events": Route("GET", subscribing.accept_stream_of_rooms),
        "/rooms/{room}/history": Route("GET", reads.history),
        "/rooms/{room}/presence": Route("GET", reads.presence),
        "/rooms/{room}/health": Route("GET", reads.health),
        "/jobs/{requestId}": Route("GET", jobs.job),
        "/users/{id}/jobs": Route("GET", jobs.jobs),
        "/broadcast": Route("POST", publishing.broadcast_batch),
        "/revoke": Route("POST", revoking.revoke),
        "/health": Route("GET", monitoring.health),
        "/ready": Route("GET", monitoring.ready),
        "/metrics": Route("GET", monitoring.metrics),
        "/openapi.json": Route("GET", monitoring.openapi),
    }
    if admin is not None:
        routes |= {
            "/admin": Route("GET", admin.page),
            "/admin/state": Route("GET", admin.state),
            "/admin/rooms/{room}": Route("GET", admin.room),
            "/admin/*": Route("GET", admin.reject_unknown_path),
        }
    return routes


class Router:
    """Dispatches each request to its route, and turns errors into responses."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        access: AccessControl,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        """
        Args:
            routes: see :func:`route_table`.
        """
        self._routes = {
            tuple(None if part[:1] == "{" else part for part in path[1:].split("/")): route
            for path, route in routes.items()
        }
        self._access = access
        self._limits = limits
        self._metrics = metrics

    async def handle(self, request: Request) -> Response | AcceptedSubscription:
        """Answer a request, or accept an event stream for ``/rooms/{room}/events``.

        A :class:`RequestError` that ``request.read`` raises becomes the response.
        """
        cors: dict[str, str] = {}
        result: Response | AcceptedSubscription
        try:
            self._check_peer(request)
            origin = request.headers.get("origin")
            if origin is not None:
                cors = _cors(origin)
            request.parse_target()
            if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
                self._limits.check_request(None, request.address)
                return Response(204, b"", {**cors, **_preflight(request)})
            result = await self._find(request).handle(request)
            if isinstance(result, Response):
                request.hold_response(result)
        except ERRORS as error:
            result = self._reject(request, error).response
        return result.with_headers(cors) if cors else result

    async def accept_websocket(self, request: Request) -> AcceptedSubscription:
        """Accept a WebSocket.

        Raises:
            RequestError: reject the handshake. The error was counted and logged.
            CloseHandshakeError: accept the handshake, then close it with this code.
        """
        try:
            self._check_peer(request)
            request.parse_target()
            route = self._match(request.path_segments)
            if route is None or route.accept_websocket is None:
                raise RequestError(
                    404,
                    "not_found",
                    "Not found",
                    "subscribe at /subscribe or /rooms/{room}/subscribe",
                )
            return await route.accept_websocket(request)
        except CloseHandshakeError as error:
            code = error.code.name.lower()
            self._metrics.disconnected_by_server(code)
            problem = {"code": code, "details": error.reason}
            self._log_rejected(request, problem, error.user, error.code)
            raise
        except ERRORS as error:
            raise self._reject(request, error) from None

    def record_error(
        self,
        request: Request,
        response: Response,
        user: str | None = None,
        *,
        is_routine: bool = False,
    ) -> None:
        """Count and log an error.

        Args:
            user: the user of a token that is no longer valid.
            is_routine: see :class:`RequestError`.
        """
        if response.error is not None:
            if request.claims is not None and response.status not in (429, 503):
                self._limits.count_rejection(request.claims, request.address)
            self._metrics.errored(response.error["code"])
            self._log_rejected(request, response.error, user, is_routine=is_routine)

    def _check_peer(self, request: Request) -> None:
        """Check the origin of a page, and without keys every peer.

        Raises:
            PeerRejectedError: see :meth:`AccessControl.check_peer`.
        """
        headers = request.headers
        if "origin" in headers or "sec-fetch-site" in headers or not self._access.keys():
            self._access.check_peer(peer_info(request))

    def _find(self, request: Request) -> Route:
        """Return the route of a request.

        Raises:
            RequestError: 404 or 405; 429 for an address with too many of them.
        """
        route = self._match(request.path_segments)
        if route is None:
            self._limits.check_request(None, request.address)
            raise RequestError(
                404, "not_found", "Not found", "see PROTOCOL.md, 'HTTP', for the routes"
            )
        if request.method != route.method and (request.method, route.method) != ("HEAD", "GET"):
            self._limits.check_request(None, request.address)
            raise method_not_allowed(route.method)
        return route

    def _match(self, segments: tuple[str, ...]) -> Route | None:
        find = self._routes.get
        if len(segments) == 3:  # every path with a room
            first, second, third = segments
            if route := find((first, None, third)) or find((first, second, None)):
                return route
        if len(segments) == 2 and (route := find((segments[0], None))):
            return route
        return find(segments) or find((*segments[:1], "*"))

    def _reject(self, request: Request, error: RequestError | DomainError) -> RequestError:
        """Count and log an error, and return it as an error of HTTP."""
        user = error.user if isinstance(error, UnauthenticatedError) else None
        request_error = to_request_error(error)
        is_routine = request_error.is_routine
        self.record_error(request, request_error.response, user, is_routine=is_routine)
        return request_error

    def _log_rejected(
        self,
        request: Request,
        problem: Mapping[str, str],
        user: str | None,
        code: CloseCode | None = None,
        *,
        is_routine: bool = False,
    ) -> None:
        room = request.room()
        if room is not None and self._access.is_credential(key_of(room)):
            room = None
        events.log_rejected(
            problem, request.address, room, request.claims,
            origin=request.headers.get("origin"), user=user, close_code=code,
            is_routine=is_routine,
        )  # fmt: skip


def peer_info(request: Request) -> PeerInfo:
    headers = request.headers
    return PeerInfo(
        address=request.address,
        host=headers.get("host"),
        origin=headers.get("origin"),
        forwarded_for=forwarded_for(headers),
        fetch_site=headers.get("sec-fetch-site"),
        # Opening the admin page changes nothing, so other sites may link to it.
        is_visit=request.path.endswith("/admin") and is_visit(request.method, headers),
    )


def _cors(origin: str) -> dict[str, str]:
    """Return the headers that let a page of an allowed origin read the response.

    They allow credentials, because ``EventSource`` polyfills send them (``withCredentials``). That
    grants the page nothing, because the server neither sets nor reads cookies.
    """
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Vary": "origin",
    }


def _preflight(request: Request) -> dict[str, str]:
    """Return the headers that answer a CORS preflight (Fetch standard, "CORS protocol").

    Every requested header field is allowed: polyfills add ``Cache-Control``, and tracing adds
    ``traceparent``. ``*`` would not include ``Authorization``.
    """
    requested = request.headers.get("access-control-request-headers", "")
    if len(requested) > _MAX_FIELD_NAMES or not _FIELD_NAMES.fullmatch(requested):
        return _PREFLIGHT
    return {**_PREFLIGHT, "Access-Control-Allow-Headers": requested}
