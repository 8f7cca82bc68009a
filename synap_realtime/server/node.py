"""One node: its store and its listeners, whichever front moves the bytes.

``api.py`` answers requests, ``subscription.py`` decides what a subscriber gets; here it is decided
who is let in.
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
from time import perf_counter

from ..loopback import forwarded_for, is_visit
from ..protocol.control import CloseCode
from ..protocol.cursor import is_cursor
from ..protocol.rooms import Room, key_of
from . import events, faults
from .admin import Admin
from .auth import Authenticator, Claims
from .authorization import AccessControl, Authorizer, PeerInfo
from .byte_budget import Budgets
from .config import ServerSettings
from .http.publish import PublishService
from .http.routes import Router
from .limits import Limits, UserConnectionLimitError, rate_limited
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
from .revocations import Revocations
from .rooms.hub import Hub
from .rooms.presence import Presence
from .rooms.sessions import Session, SessionRegistry
from .rooms.subscription import UNKNOWN_POSITION
from .stores.base import ClusterStore, Store, StoreUnavailableError
from .stores.measured import InstrumentedStore
from .stores.memory import MemoryStore
from .stores.sqlite.store import SqliteStore
from .watched import CHECK_INTERVAL_S

logger = logging.getLogger(__name__)

SSE_RETRY_MS = 1000
"""When a browser comes back after an event stream has ended."""

CLOSE_TIMEOUT_S = 2.0
"""How long a peer that does not read may delay its own end."""

_DRAIN_BATCH = 100  # fewer are let go at once
_MAX_SPREAD_MS = 10_000  # over which clients are asked to come back

_EVENT_STREAM = "text/event-stream; charset=utf-8"
_EVENT_STREAM_HEADERS = {
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",  # nginx, and others that learned it from nginx
}
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "authorization, content-type, last-event-id",
    "Access-Control-Max-Age": "600",
}
_FIELD_NAMES = re.compile(r"[\w!#$%&'*+.^`|~-]+(?:[ \t]*,[ \t]*[\w!#$%&'*+.^`|~-]+)*", re.ASCII)
"""Names of header fields with commas between (RFC 9110, section 5.6.2)."""
_MAX_FIELD_NAMES = 1024


@dataclass(frozen=True, slots=True)
class AcceptedSubscription:
    """A subscriber that was let in.

    Attributes:
        session: to be given back to :meth:`Node.close_session`.
        after: where it starts.
        head: of an event stream, what its answer begins with.
    """

    session: Session
    after: str | None
    head: Response | None = None


class CloseHandshakeError(Exception):
    """A handshake that is accepted and closed: a page cannot read a refusal, but it can read a
    close code, which says whether to come back."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(code)
        self.code = code
        self.reason = reason


