"""One node of the room server, independent of the HTTP server that moves the bytes.

``http/routes.py`` answers requests, and ``rooms/subscription.py`` decides what a subscriber
receives. This module composes them, and admits subscribers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

from ..loopback import forwarded_for, is_visit
from ..protocol.control import CloseCode
from ..protocol.cursor import is_cursor
from ..protocol.rooms import Room, key_of
from .auth import Authenticator, Claims
from .auth.authorization import AccessControl, Authorizer, PeerInfo
from .auth.limits import Limits, UserConnectionLimitError, rate_limited
from .auth.revocations import ROOM as REVOCATIONS_ROOM
from .auth.revocations import Revocations
from .config.file_watcher import CHECK_INTERVAL_S
from .config.settings import ServerSettings
from .http.admin import Admin
from .http.publish import PublishService
from .http.routes import Router
from .logging import events, faults
from .messages import (
    Request,
    RequestError,
    Response,
    bad_request,
    method_not_allowed,
    parse_cursor_param,
    parse_device_param,
    parse_room_param,
    unavailable,
)
from .metrics import Metrics
from .resources.byte_budget import Budgets
from .rooms.hub import Hub
from .rooms.presence import Presence
from .rooms.sessions import Session, SessionRegistry
from .rooms.subscription import UNKNOWN_POSITION
from .stores import open_store
from .stores.base import Entry, Retention, Store, StoreUnavailableError
from .stores.measured import InstrumentedStore
from .stores.memory import MemoryStore
from .stores.sqlite.store import SqliteStore

logger = logging.getLogger(__name__)

SSE_RETRY_MS = 1000
"""The delay after which a browser reconnects when an event stream has ended, in milliseconds."""

CLOSE_TIMEOUT_S = 2.0
"""How long the server waits to close a connection whose peer does not read."""

_DRAIN_BATCH = 100  # the smallest batch of subscribers that are drained together
_MAX_SPREAD_MS = 10_000  # the longest period over which the reconnects are spread

_EVENT_STREAM = "text/event-stream; charset=utf-8"
_EVENT_STREAM_HEADERS = {
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # read by nginx and other proxies
}
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "authorization, content-type, last-event-id",
    "Access-Control-Max-Age": "600",
}
_FIELD_NAMES = re.compile(r"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)
"""Comma-separated names of header fields (RFC 9110, section 5.6.2)."""
_MAX_FIELD_NAMES = 1024


@dataclass(frozen=True, slots=True)
class AcceptedSubscription:
    """A subscriber that was admitted.

    Attributes:
        session: pass it to :meth:`Node.close_session` when the connection has ended.
        after: the position where it starts.
        head: the status and the headers of an event stream; None for a WebSocket.
    """

    session: Session
    after: str | None
    head: Response | None = None


class CloseHandshakeError(Exception):
    """A handshake that has to be accepted and then closed with a code.

    A page cannot read the response to a rejected handshake. It can read a close code, which says
    whether to reconnect.
    """

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(code)
        self.code = code
        self.reason = reason


def open_configured_store(settings: ServerSettings) -> Store:
    """Open the store that the settings name, with the retention that they set.

    Raises:
        ConfigurationError: the URL is invalid, or the store cannot be opened.
    """
    return open_store(settings.store, retention_of(settings))


def retention_of(settings: ServerSettings) -> Retention:
    return Retention(
        settings.retention_count,
        settings.retention_s,
        settings.request_retention_s,
        max_memory_bytes=settings.max_memory_bytes,
        control_age_s=settings.revocation_retention_s(),
    )


class Node:
    """A node, with its own store and its own subscribers."""

    def __init__(
        self,
        settings: ServerSettings,
        store: Store,
        authenticator: Authenticator,
        authorizer: Authorizer | None,
        worker: int | None = None,
    ) -> None:
        own_version = version("synap-realtime")
        self._metrics = metrics = Metrics(own_version, settings.max_connections, worker)
        metrics.show_limits(settings.limits())
        self._hub = hub = Hub(metrics.delivered)
        store.subscribe(self._deliver)
        # A store of another author may use asyncio.timeout(), which needs a current task.
        self._store_needs_tasks = type(store) not in (MemoryStore, SqliteStore)
        self._store = store = InstrumentedStore(store, metrics)
        self._presence = presence = Presence()
        self._limits = limits = Limits(settings)
        self.budgets = budgets = Budgets(settings, metrics)
        self._revocations = revocations = Revocations(
            store, leeway_s=settings.token_leeway_s, kept_s=settings.revocation_retention_s()
        )
        self._settings = settings
        self._authenticator = authenticator
        self._access = access = AccessControl(
            authenticator,
            revocations,
            limits,
            allowed_origins=settings.allowed_origins,
            authorizer=authorizer,
        )
        self._sessions = SessionRegistry(
            store, hub, presence, access, revocations, limits, budgets.backlogs, metrics
        )
        admin = None
        if settings.admin:
            admin = Admin(
                hub,
                self._sessions,
                access,
                metrics,
                version=own_version,
                description=store.description,
            ).handle
        self._publishing = publishing = PublishService(store, access, limits, metrics)
        self._api = Router(
            store, hub, presence, access, publishing, revocations, limits, metrics, admin
        )
        self._keys_timer: asyncio.TimerHandle | None = None

    def _deliver(self, room: Room, entry: Entry, published_at: float | None) -> int:
        """Deliver an entry of the store's log: the one handler of all publishes."""
        if room == REVOCATIONS_ROOM:
            return self._revocations.apply(entry)
        return self._hub.broadcast(room, entry, published_at)

    @property
    def settings(self) -> ServerSettings:
        return self._settings

    @property
    def description(self) -> str:
        """The description of the store, including what a crash loses."""
        return self._store.description

    def summary(self) -> dict[str, object]:
        """Return the main settings for the log: numbers and names, never a secret."""
        settings, keys = self._settings, self._access.keys()
        return {
            "api_keys": len(keys.api_keys),
            "token_secrets": len(keys.token_secrets),
            "jwks_urls": len(keys.jwks_urls),
            "origins": ",".join(settings.allowed_origins) or "none",
            "trusted_proxies": ",".join(settings.trusted_proxies) or "none",
            "max_connections": settings.max_connections,
            "max_connections_per_user": settings.max_connections_per_user,
            "max_connections_per_address": settings.max_connections_per_address,
            "requests_per_s": settings.requests_per_s,
            "publishes_per_s": settings.publishes_per_s,
        }

    @property
    def has_keys(self) -> bool:
        """Whether the server authenticates. Without keys, it accepts only loopback clients."""
        return bool(self._access.keys())

    def may_block(self) -> bool:
        """Whether serving a request may await something that requires a current task."""
        return self._store_needs_tasks or self._access.may_block()

    def monitor_event_loop(self) -> None:
        """Start to monitor the running event loop and the keys. Further calls do nothing."""
        self._metrics.monitor_loop()
        if self._keys_timer is None:
            self._watch_keys(asyncio.get_running_loop())

    def _watch_keys(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close the connections of a removed key within a second, without waiting for a request."""
        self._keys_timer = loop.call_later(CHECK_INTERVAL_S, self._watch_keys, loop)
        if self._access.refresh_keys() and (closed := self._sessions.close_untrusted()):
            logger.warning("key removed: closed its connections; connections=%d", closed)

    async def handle(self, request: Request) -> Response | AcceptedSubscription:
        """Answer a request, or accept an event stream for ``/rooms/{room}/events``.

        A :class:`RequestError` that ``request.read`` raises becomes the answer.
        """
        cors: dict[str, str] = {}
        try:
            origin = request.headers.get("origin")
            if origin is not None or "sec-fetch-site" in request.headers or not self._access.keys():
                self._access.check_peer(peer_info(request))
            if origin is not None:
                cors = _cors(origin)
            request.parse_target()
            if request.method == "OPTIONS" and "access-control-request-method" in request.headers:
                self._limits.check_request(None, request.address)
                return Response(204, b"", {**cors, **_preflight(request)})
            segments = request.path_segments
            if len(segments) == 3 and segments[0] == "rooms" and segments[2] == "events":
                if request.method not in ("GET", "HEAD"):
                    raise method_not_allowed("GET")
                return await self._open_event_stream(request, segments[1], cors)
            response = await self._api.handle(request)
            self.admit_answer(request, response)
        except RequestError as error:
            response = error.response
        except StoreUnavailableError as error:
            response = unavailable(str(error)).response
        if response.error is not None:
            self.record_error(request, response)
        return response.with_headers(cors) if cors else response

    def admit_answer(self, request: Request, response: Response) -> None:
        """Check that an answer can be held for its peer. The mounted app overrides this.

        Raises:
            RequestError: the answer exceeds a byte budget.
        """

    async def accept_websocket(self, request: Request) -> AcceptedSubscription:
        """Accept a WebSocket.

        Raises:
            RequestError: reject the handshake. The error was counted and logged.
            CloseHandshakeError: accept the handshake, then close it with this code.
        """
        try:
            return await self._open_websocket(request)
        except UserConnectionLimitError as error:
            code = CloseCode.CONNECTION_LIMIT
            cause = f"connection limit: at most {error.limit} connections per user"
        except RequestError as error:
            codes = {401: CloseCode.UNAUTHORIZED, 403: CloseCode.FORBIDDEN}
            status = error.response.status
            if not error.is_auth_error or "origin" not in request.headers or status not in codes:
                self.record_error(request, error.response)
                raise
            code, cause = codes[status], error.body["details"]
        except StoreUnavailableError as error:
            raise self._record_error(request, unavailable(str(error))) from None
        reason = code.name.lower()
        self._metrics.disconnected_by_server(reason)
        self._log_rejected(request, {"code": reason, "details": cause}, code)
        raise CloseHandshakeError(code, cause)

    def close_session(self, session: Session) -> None:
        """Remove a session whose connection has ended. A second call does nothing."""
        self._sessions.close(session)

    def close_session_soon(self, session: Session) -> None:
        """Remove a session without waiting for the peer to close the connection.

        Not immediately, as a broadcast to the room may be in progress.
        """
        asyncio.get_running_loop().call_soon(self.close_session, session)

    def record_error(self, request: Request, response: Response) -> None:
        """Count and log an error."""
        if response.error is not None:
            if request.claims is not None and response.status not in (429, 503):
                self._limits.count_refusal(request.claims, request.address)
            self._metrics.errored(response.error["code"])
            self._log_rejected(request, response.error)

    def _record_error(self, request: Request, error: RequestError) -> RequestError:
        self.record_error(request, error.response)
        return error

    def _log_rejected(
        self, request: Request, problem: Mapping[str, str], code: CloseCode | None = None
    ) -> None:
        room = request.room()
        if room is not None and self._access.is_credential(key_of(room)):
            room = None
        events.log_rejected(
            problem, request.address, room, request.claims,
            origin=request.headers.get("origin"), user=request.rejected_user, close_code=code,
        )  # fmt: skip

    def fault(self, what: str, error: BaseException) -> None:
        """Count an internal error, and log it in one line."""
        self._metrics.internal_errors.inc()
        faults.report(what, error)

    def bound_loop_errors(self) -> None:
        """Count errors in callbacks and tasks of the running loop, and log each in one line.

        An exception handler of the application stays.
        """
        loop = asyncio.get_running_loop()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(faults.handler(self._metrics.internal_errors.inc))

    async def drain(self) -> None:
        """Reject publishes, then close every subscriber. See PROTOCOL.md, "Draining"."""
        if self._publishing.draining:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._publishing.drain()
        subscriptions = self._sessions.subscriptions()
        spread_ms = min(_MAX_SPREAD_MS, 10 * len(subscriptions))
        size = max(_DRAIN_BATCH, len(subscriptions) // 20)
        batches = [
            subscriptions[start : start + size] for start in range(0, len(subscriptions), size)
        ]
        # Half of the time for starting the closes, the other half for slow consumers.
        pause_s = self._settings.drain_timeout_s / 2 / max(1, len(batches))
        end = asyncio.get_running_loop().time() + self._settings.drain_timeout_s
        for number, batch in enumerate(batches):
            if number:
                await asyncio.sleep(pause_s)
            for subscription in batch:
                subscription.drain(100 + secrets.randbelow(spread_ms))
        await self._sessions.wait_drained(end)
        for subscription in self._sessions.subscriptions():
            subscription.close(CloseCode.DRAINING)
        await self._sessions.wait_drained(asyncio.get_running_loop().time() + CLOSE_TIMEOUT_S)

    async def close(self) -> None:
        """Drain, then close the store."""
        await self.drain()
        self._presence.close()
        self._sessions.stop()
        self._metrics.close()
        if self._keys_timer is not None:
            self._keys_timer.cancel()
        await self._authenticator.close()
        await self._api.close()

    async def _open_websocket(self, request: Request) -> AcceptedSubscription:
        self._access.check_peer(peer_info(request))
        request.parse_target()
        match request.path_segments:
            case ("rooms", segment, "subscribe"):
                target = parse_subscribe_params(segment, request.query)
                if target.wants_presence and not request.supports_control_frames:
                    raise bad_request(
                        "Presence requires subprotocol synap.v1",
                        "presence: offer the subprotocol synap.v1",
                    )
                self._publishing.ensure_accepting()
            case _:
                raise RequestError(
                    404, "not_found", "Not found", "subscribe at /rooms/{room}/subscribe"
                )
        try:
            claims = await self._access.authenticate_counted(request)
            await self._authorize(claims, target)
            self._refuse_credential(target)
        except RequestError as error:
            error.is_auth_error = True
            raise
        session = self._sessions.open(
            target.room,
            claims,
            request.address,
            transport="websocket",
            device=target.device,
            acknowledges=request.supports_control_frames,
            wants_presence=target.wants_presence,
        )
        return AcceptedSubscription(session, target.after)

    async def _open_event_stream(
        self, request: Request, segment: str, cors: dict[str, str]
    ) -> Response | AcceptedSubscription:
        """Accept an event stream.

        Raises:
            RequestError: it is rejected.
        """
        if last := request.headers.get("last-event-id"):
            # A page cannot choose this header. So an invalid one is a lost position, not a 400.
            request.query["after"] = last if is_cursor(last) else "earliest"
        target = parse_subscribe_params(segment, request.query)
        after = UNKNOWN_POSITION if last and not is_cursor(last) else target.after
        headers = {**_EVENT_STREAM_HEADERS, **cors}
        claims = await self._access.authenticate_counted(request)
        await self._authorize(claims, target)
        self._refuse_credential(target)
        body = b"" if request.method == "HEAD" else None
        if body is None and self._publishing.draining:  # a browser does not reconnect after a 503
            body = f"retry: {SSE_RETRY_MS + secrets.randbelow(SSE_RETRY_MS)}\n\n".encode()
        answer = Response(200, body or b"", headers, _EVENT_STREAM)
        if body is not None:
            return answer
        try:
            session = self._sessions.open(
                target.room,
                claims,
                request.address,
                transport="sse",
                device=target.device,
                acknowledges=False,
                wants_presence=target.wants_presence,
            )
        except UserConnectionLimitError as error:
            raise rate_limited(f"connection limit ({error.limit}) per user reached", 10) from None
        return AcceptedSubscription(session, after, answer)

    def _refuse_credential(self, target: SubscribeParams) -> None:
        """Reject a room or a device that is a credential, which the log would show.

        Raises:
            RequestError: 400.
        """
        for name, text in (("room", key_of(target.room)), ("device", target.device)):
            if text is not None and self._access.is_credential(text):
                details = f"{name}: this is a credential; send it as Authorization: Bearer …"
                raise bad_request("Credential in the wrong place", details)

    async def _authorize(self, claims: Claims, target: SubscribeParams) -> None:
        await self._access.authorize(claims, "subscribe", target.room)
        if target.wants_presence:
            await self._access.authorize(claims, "presence", target.room)


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
