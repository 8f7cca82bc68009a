"""Front 1: the room server as an ASGI app, to mount in FastAPI, Starlette or Django.

It only moves bytes: ``api.py`` answers, ``subscription.py`` decides what a subscriber gets.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from ..errors import InvalidArgumentError
from ..protocol.control import MAX_CLIENT_TEXT_BYTES, PING, PONG, SILENCE_LIMIT_S, CloseCode
from ..protocol.cursor import parse_cursor
from ..protocol.rooms import Room
from .api import (
    MAX_BODY_BYTES,
    Api,
    Request,
    RequestError,
    Response,
    malformed,
    room_of,
    split_path,
    too_large,
    unavailable,
)
from .hub import Hub
from .settings import ServerSettings, is_loopback, load_settings
from .stores.base import Store, StoreUnavailableError
from .stores.memory import MemoryStore
from .subscription import Subscription

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 2.0
"""How long a peer that does not read may delay its own end."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _DisconnectedError(Exception):
    """The peer has gone: there is nobody to answer."""


class RoomServer:
    """The ASGI app. One instance is one node, with its own store and its own listeners."""

    def __init__(self, settings: ServerSettings, store: Store) -> None:
        self._store = store
        self._hub = Hub()
        self._api = Api(store, self._hub)
        self._origins = frozenset(settings.allowed_origins)
        self._subscriptions: set[Subscription] = set()
        self._left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._http(scope, receive, send)
            case "websocket":
                await self._websocket(scope, receive, send)
            case "lifespan":
                await self._lifespan(receive, send)
            case other:
                raise RuntimeError(f"the room server does not speak {other!r}")

    async def drain(self) -> None:
        """Take no more publishes, ask every subscriber to come back, wait until they have left."""
        self._api.draining = True
        for subscription in tuple(self._subscriptions):
            subscription.close(CloseCode.DRAINING)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while self._subscriptions:
                    self._left.clear()
                    await self._left.wait()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.drain()
        await self._store.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(scope, receive)
        except RequestError as error:
            response = error.response
        except _DisconnectedError:
            return
        body = response.encoded()
        await send(
            {
                "type": "http.response.start",
                "status": response.status,
                "headers": _header_list(response, body),
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        headers = _headers(scope)
        self._admit(scope, headers)
        request = Request(
            method=scope["method"],
            segments=_segments(scope),
            content_type=headers.get("content-type"),
            body=await _read_body(headers, receive),
        )
        return await self._api.handle(request)

    def _admit(self, scope: Scope, headers: dict[str, str]) -> None:
        """Without keys, this server is for this machine only.

        Raises:
            RequestError: 403 for a peer elsewhere, or a page of another origin.
        """
        client = scope.get("client")
        if client is not None and not is_loopback(client[0]):
            raise RequestError(
                403,
                "forbidden",
                "This server has no keys",
                "it answers loopback addresses only, until it has keys",
            )
        origin = headers.get("origin")
        if origin is None or origin in self._origins:
            return
        if not _is_loopback_origin(origin):
            raise RequestError(
                403,
                "forbidden",
                "Origin not allowed",
                "add it with --allowed-origins (SYNAP_REALTIME_ALLOWED_ORIGINS)",
            )

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            self._admit(scope, _headers(scope))
            room, after = self._subscribe_target(scope)
        except RequestError as error:
            await _deny(scope, send, error.response)
            return
        await send({"type": "websocket.accept"})
        subscription = Subscription(self._store, self._hub, room)
        self._subscriptions.add(subscription)
        try:
            with contextlib.suppress(_DisconnectedError):
                code = await self._converse(subscription, after, receive, send)
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await send({"type": "websocket.close", "code": int(code)})
        except (OSError, TimeoutError):
            logger.debug("a subscriber of %s went away", room)
        finally:
            self._subscriptions.discard(subscription)
            self._left.set()

    def _subscribe_target(self, scope: Scope) -> tuple[Room, str | None]:
        match _segments(scope):
            case ("rooms", segment, "subscribe"):
                room = room_of(segment)
            case _:
                raise RequestError(
                    404, "not_found", "Not found", "subscribe at /rooms/{room}/subscribe"
                )
        if self._api.draining:
            raise unavailable("the server is shutting down")
        query = parse_qs(scope["query_string"].decode("latin-1"))
        after = query.get("after", [None])[-1]
        if after not in (None, "earliest", "latest"):
            try:
                parse_cursor(after)
            except InvalidArgumentError as error:
                raise malformed("Invalid position", str(error)) from error
        return room, after

    async def _converse(
        self, subscription: Subscription, after: str | None, receive: Receive, send: Send
    ) -> CloseCode:
        """Run the connection until one side ends it; returns the code to close with.

        Raises:
            _DisconnectedError: the peer ended it.
        """

        async def write(text: str) -> None:
            await send({"type": "websocket.send", "text": text})

        tasks: list[asyncio.Task[CloseCode | None]] = [
            asyncio.create_task(_listen(receive, write)),
            asyncio.create_task(_publish(subscription, after, write)),
            asyncio.create_task(subscription.closed()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancel(tasks)
        for task in done:
            if (code := task.result()) is not None:
                return code
        return await subscription.closed()


async def _listen(receive: Receive, write: Callable[[str], Awaitable[None]]) -> CloseCode:
    """Answer pings; returns why the connection must end.

    Raises:
        _DisconnectedError: the peer ended it.
    """
    while True:
        try:
            async with asyncio.timeout(SILENCE_LIMIT_S):
                message = await receive()
                if message["type"] == "websocket.disconnect":
                    raise _DisconnectedError
                text = message.get("text")
                if text is None or len(text.encode()) > MAX_CLIENT_TEXT_BYTES:
                    return CloseCode.CONTRACT_BROKEN
                if text == PING:
                    await write(PONG)
        except TimeoutError:
            return CloseCode.SILENT


async def _publish(
    subscription: Subscription, after: str | None, write: Callable[[str], Awaitable[None]]
) -> CloseCode | None:
    try:
        await subscription.run(after, write)
    except StoreUnavailableError as error:
        logger.error("the store is not available: %s", error)
        return CloseCode.DRAINING
    return None


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _deny(scope: Scope, send: Send, response: Response) -> None:
    """Refuse a handshake, with the reason where the server can send one."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    body = response.encoded()
    await send(
        {
            "type": "websocket.http.response.start",
            "status": response.status,
            "headers": _header_list(response, body),
        }
    )
    await send({"type": "websocket.http.response.body", "body": body})


def _header_list(response: Response, body: bytes) -> list[tuple[bytes, bytes]]:
    return [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *((name.lower().encode(), value.encode()) for name, value in response.headers.items()),
    ]


async def _read_body(headers: dict[str, str], receive: Receive) -> bytes:
    """The body, whole.

    Raises:
        RequestError: 413 above ``MAX_BODY_BYTES``.
        _DisconnectedError: the peer went away before its end.
    """
    declared = headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise too_large(f"a body has at most {MAX_BODY_BYTES} bytes")
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _DisconnectedError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise too_large(f"a body has at most {MAX_BODY_BYTES} bytes")
        chunks.append(chunk)
        if not message.get("more_body"):
            return b"".join(chunks)


def _headers(scope: Scope) -> dict[str, str]:
    return {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}


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


def _is_loopback_origin(origin: str) -> bool:
    try:
        host = urlsplit(origin).hostname
    except ValueError:
        return False
    return host is not None and is_loopback(host)


def create_app(settings: ServerSettings | None = None, store: Store | None = None) -> RoomServer:
    """The room server as an ASGI app.

    ::

        app = FastAPI()
        app.mount("/realtime", create_app())

    Without keys it answers peers on loopback addresses only, and pages of loopback origins or of
    ``allowed_origins``.

    Args:
        settings: default: from ``SYNAP_REALTIME_…`` in the environment.
        store: default: a :class:`MemoryStore`, gone with the process.

    Raises:
        ConfigurationError: names the setting that is wrong.
    """
    settings = settings or load_settings()
    return RoomServer(settings, store or MemoryStore(settings.retention()))
