"""Front 1: the room server as an ASGI app, to mount in FastAPI, Starlette or Django.

It only moves bytes: ``api.py`` answers, ``subscription.py`` decides what a subscriber gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from urllib.parse import parse_qs

from ..protocol.control import BEARER_SUBPROTOCOL, CloseCode
from ..protocol.cursor import is_cursor
from ..protocol.rooms import Room
from . import events
from .access import Access, Caller, May, load_rule
from .admin import Admin
from .api import MAX_BODY_BYTES, Api
from .auth import Authenticator, Claims, KeyRing
from .connections import (
    CLOSE_TIMEOUT_S,
    EVENT_STREAM_HEADERS,
    RETRY_MS,
    DisconnectedError,
    Receive,
    Scope,
    Send,
    close_at_once,
    run_event_stream,
    run_websocket,
    speaks_control,
    until_gone,
)
from .http import (
    Request,
    RequestError,
    Response,
    device_of,
    malformed,
    method_not_allowed,
    position_of,
    room_of,
    split_path,
    too_large,
    unavailable,
)
from .hub import Hub
from .limits import Limits, TooManyForUserError, too_many
from .metrics import Metrics
from .presence import Presence
from .revocations import Revocations
from .sessions import Sessions
from .settings import ServerSettings, load_settings
from .signals import drained_first
from .stores import open_store
from .stores.base import Store, StoreUnavailableError
from .stores.measured import MeasuredStore
from .subscription import LOST

BODY_TIMEOUT_S = 20.0
"""So long may a request's body take."""

_DRAIN_BATCH = 100  # fewer are let go at once
_MAX_SPREAD_MS = 10_000  # over which clients are asked to come back

_PREFLIGHT = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"authorization, content-type, last-event-id"),
    (b"access-control-max-age", b"600"),
]


