"""The room server as an ASGI app, to mount in FastAPI, Starlette or Django.

This module moves bytes. The rules are in :mod:`..app`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator
from functools import partial

from ..app import (
    CLOSE_TIMEOUT_S,
    AcceptedSubscription,
    CloseHandshakeError,
    Node,
    open_configured_store,
)
from ..auth import Authenticator, KeyRing
from ..auth.authorization import Authorizer, load_authorizer
from ..auth.limits import rate_limited
from ..config.settings import ServerSettings, load_settings
from ..http.routes import MAX_BODY_BYTES
from ..messages import (
    RETRY_AFTER_S,
    Request,
    RequestError,
    Response,
    bad_request,
    body_too_large,
    body_too_slow,
    head_error,
    unavailable,
)
from ..resources.byte_budget import MIN_UNREAD_BYTES, Budgets, ByteBudget, NoRoomError, caller_of
from ..resources.pacing import SHARE_S, TASK_S, Pacer
from ..resources.trim import Trimmer
from ..stores.base import Store, StoreUnavailableError
from .signals import drain_on_signal
from .subscriptions import (
    DisconnectedError,
    Message,
    Receive,
    Scope,
    Send,
    close_handshake,
    run_event_stream,
    run_websocket,
    translate_disconnects,
)

BODY_TIMEOUT_S = 20.0
"""The timeout for receiving the body of a request."""


_INCOMPLETE = (
    "the ASGI server passed on {} of {} bytes; with httptools, uvicorn drops the body of a request "
    "with Upgrade: run it with --http h11"
)


_SMALL_BYTES = 4096
"""The size up to which a body is not charged. A host takes as much for each connection, and large
requests must not cause small publishes to be rejected."""


class _Exchange(Request):
    """A request of a mounted app, and the bytes that are held for its peer.

    An app cannot abort a connection. So it rejects requests that exceed a byte budget, and holds an
    answer that it has started until the host has passed it on or the peer has disconnected.
    """

    __slots__ = ("_budgets",)

    def begin(self, budgets: Budgets) -> None:
        """Charge the bytes that are held from now on, until :meth:`end`."""
        self._budgets = budgets

    def end(self) -> None:
        self._budgets.requests.release(self)
        self._budgets.answers.release(self)

    def hold_request(self, size: int) -> None:
        """Charge the bytes of the request.

        Raises:
            RequestError: 429 or 503.
        """
        self._reserve(self._budgets.requests, size, "unanswered requests")

    def hold_answer(self, size: int) -> None:
        """Charge the bytes of the answer.

        Raises:
            RequestError: 429 or 503.
        """
        self._reserve(self._budgets.answers, size, "unread answers")

    def adjust_answer(self, size: int) -> None:
        """Change the charged size of an answer that is being sent."""
        self._budgets.answers.adjust(self, size)

    def over_budget(self) -> None:
        """See :class:`~.byte_budget.Holder`. Only :meth:`ByteBudget.hold` aborts connections."""

    def _reserve(self, budget: ByteBudget, size: int, what: str) -> None:
        try:
            budget.reserve(self, caller_of(self.claims, self.address), size)
        except NoRoomError as error:
            if error.is_of_caller:
                details = f"byte limit ({error.max_bytes}) of {what} per user or address reached"
                raise rate_limited(details, RETRY_AFTER_S) from None
            raise unavailable(f"byte limit of {what} reached") from None


class RoomServer(Node):
    """The ASGI app."""

    _pacer: Pacer | None = None
    _trimmer: Trimmer | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.monitor_event_loop()
        self._watch_memory()
        with contextlib.suppress(DisconnectedError):
            match scope["type"]:
                case "http":
                    await self._http(scope, receive, translate_disconnects(send))
                case "websocket":
                    await self._websocket(scope, receive, translate_disconnects(send))
                case "lifespan":
                    await self._lifespan(receive, send)
                case other:
                    raise RuntimeError(f"unsupported ASGI scope type {other!r}")

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncGenerator[None]:
        """Run a mounted server: enter this around the ``yield`` of your app's lifespan.

        A mounted app is not notified when its host stops, and the host (uvicorn) ends its lifespan
        only when every connection has closed: one open stream would block it for ever. So SIGTERM
        and SIGINT first drain this server, and are then passed to the previous handler. A second
        signal is passed immediately. At the end, the store is closed.
        """
        try:
            async with drain_on_signal(self.drain):
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
        request = _request(scope)
        if (problem := _problem_of(scope, request)) is not None:
            self.record_error(request, problem.response)
            await _respond(send, problem.response)
            return
        request.begin(self.budgets)
        try:
            if request.method != "POST":
                await self._wait_for_share(TASK_S)
            request.read = partial(_read_body, request, receive)
            answer = await self.handle(request)
            if isinstance(answer, Response):
                await self._respond(request, send, answer)
                return
        finally:
            request.end()
        leave = partial(self.close_session, answer.session)
        try:
            await run_event_stream(answer, receive, send, leave)
        finally:
            leave()

    def admit_answer(self, request: Request, response: Response) -> None:
        """See :meth:`Node.admit_answer`."""
        size = len(response.body)
        if response.rest is not None:
            size *= 2  # the next chunk, while the host holds the previous one
        if size >= MIN_UNREAD_BYTES and isinstance(request, _Exchange):
            request.hold_answer(size)

    async def _respond(self, request: _Exchange, send: Send, response: Response) -> None:
        """Send a response, and return when the host has passed on what it does not buffer."""
        rest = response.rest
        is_head = request.method == "HEAD"
        if rest is None:
            await _respond(send, response, waits=not is_head)
            return
        async with contextlib.aclosing(rest):
            await _start(send, response, None)
            if not is_head:
                before = len(response.body)
                await send(_part(response.body))
                try:
                    async for chunk in rest:
                        request.adjust_answer(before + len(chunk))
                        await send(_part(chunk))
                        before = len(chunk)
                        await self._wait_for_share(SHARE_S)  # the next chunk may cost as much
                except StoreUnavailableError:
                    return  # the host aborts the connection, so the client sees an incomplete body
            await send({"type": "http.response.body", "body": b""})

    def _watch_memory(self) -> None:
        if self._trimmer is None:
            self._trimmer = Trimmer(self.budgets.total, is_alone=False)
            self._trimmer.start()

    async def close(self) -> None:
        """See :meth:`Node.close`."""
        if self._trimmer is not None:
            self._trimmer.close()
        await super().close()

    async def _wait_for_share(self, cost_s: float) -> None:
        """See :class:`Pacer`."""
        if self._pacer is None or not self._pacer.is_of_running_loop():
            self._pacer = Pacer()
        await self._pacer.acquire(cost_s)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        await self._wait_for_share(TASK_S)
        request = _request(scope)
        opened: AcceptedSubscription | None = None
        try:
            if (problem := _problem_of(scope, request)) is not None:
                self.record_error(request, problem.response)
                await self._deny(scope, receive, send, problem.response)
                return
            opened = await self.accept_websocket(request)
            await run_websocket(opened, request, self.settings.idle_timeout_s, receive, send)
        except RequestError as error:
            await self._deny(scope, receive, send, error.response)
        except CloseHandshakeError as error:
            await close_handshake(request, send, error.code, error.reason)
        finally:
            if opened is not None:
                self.close_session(opened.session)

    async def _deny(self, scope: Scope, receive: Receive, send: Send, response: Response) -> None:
        """Reject a handshake, with the reason if the host supports that."""
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": 1008})
            return
        await _respond(send, response, kind="websocket.http.response")
        # uvicorn logs an error if the app returns before the connection has closed. It sends one
        # message when it closes, and one when it has closed.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await receive()
                await receive()


async def _respond(
    send: Send, response: Response, kind: str = "http.response", *, waits: bool = False
) -> None:
    """Send a response whose body is complete.

    Args:
        waits: return when the host has passed on a long body. An ASGI server waits for a peer that
            does not read before it accepts the next part, but not after the last one.
    """
    content = response.body
    await _start(send, response, None if response.status == 204 else len(content), kind)
    if waits and len(content) >= MIN_UNREAD_BYTES:
        await send(_part(content))
        content = b""
    await send({"type": f"{kind}.body", "body": content})


async def _start(
    send: Send, response: Response, length: int | None, kind: str = "http.response"
) -> None:
    headers = [
        (name.lower().encode(), value.encode("latin-1"))
        for name, value in response.header_fields().items()
    ]
    if length is not None:  # RFC 9110, section 8.6
        headers.append((b"content-length", str(length).encode()))
    await send({"type": f"{kind}.start", "status": response.status, "headers": headers})


def _part(content: bytes) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": True}


async def _read_body(request: _Exchange, receive: Receive) -> bytes:
    """Receive the whole body.

    Raises:
        RequestError: 413 above ``MAX_BODY_BYTES``, 408 if it takes longer than ``BODY_TIMEOUT_S``,
            429 or 503 if it exceeds a byte budget.
        DisconnectedError: the peer disconnected before its end.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_chunks(request, receive)
    except TimeoutError:
        raise body_too_slow(BODY_TIMEOUT_S) from None