class Node:
    """One instance is one node, with its own store and its own listeners."""

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
        hub = Hub(metrics.delivered)
        if isinstance(store, ClusterStore):
            store.subscribe(lambda room, entry: hub.broadcast(room, entry, perf_counter()))
        # A store of another author may use asyncio.timeout(), which needs a current task.
        self._store_needs_tasks = type(store) not in (MemoryStore, SqliteStore)
        self._store = store = InstrumentedStore(store, metrics)
        self._presence = presence = Presence()
        self._limits = limits = Limits(settings)
        self.budgets = budgets = Budgets(settings, metrics)
        revocations = Revocations(
            store, hub, leeway_s=settings.token_leeway_s, kept_s=settings.revocation_retention_s()
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
                hub, self._sessions, access, metrics, version=own_version, promise=store.description
            ).handle
        self._publishing = publishing = PublishService(store, hub, access, limits, metrics)
        self._api = Router(
            store, hub, presence, access, publishing, revocations, limits, metrics, admin
        )
        self._keys_timer: asyncio.TimerHandle | None = None

    @property
    def settings(self) -> ServerSettings:
        return self._settings

    @property
    def description(self) -> str:
        """Which store it runs on, and what that means for a crash."""
        return self._store.description

    def summary(self) -> dict[str, object]:
        """What is set, for the log: numbers and names, and never a secret."""
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
        """Without, it answers this machine only."""
        return bool(self._access.keys())

    def may_block(self) -> bool:
        """Whether serving a request may await something that requires a current task."""
        return self._store_needs_tasks or self._access.may_block()

    def monitor_event_loop(self) -> None:
        """Look at the running event loop, and at the keys, from now on; to call it again changes
        nothing."""
        self._metrics.monitor_loop()
        if self._keys_timer is None:
            self._watch_keys(asyncio.get_running_loop())

    def _watch_keys(self, loop: asyncio.AbstractEventLoop) -> None:
        """A key that was removed stops counting within a second, whoever asks meanwhile."""
        self._keys_timer = loop.call_later(CHECK_INTERVAL_S, self._watch_keys, loop)
        if self._access.refresh_keys() and (closed := self._sessions.close_untrusted()):
            logger.warning("connections closed: their key was removed; connections=%d", closed)

    async def handle(self, request: Request) -> Response | AcceptedSubscription:
        """Answer a request; what is asked below ``/rooms/{room}/events`` is let in as a stream.

        What ``request.read`` raises is the answer, if it is a :class:`RequestError`.
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
        """Do nothing: a front that cannot end connections overrides this.

        Raises:
            RequestError: the answer is too large for what can be held for its peer now.
        """

    async def accept_websocket(self, request: Request) -> AcceptedSubscription:
        """Let a WebSocket in.

        Raises:
            RequestError: the handshake is refused; the answer was counted and written down.
            ClosedAtOnceError: it is accepted, and closed with this code.
        """
        try:
            return await self._open_websocket(request)
        except UserConnectionLimitError as error:
            code = CloseCode.CONNECTION_LIMIT
            cause = f"connection limit: at most {error.limit} connections of a user"
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
        self._write_down(request, {"code": reason, "details": cause}, code)
        raise CloseHandshakeError(code, cause)

    def close_session(self, session: Session) -> None:
        """The connection of a session has gone; a second call changes nothing."""
        self._sessions.close(session)

    def record_error(self, request: Request, response: Response) -> None:
        """Count an error, and write it down."""
        if response.error is not None:
            if request.claims is not None and response.status not in (429, 503):
                self._limits.count_refusal(request.claims, request.address)
            self._metrics.errored(response.error["code"])
            self._write_down(request, response.error)

    def _record_error(self, request: Request, error: RequestError) -> RequestError:
        self.record_error(request, error.response)
        return error

    def _write_down(
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
        """Count an error of the server's own, and write it down in one line."""
        self._metrics.internal_errors.inc()
        faults.report(what, error)

    def bound_loop_errors(self) -> None:
        """Let errors in callbacks and tasks of the running loop be counted, and be one line each.

        An exception handler that somebody else has set stays.
        """
        loop = asyncio.get_running_loop()
        if loop.get_exception_handler() is None:
            loop.set_exception_handler(faults.handler(self._metrics.internal_errors.inc))

    async def drain(self) -> None:
        """Take no more publishes and let every subscriber go. See PROTOCOL.md, "Draining"."""
        if self._publishing.draining:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._publishing.drain()
        going = self._sessions.subscriptions()
        spread_ms = min(_MAX_SPREAD_MS, 10 * len(going))
        size = max(_DRAIN_BATCH, len(going) // 20)
        batches = [going[start : start + size] for start in range(0, len(going), size)]
        # Half of the time to let go, the other half for those who read slowly.
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
        """Drain, then let go of the store."""
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
                        "Nothing could be told", "presence: offer the subprotocol synap.v1"
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
        """
        Raises:
            RequestError: the stream cannot be.
        """
        if last := request.headers.get("last-event-id"):
            # A browser cannot choose what it sends here, so junk is a lost position, not a 400.
            request.query["after"] = last if is_cursor(last) else "earliest"
        target = parse_subscribe_params(segment, request.query)
        after = UNKNOWN_POSITION if last and not is_cursor(last) else target.after
        headers = {**_EVENT_STREAM_HEADERS, **cors}
        claims = await self._access.authenticate_counted(request)
        await self._authorize(claims, target)
        self._refuse_credential(target)
        short = b"" if request.method == "HEAD" else None
        if short is None and self._publishing.draining:  # after a 503 a browser never comes back
            short = f"retry: {SSE_RETRY_MS + secrets.randbelow(SSE_RETRY_MS)}\n\n".encode()
        answer = Response(200, short or b"", headers, _EVENT_STREAM)
        if short is not None:
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
            raise rate_limited(f"at most {error.limit} connections for a user", 10) from None
        return AcceptedSubscription(session, after, answer)

    def _refuse_credential(self, target: SubscribeParams) -> None:
        """Refuse a room or a device that is a credential, which the log would show.

        Raises:
            RequestError: 400.
        """
        for name, text in (("room", key_of(target.room)), ("device", target.device)):
            if text is not None and self._access.is_credential(text):
                details = f"{name}: this is a credential; send it as Authorization: Bearer …"
                raise bad_request("A credential in a wrong place", details)

    async def _authorize(self, claims: Claims, target: SubscribeParams) -> None:
        await self._access.authorize(claims, "subscribe", target.room)
        if target.wants_presence:
            await self._access.authorize(claims, "presence", target.room)


@dataclass(frozen=True, slots=True)
class SubscribeParams:
    """What a subscriber asks for: the room, the position, as which device, and whether it wants to
    hear who comes and goes."""

    room: Room
    after: str | None
    device: str | None
    wants_presence: bool


def parse_subscribe_params(segment: str, query: dict[str, str]) -> SubscribeParams:
    """
    Raises:
        RequestError: it cannot have it.
    """
    room = parse_room_param(segment)
    after = query.get("after")
    if after not in (None, "earliest", "latest"):
        parse_cursor_param(after)
    if (presence := query.get("presence", "0")) not in ("0", "1"):
        raise bad_request("Invalid presence", "presence: expected 0 or 1")
    return SubscribeParams(room, after, parse_device_param(query), wants_presence=presence == "1")


def _cors(origin: str) -> dict[str, str]:
    """What lets a page of an allowed origin read the answer.

    It may ask for credentials, as ``EventSource`` polyfills do (``withCredentials``). The server
    sets and reads no cookie, so that adds nothing to what the page can do.
    """
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Credentials": "true",
        "Vary": "origin",
    }


def _preflight(request: Request) -> dict[str, str]:
    """What an allowed page may send: every header field that it asks for (Fetch standard, "CORS
    protocol"). Polyfills add ``Cache-Control``, tracing adds ``traceparent``; ``*`` would not cover
    ``Authorization``."""
    asked = request.headers.get("access-control-request-headers", "")
    if len(asked) > _MAX_FIELD_NAMES or not _FIELD_NAMES.fullmatch(asked):
        return _PREFLIGHT
    return {**_PREFLIGHT, "Access-Control-Allow-Headers": asked}


def peer_info(request: Request) -> PeerInfo:
    headers = request.headers
    return PeerInfo(
        address=request.address,
        host=headers.get("host"),
        origin=headers.get("origin"),
        forwarded_for=forwarded_for(headers),
        fetch_site=headers.get("sec-fetch-site"),
        # The operator's page is a document that does nothing until its user does.
        is_visit=request.path.endswith("/admin") and is_visit(request.method, headers),
    )