class RoomServer:
    """The ASGI app. One instance is one node, with its own store and its own listeners."""

    def __init__(
        self, settings: ServerSettings, store: Store, authenticator: Authenticator, may: May | None
    ) -> None:
        hub = Hub()
        own_version = version("synap-realtime")
        self._metrics = metrics = Metrics(own_version, settings.max_connections)
        store = MeasuredStore(store, metrics)
        self._presence = presence = Presence()
        limits = Limits(settings)
        revocations = Revocations(store, hub)
        self._settings = settings
        self._store = store
        self._authenticator = authenticator
        self._access = access = Access(
            authenticator,
            revocations,
            allowed_origins=settings.allowed_origins,
            own_pages=settings.admin,
            may=may,
        )
        self._sessions = Sessions(store, hub, presence, access, revocations, limits, metrics)
        admin = None
        if settings.admin:
            admin = Admin(
                hub, self._sessions, access, metrics, version=own_version, promise=store.promise
            ).handle
        self._api = Api(store, hub, presence, access, limits, revocations, metrics, admin)

    @property
    def settings(self) -> ServerSettings:
        return self._settings

    @property
    def promise(self) -> str:
        """Which store it runs on, and what that means for a crash."""
        return self._store.promise

    @property
    def has_keys(self) -> bool:
        """Without, it answers this machine only."""
        return self._access.has_keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.watch_loop()
        events.begun()
        with contextlib.suppress(DisconnectedError):
            match scope["type"]:
                case "http":
                    await self._http(scope, receive, until_gone(send))
                case "websocket":
                    await self._websocket(scope, receive, until_gone(send))
                case "lifespan":
                    await self._lifespan(receive, send)
                case other:
                    raise RuntimeError(f"the room server does not speak {other!r}")

    async def drain(self) -> None:
        """Take no more publishes and let every subscriber go. See PROTOCOL.md, "Draining"."""
        if self._api.draining:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_s):
                await self._api.drain()
        going = self._sessions.subscriptions()
        spread_ms = min(_MAX_SPREAD_MS, 10 * len(going))
        size = max(_DRAIN_BATCH, len(going) // 20)
        batches = [going[start : start + size] for start in range(0, len(going), size)]
        # Half of the time to let go, the other half for those who read slowly.
        pause_s = self._settings.drain_s / 2 / max(1, len(batches))
        end = asyncio.get_running_loop().time() + self._settings.drain_s
        for number, batch in enumerate(batches):
            if number:
                await asyncio.sleep(pause_s)
            for subscription in batch:
                subscription.let_go(100 + secrets.randbelow(spread_ms))
        await self._sessions.wait_until_left(end)
        for subscription in self._sessions.subscriptions():
            subscription.close(CloseCode.DRAINING)
        await self._sessions.wait_until_left(asyncio.get_running_loop().time() + CLOSE_TIMEOUT_S)

    async def close(self) -> None:
        """Drain, then let go of the store."""
        await self.drain()
        self._presence.close()
        self._metrics.close()
        await self._authenticator.close()
        await self._api.close()

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """For a server that is mounted: open this around the ``yield`` of your app's lifespan.

        A mounted app does not hear that its host stops, and the host (uvicorn) ends its own
        lifespan only when every connection has closed: one open stream would hold it for ever. So
        SIGTERM and SIGINT first drain this server; then they go on to who handled them before. A
        second signal goes on at once. At the end the store is let go.
        """
        try:
            async with drained_first(self.drain):
                yield
        finally:
            await self.close()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = _headers(scope)
        cors: list[tuple[bytes, bytes]] = []
        try:
            self._access.admit(_caller(scope, headers))
            cors = _cors(headers)
            segments = _segments(scope)
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _respond(send, Response(204, b""), [*cors, *_PREFLIGHT])
                return
            query = _query(scope)
            match scope["method"], segments:
                case "GET" | "HEAD", ("rooms", segment, "events"):
                    await self._events(segment, headers, cors, scope, receive, send)
                    return
                case _, ("rooms", _, "events"):
                    raise method_not_allowed("GET")
            response = await self._api.handle(
                Request(
                    method=scope["method"],
                    segments=segments,
                    query=query,
                    content_type=headers.get("content-type"),
                    traceparent=headers.get("traceparent"),
                    credential=_credential(headers, query, ()),
                    read=partial(_read_body, headers, receive),
                )
            )
        except RequestError as error:
            response = error.response
        except StoreUnavailableError as error:
            response = unavailable(str(error)).response
        except DisconnectedError:
            return
        self._note(scope, response)
        await _respond(send, response, cors)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        headers = _headers(scope)
        try:
            self._access.admit(_caller(scope, headers))
            match _segments(scope):
                case ("rooms", segment, "subscribe"):
                    query = _query(scope)
                    target = _target(segment, query)
                    if target.watches and not speaks_control(scope):
                        raise malformed(
                            "Nothing could be told", "presence: offer the subprotocol synap.v1"
                        )
                    self._api.refuse_while_draining()
                case _:
                    raise RequestError(
                        404, "not_found", "Not found", "subscribe at /rooms/{room}/subscribe"
                    )
        except RequestError as error:
            await self._deny(scope, send, error.response)
            return
        try:
            credential = _credential(headers, query, scope.get("subprotocols", ()))
            claims = await self._access.identify(credential)
            await self._permit(claims, target)
        except RequestError as error:
            await self._refuse(scope, send, error, is_browser="origin" in headers)
            return
        except StoreUnavailableError as error:
            await self._deny(scope, send, unavailable(str(error)).response)
            return
        try:
            with self._sessions.open(
                target.room,
                claims,
                _address(scope),
                transport="websocket",
                device=target.device,
                acknowledges=speaks_control(scope),
                watches=target.watches,
            ) as subscription:
                silence_s = self._settings.silence_s
                await run_websocket(subscription, target.after, silence_s, scope, receive, send)
        except RequestError as error:
            await self._deny(scope, send, error.response)
        except TooManyForUserError:
            await self._close_at_once(scope, send, CloseCode.TOO_MANY_CONNECTIONS)

    async def _events(
        self,
        segment: str,
        headers: dict[str, str],
        cors: list[tuple[bytes, bytes]],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        """
        Raises:
            RequestError: the stream cannot be.
        """
        query = _query(scope)
        if last := headers.get("last-event-id"):
            # A browser cannot choose what it sends here, so junk is a lost position, not a 400.
            query["after"] = last if is_cursor(last) else "earliest"
        target = _target(segment, query)
        after = LOST if last and not is_cursor(last) else target.after
        stream_headers = [*EVENT_STREAM_HEADERS, *cors]
        claims = await self._access.identify(_credential(headers, query, ()))
        await self._permit(claims, target)
        short = b"" if scope["method"] == "HEAD" else None
        if short is None and self._api.draining:  # after a 503 a browser never comes back
            short = f"retry: {RETRY_MS + secrets.randbelow(RETRY_MS)}\n\n".encode()
        if short is not None:
            await send({"type": "http.response.start", "status": 200, "headers": stream_headers})
            await send({"type": "http.response.body", "body": short})
            return
        try:
            with self._sessions.open(
                target.room,
                claims,
                _address(scope),
                transport="sse",
                device=target.device,
                acknowledges=False,
                watches=target.watches,
            ) as subscription:
                await run_event_stream(subscription, after, stream_headers, scope, receive, send)
        except TooManyForUserError as error:
            raise too_many(f"at most {error.limit} connections for a user", 10) from None

    async def _refuse(
        self, scope: Scope, send: Send, error: RequestError, *, is_browser: bool
    ) -> None:
        """Refuse a credential. A page cannot read the answer to a handshake, but it can read a
        close code, which says whether to come back."""
        codes = {401: CloseCode.UNAUTHORIZED, 403: CloseCode.FORBIDDEN}
        code = codes.get(error.response.status)
        if is_browser and code is not None:
            await self._close_at_once(scope, send, code)
        else:
            await self._deny(scope, send, error.response)

    def _note(self, scope: Scope, response: Response) -> None:
        """Count an error, and write it down."""
        if response.problem is not None:
            self._metrics.refused(response.problem["code"])
            events.refused(response.problem, _address(scope), _room(scope))

    async def _close_at_once(self, scope: Scope, send: Send, code: CloseCode) -> None:
        reason = code.name.lower()
        self._metrics.dropped(reason)
        problem = {"code": reason, "details": f"closed with {int(code)}"}
        events.refused(problem, _address(scope), _room(scope))
        await close_at_once(scope, send, code)

    async def _deny(self, scope: Scope, send: Send, response: Response) -> None:
        """Refuse a handshake, with the reason where the server can send one."""
        self._note(scope, response)
        if "websocket.http.response" in scope.get("extensions", {}):
            await _respond(send, response, [], kind="websocket.http.response")
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _permit(self, claims: Claims, target: _Target) -> None:
        await self._access.permit(claims, "subscribe", target.room)
        if target.watches:
            await self._access.permit(claims, "presence", target.room)


@dataclass(frozen=True, slots=True)
class _Target:
    """What a subscriber asks for: the room, the position, as which device, and whether it wants to
    hear who comes and goes."""

    room: Room
    after: str | None
    device: str | None
    watches: bool


def _target(segment: str, query: dict[str, str]) -> _Target:
    """
    Raises:
        RequestError: it cannot have it.
    """
    room = room_of(segment)
    after = query.get("after")
    if after not in (None, "earliest", "latest"):
        position_of(after)
    if (presence := query.get("presence", "0")) not in ("0", "1"):
        raise malformed("Invalid presence", "presence: expected 0 or 1")
    return _Target(room, after, device_of(query), watches=presence == "1")


async def _respond(
    send: Send,
    response: Response,
    headers: list[tuple[bytes, bytes]],
    kind: str = "http.response",
) -> None:
    own = [(b"cache-control", b"no-store")]
    if response.status != 204:  # which has no body, and may not say how long it is
        own += [
            (b"content-type", response.content_type.encode()),
            (b"content-length", str(len(response.content)).encode()),
        ]
    own += [
        *((name.lower().encode(), value.encode()) for name, value in response.headers.items()),
    ]
    start = {"type": f"{kind}.start", "status": response.status, "headers": [*own, *headers]}
    await send(start)
    await send({"type": f"{kind}.body", "body": response.content})


async def _read_body(headers: dict[str, str], receive: Receive) -> bytes:
    """The body, whole.

    Raises:
        RequestError: 413 above ``MAX_BODY_BYTES``, 408 if it takes longer than ``BODY_TIMEOUT_S``.
        DisconnectedError: the peer went away before its end.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_chunks(headers, receive)
    except TimeoutError:
        raise RequestError(
            408, "timeout", "Too slow", f"a body has to arrive within {BODY_TIMEOUT_S:g} s"
        ) from None


async def _read_chunks(headers: dict[str, str], receive: Receive) -> bytes:
    declared = headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise too_large(f"a body has at most {MAX_BODY_BYTES} bytes")
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise too_large(f"a body has at most {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


def _headers(scope: Scope) -> dict[str, str]:
    """One that comes twice as one, with a comma between (RFC 9110, section 5.3): of two hosts, two
    origins or two credentials none counts, and of two ``X-Forwarded-For`` each."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def _address(scope: Scope) -> str | None:
    client = scope.get("client")
    return str(client[0]) if client else None


def _caller(scope: Scope, headers: dict[str, str]) -> Caller:
    return Caller(
        address=_address(scope),
        host=headers.get("host"),
        origin=headers.get("origin"),
        forwarded_for=headers.get("x-forwarded-for"),
    )


def _credential(
    headers: dict[str, str], query: dict[str, str], subprotocols: Iterable[str]
) -> str | None:
    """A key or a token: from ``Authorization``, else the subprotocol, else the query."""
    scheme, _, value = headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    for name in subprotocols:
        if name.startswith(BEARER_SUBPROTOCOL):
            return name.removeprefix(BEARER_SUBPROTOCOL)
    return query.get("token")


def _query(scope: Scope) -> dict[str, str]:
    """The parameters; of a repeated one the last, and an empty one is none."""
    parameters = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=None)
    return {name: values[-1] for name, values in parameters.items()}


def _cors(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """For a page of another origin, which :meth:`RoomServer._admit` has let in."""
    origin = headers.get("origin")
    if origin is None:
        return []
    return [(b"access-control-allow-origin", origin.encode("latin-1")), (b"vary", b"origin")]


def _room(scope: Scope) -> Room | None:
    """The room in the path, if there is one."""
    try:
        match _segments(scope):
            case ("rooms", segment, *_):
                return room_of(segment)
    except RequestError:
        pass
    return None


def _segments(scope: Scope) -> tuple[str, ...]:
    """The path below where the app is mounted."""
    raw = scope.get("raw_path")
    path = raw.decode("latin-1").partition("?")[0] if raw else scope["path"]
    segments = split_path(path)
    mounted = tuple(part for part in scope.get("root_path", "").split("/") if part)
    for start in range(len(mounted)):  # a proxy may have taken a first part of the root away
        prefix = mounted[start:]
        if segments[: len(prefix)] == prefix:
            return segments[len(prefix) :]
    return segments


def create_app(
    settings: ServerSettings | None = None, store: Store | None = None, *, may: May | None = None
) -> RoomServer:
    """The room server as an ASGI app.

    ::

        rooms = create_app()

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI):
            async with rooms.lifespan():
                yield

        app = FastAPI(lifespan=lifespan)
        app.mount("/realtime", rooms)

    Without keys it answers peers on loopback addresses only, and pages of loopback origins or of
    ``allowed_origins``.

    Args:
        settings: default: from ``SYNAP_REALTIME_…`` in the environment.
        store: default: the one that the settings name. A mounted app does not hear that its host
            stops: open :meth:`RoomServer.lifespan` in the lifespan of yours.
        may: a rule of your own, ``async def may(action, room, claims) -> bool``, asked when ours
            have said yes; default: the one that the settings name.

    Raises:
        ConfigurationError: names the setting that is wrong.
    """
    settings = settings or load_settings()
    return RoomServer(
        settings,
        store or open_store(settings.store, settings.retention()),
        _authenticator(settings),
        may or (None if settings.may is None else load_rule(settings.may)),
    )


def _authenticator(settings: ServerSettings) -> Authenticator:
    ring = KeyRing(
        token_secrets=[secret.get_secret_value() for secret in settings.token_secrets],
        jwks_urls=settings.jwks_urls,
        api_keys={name: key.get_secret_value() for name, key in settings.api_keys.items()},
        file=settings.keys,
    )
    return Authenticator(
        ring,
        issuer=settings.token_issuer,
        audience=settings.token_audience,
        leeway_s=settings.token_leeway_s,
    )