async def _read_chunks(request: _Exchange, receive: Receive) -> bytes:
    # A chunked body, or one over HTTP/2, declares no length.
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise body_too_large(MAX_BODY_BYTES)
    body = bytearray()  # a list of many small parts would take more memory
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        body += message.get("body", b"")
        size = len(body)
        if size > MAX_BODY_BYTES:
            raise body_too_large(MAX_BODY_BYTES)
        if size > _SMALL_BYTES:
            request.hold_request(size)
        if not message.get("more_body"):
            if declared.isdigit() and int(declared) != size:
                raise bad_request("Incomplete body", _INCOMPLETE.format(size, declared))
            return bytes(body)


def _problem_of(scope: Scope, request: Request) -> RequestError | None:
    """Check the head again, because a host may parse it less strictly; see :func:`head_error`."""
    target_bytes = len(request.path) + len(request.query_string)
    version = scope.get("http_version", "1.1")
    return head_error(target_bytes, version, request.headers, ("1.0", "1.1", "2", "3"))


_VALUE = re.compile(rb"=[^&]*")


def _request(scope: Scope) -> _Exchange:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    raw = scope.get("raw_path")
    client = scope.get("client")
    query_string = scope["query_string"].decode("latin-1")
    if "=" in query_string:
        # The host writes its access log from the scope, which must not contain the token.
        scope["query_string"] = _VALUE.sub(b"=***", scope["query_string"])
    return _Exchange(
        method=scope.get("method", "GET"),
        path=raw.decode("latin-1").partition("?")[0] if raw else scope["path"],
        query_string=query_string,
        headers=headers,
        address=str(client[0]) if client else None,
        subprotocols=scope.get("subprotocols", ()),
        root_path=scope.get("root_path", ""),
    )


