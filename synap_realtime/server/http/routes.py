"""The HTTP routes, without I/O: each maps a request to a response. See PROTOCOL.md, "HTTP"."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import cache, partial
from typing import Literal

from ...protocol.cursor import Cursor
from ...protocol.notification import MAX_BATCH_BYTES
from ...protocol.rooms import Room
from ..auth import MAX_TEXT, MAX_TOKEN_BYTES, MalformedTokenError
from ..auth.authorization import AccessControl, require_scope, room_not_allowed
from ..auth.limits import Limits
from ..auth.revocations import Revocations, TooManyRevocationsError
from ..logging import events
from ..messages import (
    Request,
    RequestError,
    Response,
    bad_request,
    decode_json,
    json_response,
    method_not_allowed,
    parse_cursor_param,
    parse_room_param,
    read_json_body,
    unavailable,
)
from ..metrics import CONTENT_TYPE, Metrics
from ..rooms.hub import Hub
from ..rooms.presence import Presence
from ..stores.base import Store, StoreUnavailableError
from .health import Readiness
from .openapi import document
from .publish import PublishService

MAX_BODY_BYTES = MAX_BATCH_BYTES
"""Largest request body of any route."""

HISTORY_LIMIT, MAX_HISTORY_LIMIT = 100, 1000
MAX_HISTORY_BYTES = 1024 * 1024
"""A history response ends with the notification that reaches this size."""

_CHUNK_BYTES = 64 * 1024  # about the size of a chunk of a long response
_PAGE = 16  # most entries that are read at a time


_HEALTHY = json_response(200, {"status": "ok"})
_READY = json_response(200, {"status": "ready"})


@cache
def _describe() -> Response:
    return json_response(200, document())


RouteHandler = Callable[[Request], Awaitable[Response]]


class Router:
    """The routes of one room server."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        presence: Presence,
        access: AccessControl,
        publishing: PublishService,
        revocations: Revocations,
        limits: Limits,
        metrics: Metrics,
        admin: RouteHandler | None = None,
    ) -> None:
        """
        Args:
            store: holds the logs.
            hub: holds the subscribers.
            presence: the users of each room.
            access: authenticates and authorizes requests.
            publishing: handles the publish routes.
            revocations: revokes tokens and users.
            limits: the rate limits.
            metrics: counts requests and errors.
            admin: handles the paths below ``/admin``; None disables them.
        """
        self._admin = admin
        self._store = store
        self._hub = hub
        self._presence = presence
        self._access = access
        self._publishing = publishing
        self._revocations = revocations
        self._limits = limits
        self._metrics = metrics
        self._readiness = Readiness(store)
        self._closed = False

    async def handle(self, request: Request) -> Response:
        """Return the response to a request. Errors of the client or the store become responses."""
        try:
            method, route = self._route(request)
            if request.method != method and (request.method, method) != ("HEAD", "GET"):
                self._limits.check_request(None, request.address)
                raise method_not_allowed(method)
            return await route(request)
        except RequestError as error:
            return error.response
        except StoreUnavailableError as error:
            return unavailable(str(error)).response

    async def close(self) -> None:
        """Close the store. Routes that need it answer 503 from now on."""
        self._closed = True
        await self._store.close()

    def _route(self, request: Request) -> tuple[str, RouteHandler]:
        match request.path_segments:
            case ("rooms", _, "broadcast"):
                return "POST", self._publishing.broadcast
            case ("health",):
                return "GET", self._health
            case ("ready",):
                return "GET", self._ready
            case ("metrics",):
                return "GET", self._metrics_endpoint
            case ("openapi.json",):
                return "GET", self._openapi
            case ("broadcast",):
                return "POST", self._publishing.broadcast_batch
            case ("revoke",):
                return "POST", self._revoke
            case ("admin", *_) if self._admin is not None:
                return "GET", self._admin
            case ("rooms", _, "subscribe"):
                return "GET", self._upgrade_required
            case ("rooms", _, "history"):
                return "GET", self._history
            case ("rooms", _, "health"):
                return "GET", self._room_health
            case ("rooms", _, "presence"):
                return "GET", self._room_presence
        self._limits.check_request(None, request.address)
        raise RequestError(404, "not_found", "Not found", "see PROTOCOL.md, 'HTTP', for the routes")

    async def _health(self, request: Request) -> Response:
        self._limits.check_request(None, request.address)
        return _HEALTHY

    async def _ready(self, request: Request) -> Response:
        self._limits.check_request(None, request.address)
        self._publishing.ensure_accepting()
        await self._readiness.check()
        return _READY

    async def _metrics_endpoint(self, request: Request) -> Response:
        claims = await self._access.authenticate_counted(request)
        require_scope(claims, "metrics", "admin")
        self._metrics.active_rooms.set(len(self._hub))
        content = self._metrics.render(await self._store.usage())
        return Response(200, content, content_type=CONTENT_TYPE)

    async def _openapi(self, request: Request) -> Response:
        self._limits.check_request(None, request.address)
        return _describe()

    async def _room_health(self, request: Request) -> Response:
        room = parse_room_param(request.path_segments[1])
        claims = await self._access.authenticate_counted(request)
        if not claims.allows_room(room):
            raise room_not_allowed(claims)
        connections = self._hub.subscriber_count(room)
        return json_response(200, {"status": "ok", "connections": connections, "roomId": room})

    async def _room_presence(self, request: Request) -> Response:
        room = parse_room_param(request.path_segments[1])
        claims = await self._access.authenticate_counted(request)
        await self._access.authorize(claims, "presence", room)
        connections = self._hub.subscriber_count(room)
        users = self._presence.users(room)
        response = json_response(200, {"room": room, "connections": connections, "users": users})
        self._limits.count_read(claims, request.address, len(response.body))
        return response

    async def _upgrade_required(self, request: Request) -> Response:
        self._limits.check_request(None, request.address)
        parse_room_param(request.path_segments[1])
        raise RequestError(
            426,
            "upgrade_required",
            "Expected WebSocket upgrade",
            "open this address as a WebSocket, ws:// or wss://",
            {"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    async def _history(self, request: Request) -> Response:
        room = parse_room_param(request.path_segments[1])
        if self._closed:
            raise unavailable("the server has stopped")
        claims = await self._access.authenticate_counted(request)
        await self._access.authorize(claims, "subscribe", room)
        after = request.query.get("after", "earliest")
        position = (
            self._store.earliest()
            if after == "earliest"
            else parse_cursor_param(after, "or 'earliest'")
        )
        wanted = parse_limit(request.query.get("limit"))
        count_read = partial(self._limits.count_read, claims, request.address)
        chunks = self._history_chunks(room, position, wanted, count_read)
        content, is_last = await anext(chunks)
        if is_last:  # a short history is sent whole, with Content-Length
            await chunks.aclose()
            return Response(200, content)
        return Response(200, content, rest=_contents(chunks))

    async def _history_chunks(
        self, room: Room, position: Cursor, wanted: int, count_read: Callable[[int], None]
    ) -> AsyncGenerator[tuple[bytes, bool]]:
        """Yield the body in chunks of about ``_CHUNK_BYTES``, each with whether it is the last.

        Only one chunk is in memory while the peer reads it. Otherwise a peer that does not read its
        response could pin a whole history.
        """
        head = await self._store.head(room)
        parts = [f'{{"room":"{room}","notifications":['.encode()]
        count, size, unsent, recovered, more = 0, 0, 0, True, True
        page_size = 1  # later adapted so that a page fits a chunk
        while more and count < wanted and size < MAX_HISTORY_BYTES:
            page = await self._store.read(room, position, page_size)
            if not page.recovered:
                recovered, position = False, self._store.earliest()
            more = len(page.entries) == page_size
            count_read(sum([entry.size for entry in page.entries]))
            for entry in page.entries:
                if count == wanted or size >= MAX_HISTORY_BYTES:
                    more = True
                    break
                parts.append(b"," + entry.text.encode() if count else entry.text.encode())
                count += 1
                size += entry.size
                unsent += entry.size
                position = entry.cursor
            page_size = max(1, min(_PAGE, _CHUNK_BYTES * count // max(size, 1)))
            if unsent >= _CHUNK_BYTES:
                chunk, parts, unsent = b"".join(parts), [], 0
                del page
                yield chunk, False
                del chunk
        if more:
            more = bool((await self._store.read(room, position, 1)).entries)
        else:  # everything up to the head was read, which is also the position of an empty room
            position = max(position, head, key=lambda cursor: cursor.offset)
        members = {"cursor": str(position), "recovered": recovered, "more": more}
        parts.append(f"],{json.dumps(members, separators=(',', ':'))[1:]}".encode())
        yield b"".join(parts), True

    async def _revoke(self, request: Request) -> Response:
        self._publishing.ensure_accepting()
        claims = await self._access.authenticate_counted(request)
        require_scope(claims, "admin")
        of, given = _revocation_in(decode_json(await read_json_body(request)))
        if not self._access.keys():  # without keys, tokens are not checked
            return json_response(200, {"success": True, "revoked": False, "closed": 0})
        self._publishing.enter()
        try:
            name = await self._name_to_revoke(of, given)
            closed = await self._revocations.revoke("user" if of == "user" else "token", name)
        except TooManyRevocationsError:
            raise unavailable(
                "too many revocations are stored; remove the secret from the server's keys, which "
                "revokes all tokens that it has signed"
            ) from None
        finally:
            self._publishing.exit()
        events.log_revoked(claims, of, name, closed)
        return json_response(200, {"success": True, "revoked": True, "closed": closed})

    async def _name_to_revoke(self, of: _Revocable, given: str) -> str:
        """Return the id of the user or the token to revoke.

        Raises:
            RequestError: 400. It does not repeat the given value, which may be a credential.
        """
        if of == "token":
            try:
                id = await self._access.id_of_token(_bare_token(given))
            except MalformedTokenError as error:
                raise bad_request("Nothing was revoked", f"token: {error}") from None
            if id is None:
                raise bad_request(
                    "Nothing was revoked",
                    "token: no key of this server has signed it; was it copied whole?",
                )
            return id
        if self._access.is_credential(given):
            raise bad_request(
                "Nothing was revoked", f'{of}: this is a credential; send a token as {{"token": …}}'
            )
        return given


_Revocable = Literal["user", "token", "jti"]


def _revocation_in(body: object) -> tuple[_Revocable, str]:
    """Return what the body of ``/revoke`` names: the kind and the value.

    Raises:
        RequestError: 400.
    """
    match body:
        case {"user": str(name), **rest} if 0 < len(name) <= MAX_TEXT and not _NAMES & rest.keys():
            return "user", name
        case {"token": str(name), **rest} if (
            0 < len(name) <= MAX_GIVEN and not _NAMES & rest.keys()
        ):
            return "token", name
        case {"jti": str(name), **rest} if 0 < len(name) <= MAX_TEXT and not _NAMES & rest.keys():
            return "jti", name
    raise bad_request(
        "Nothing was revoked", 'expected one of {"user": id}, {"token": JWT} and {"jti": id}'
    )


_NAMES = {"user", "token", "jti"}
MAX_GIVEN = MAX_TOKEN_BYTES + 100

_DECORATED = re.compile(
    r"""\s*["']?\s*(?:authorization\s*:\s*)?(?:bearer[\s.]\s*)?["']?([\w.=-]+)["']?\s*["']?\s*""",
    re.ASCII | re.IGNORECASE,
)


def _bare_token(text: str) -> str:
    """Return a token without whitespace, quotes and ``Bearer`` that were copied with it."""
    found = _DECORATED.fullmatch(text.strip())
    return found[1] if found else text


async def _contents(chunks: AsyncGenerator[tuple[bytes, bool]]) -> AsyncGenerator[bytes]:
    """Yield the chunks of :meth:`Router._history_chunks` without their flags."""
    async with contextlib.aclosing(chunks):
        async for content, _ in chunks:
            yield content


def parse_limit(text: str | None) -> int:
    """Parse the query parameter ``limit``.

    Raises:
        RequestError: 400.
    """
    if text is None:
        return HISTORY_LIMIT
    if text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_HISTORY_LIMIT:
        return int(text)
    raise bad_request("Invalid limit", f"limit: expected 1 to {MAX_HISTORY_LIMIT}")