def create_app(
    settings: ServerSettings | None = None,
    store: Store | None = None,
    *,
    authorize: Authorizer | None = None,
    worker: int | None = None,
) -> RoomServer:
    """Create the room server as an ASGI app.

    ::

        rooms = create_app()

        @contextlib.asynccontextmanager
        async def lifespan(_: FastAPI):
            async with rooms.lifespan():
                yield

        app = FastAPI(lifespan=lifespan)
        app.mount("/realtime", rooms)

    Without keys it accepts only loopback clients, and pages of loopback origins or of
    ``allowed_origins``.

    Args:
        settings: default: from ``SYNAP_REALTIME_…`` in the environment.
        store: default: the one that the settings name. A mounted app is not notified when its host
            stops, so enter :meth:`RoomServer.lifespan` in the lifespan of your app to close it.
        authorize: your own authorizer, ``async def authorize(action, room, claims) -> bool``,
            called for requests that the server allows; default: the one that the settings name.
        worker: the number of this process, if several serve on one port; a label of its metrics.

    Raises:
        ConfigurationError: names the setting that is invalid.
    """
    settings = settings or load_settings()
    authorizer = authorize or (
        None if settings.authorizer is None else load_authorizer(settings.authorizer)
    )
    return RoomServer(
        settings,
        store or open_configured_store(settings),
        _authenticator(settings, keep_raw_claims=authorizer is not None),
        authorizer,
        worker,
    )


def _authenticator(settings: ServerSettings, *, keep_raw_claims: bool) -> Authenticator:
    ring = KeyRing(
        token_secrets=[secret.get_secret_value() for secret in settings.token_secrets],
        jwks_urls=settings.jwks_urls,
        api_keys={name: key.get_secret_value() for name, key in settings.api_keys.items()},
        file=settings.keys_file,
    )
    return Authenticator(
        ring,
        issuer=settings.token_issuer,
        audience=settings.token_audience,
        leeway_s=settings.token_leeway_s,
        max_lifetime_s=settings.token_max_lifetime_s,
        keep_raw_claims=keep_raw_claims,
    )
