"""Every HTTP route as a pure request -> response. See PROTOCOL.md, "HTTP"."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Literal

import pydantic_core
import uuid_utils

from ..errors import InvalidArgumentError
from ..protocol.notification import (
    MAX_BATCH_BYTES,
    MAX_BATCH_NOTIFICATIONS,
    MAX_NOTIFICATION_BYTES,
    MAX_SPREAD_BYTES,
    check_wire,
    encode_json,
    now_as_timestamp,
)
from ..protocol.rooms import Room
from ..tracing import NOTHING, Span, is_on
from . import events
from .access import Access, forbidden, require_scope
from .auth import MAX_TOKEN_BYTES, Claims, id_of_token
from .http import (
    Request,
    RequestError,
    Response,
    json_body,
    json_response,
    malformed,
    method_not_allowed,
    position_of,
    room_of,
    too_large,
    unavailable,
)
from .hub import Hub
from .limits import Limits
from .metrics import CONTENT_TYPE, Metrics
from .openapi import document
from .presence import Presence
from .revocations import Revocations
from .spans import begin_publish
from .stores.base import Publication, Receipt, Store, StoreUnavailableError

MAX_BODY_BYTES = MAX_BATCH_BYTES
"""No route reads more."""

HISTORY_LIMIT, MAX_HISTORY_LIMIT = 100, 1000
MAX_HISTORY_BYTES = 1024 * 1024
"""An answer ends with the notification that reaches it."""

_OURS = ("room", "cursor")  # members that mean nothing in a notification that is sent
_AT_ONCE = 100  # notifications of a batch that are checked without a pause
_PAGE = 16  # entries read at once: at most 4 MiB over what an answer may have


Route = Callable[[Request], Awaitable[Response]]


class Api:
    """The routes of one room server."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        presence: Presence,
        access: Access,
        limits: Limits,
        revocations: Revocations,
        metrics: Metrics,
        admin: Route | None = None,
    ) -> None:
        """
        Args:
            admin: answers what is asked below ``/admin``; None: there is no such page.
        """
        self._admin = admin
        self._store = store
        self._hub = hub
        self._presence = presence
        self._access = access
        self._limits = limits
        self._revocations = revocations
        self._metrics = metrics
        self._draining = False
        self._closed = False
        self._begun = 0  # publishes that are not answered yet
        self._idle = asyncio.Event()

    @property
    def draining(self) -> bool:
        return self._draining

    async def drain(self) -> None:
        """Take no more publishes, and wait until those that were begun are answered."""
        self._draining = True
        self._metrics.draining.set(1)
        while self._begun:
            self._idle.clear()
            await self._idle.wait()

    async def handle(self, request: Request) -> Response:
        """Answer a request. Never raises for what a client or the store can do."""
        try:
            method, route = self._route(request)
            if request.method != method and (request.method, method) != ("HEAD", "GET"):
                raise method_not_allowed(method)
            return await route(request)
        except RequestError as error:
            return error.response
        except StoreUnavailableError as error:
            return unavailable(str(error)).response

    async def close(self) -> None:
        """Let go of the store; no route asks it any more."""
        self._closed = True
        await self._store.close()

    def _route(self, request: Request) -> tuple[str, Route]:
        match request.segments:
            case ("rooms", _, "broadcast"):
                return "POST", self._broadcast_one
            case ("health",):
                return "GET", self._health
            case ("ready",):
                return "GET", self._ready
            case ("metrics",):
                return "GET", self._show_metrics
            case ("openapi.json",):
                return "GET", self._openapi
            case ("broadcast",):
                return "POST", self._broadcast_many
            case ("revoke",):
                return "POST", self._revoke
            case ("admin", *_) if self._admin is not None:
                return "GET", self._admin
            case ("rooms", _, "subscribe"):
                return "GET", self._subscribe_without_upgrade
            case ("rooms", _, "history"):
                return "GET", self._history
            case ("rooms", _, "health"):
                return "GET", self._room_health
            case ("rooms", _, "presence"):
                return "GET", self._room_presence
        raise RequestError(404, "not_found", "Not found", "see PROTOCOL.md, 'HTTP', for the routes")

    async def _health(self, _: Request) -> Response:
        return json_response(200, {"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        self.refuse_while_draining()
        await self._store.check()
        return json_response(200, {"status": "ready"})

    async def _show_metrics(self, request: Request) -> Response:
        claims = await self._access.identify(request)
        require_scope(claims, "metrics", "admin")
        self._metrics.rooms.set(len(self._hub) - 1)  # revocations have one, and it is nobody's
        content = self._metrics.text(await self._store.usage())
        return Response(200, content, content_type=CONTENT_TYPE)

    async def _openapi(self, _: Request) -> Response:
        return json_response(200, document())

    async def _room_health(self, request: Request) -> Response:
        room = room_of(request.segments[1])
        claims = await self._access.identify(request)
        if not claims.opens(room):
            raise forbidden("the token does not open this room")
        connections = self._hub.connections(room)
        return json_response(200, {"status": "ok", "connections": connections, "roomId": room})

    async def _room_presence(self, request: Request) -> Response:
        room = room_of(request.segments[1])
        claims = await self._access.identify(request)
        await self._access.permit(claims, "presence", room)
        connections = self._hub.connections(room)
        users = self._presence.users(room)
        return json_response(200, {"room": room, "connections": connections, "users": users})

    async def _subscribe_without_upgrade(self, request: Request) -> Response:
        room_of(request.segments[1])
        raise RequestError(
            426,
            "upgrade_required",
            "Expected WebSocket upgrade",
            "open this address as a WebSocket, ws:// or wss://",
            {"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    async def _history(self, request: Request) -> Response:
        room = room_of(request.segments[1])
        if self._closed:
            raise unavailable("the server has stopped")
        claims = await self._access.identify(request)
        await self._access.permit(claims, "subscribe", room)
        after = request.query.get("after", "earliest")
        position = (
            self._store.earliest() if after == "earliest" else position_of(after, "or 'earliest'")
        )
        wanted = _limit_of(request.query.get("limit"))
        head = await self._store.head(room)
        texts: list[str] = []
        size, recovered, more = 0, True, True
        while more and len(texts) < wanted and size < MAX_HISTORY_BYTES:
            page = await self._store.read(room, position, _PAGE)
            if not page.recovered:
                recovered, position = False, self._store.earliest()
            more = len(page.entries) == _PAGE
            for entry in page.entries:
                if len(texts) == wanted or size >= MAX_HISTORY_BYTES:
                    more = True
                    break
                texts.append(entry.text)
                size += entry.size
                position = entry.cursor
        if more:
            more = bool((await self._store.read(room, position, 1)).entries)
        else:  # all up to the head was read; an empty room has a position, too
            position = max(position, head, key=lambda cursor: cursor.offset)
        around = {"room": room, "cursor": str(position), "recovered": recovered, "more": more}
        opening = json.dumps(around, separators=(",", ":"))[:-1]
        content = f'{opening},"notifications":[{",".join(texts)}]}}'
        return Response(200, content.encode())

    async def _broadcast_one(self, request: Request) -> Response:
        began_at = perf_counter()
        self.refuse_while_draining()
        room = room_of(request.segments[1])
        claims = await self._access.identify(request)
        await self._access.permit(claims, "broadcast", room)
        traceparent = request.headers.get("traceparent")
        id, text, span = self._check(await json_body(request), traceparent)
        spans = () if span is NOTHING else (span,)
        publications = (Publication(room, id, text),)
        (receipt,) = await self._publish(claims, publications, len(text), began_at, spans)
        return json_response(
            200,
            {
                "success": True,
                "broadcastCount": receipt.broadcast_count,
                "message": "Notification broadcasted",
                "id": receipt.id,
                "cursor": str(receipt.cursor),
                "duplicate": receipt.duplicate,
            },
        )

    async def _publish(
        self,
        claims: Claims,
        publications: Sequence[Publication],
        size: int,
        began_at: float,
        spans: Sequence[Span],
    ) -> Sequence[Receipt]:
        """
        Args:
            size: of all their texts.
            spans: end with it.

        Raises:
            RequestError: 429, or 503 while draining.
            StoreUnavailableError: nothing was kept.
        """
        problem: str | None = "cancelled"
        count = len(publications)
        self._begun += 1  # which draining waits for
        try:
            self.refuse_while_draining()
            if self._limits.count_publishes:
                self._limits.check_publish(claims, count, size)
            deliver = partial(self._hub.deliver, began_at=began_at)
            receipts = await self._store.publish(publications, deliver)
            problem = None
        except RequestError as error:
            problem = str(error)
            self._metrics.published(
                "unavailable" if error.response.status == 503 else "refused", count
            )
            raise
        except StoreUnavailableError as error:
            problem = str(error)
            self._metrics.published("unavailable", count)
            raise
        finally:
            self._begun -= 1
            if self._draining:
                self._idle.set()
            for span in spans:
                span.end(problem)
        self._metrics.accepted(receipts, size)
        if events.are_detailed():
            rooms = (publication.room for publication in publications)
            events.published(claims, zip(rooms, receipts, strict=True))
        return receipts

    async def _broadcast_many(self, request: Request) -> Response:
        began_at = perf_counter()
        self.refuse_while_draining()
        claims = await self._access.identify(request)
        require_scope(claims, "broadcast")
        body = await json_body(request)
        items = body.get("notifications") if isinstance(body, dict) else None
        if not isinstance(items, list) or not items:
            raise malformed("Invalid batch", "notifications: expected a list of at least one")
        if len(items) > MAX_BATCH_NOTIFICATIONS:
            raise too_large(f"a batch has at most {MAX_BATCH_NOTIFICATIONS} notifications")
        pairs = sum(len(item["rooms"]) for item in items if _has_rooms(item))
        if pairs > MAX_BATCH_NOTIFICATIONS:
            raise too_large(
                f"a batch goes to at most {MAX_BATCH_NOTIFICATIONS} rooms, over all its "
                "notifications"
            )
        rooms = [_rooms_of(item) for item in items]
        named = (room for each in rooms if not isinstance(each, RequestError) for room in each)
        verdicts = await self._access.permit_each(claims, "broadcast", dict.fromkeys(named))
        traceparent = request.headers.get("traceparent")
        checked: list[list[Publication] | RequestError] = []
        spans: list[Span] = []
        for number, (item, its_rooms) in enumerate(zip(items, rooms, strict=True), 1):
            checked.append(self._check_item(item, its_rooms, verdicts, traceparent, spans))
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # a large batch keeps nobody else waiting
        return await self._publish_checked(checked, claims, began_at, spans)

    async def _publish_checked(
        self,
        checked: Sequence[list[Publication] | RequestError],
        claims: Claims,
        began_at: float,
        spans: Sequence[Span],
    ) -> Response:
        good = [entry for entry in checked if not isinstance(entry, RequestError)]
        size = sum([len(each.text) for entry in good for each in entry])
        if size > MAX_SPREAD_BYTES:
            for span in spans:
                span.end("too large")
            raise too_large(
                f"a batch has at most {MAX_SPREAD_BYTES} bytes, each notification counted once for "
                "each of its rooms"
            )
        self._metrics.published("refused", len(checked) - len(good))
        publications = [each for entry in good for each in entry]
        try:
            receipts = iter(await self._publish(claims, publications, size, began_at, spans))
            failure = None
        except StoreUnavailableError as error:
            failure = unavailable(str(error))
        results = []
        for entry in checked:
            if isinstance(entry, RequestError):
                events.refused(entry.body, None, None, claims)
                results.append({"success": False, **entry.body})
            elif failure is not None:
                results.append({"success": False, **failure.body})
            else:
                results.append(_result([(each.room, next(receipts)) for each in entry]))
        success = all(result["success"] for result in results)
        return json_response(200, {"success": success, "results": results})

    def _check_item(
        self,
        item: dict[str, Any],
        rooms: list[Room] | RequestError,
        verdicts: Mapping[Room, RequestError | None],
        traceparent: str | None,
        spans: list[Span],
    ) -> list[Publication] | RequestError:
        """One notification of a batch, once for each of its rooms, or what is wrong with it."""
        if isinstance(rooms, RequestError):
            return rooms
        for room in rooms:
            if (verdict := verdicts[room]) is not None:
                return verdict
        try:
            del item["rooms"]
            id, text, span = self._check(item, traceparent)
        except RequestError as error:
            return error
        if span is not NOTHING:
            spans.append(span)
        return [Publication(room, id, text) for room in rooms]

    async def _revoke(self, request: Request) -> Response:
        self.refuse_while_draining()
        claims = await self._access.identify(request)
        require_scope(claims, "admin")
        body = await json_body(request)
        self.refuse_while_draining()
        self._begun += 1
        try:
            match body:
                case {"user": str(name)} if 0 < len(name) <= 512:
                    of: Literal["user", "token"] = "user"
                case {"token": str(token)} if 0 < len(token) <= MAX_TOKEN_BYTES:
                    of, name = "token", id_of_token(token)
                case _:
                    raise malformed("Nothing to revoke", 'expected {"user": id} or {"token": …}')
            closed = await self._revocations.revoke(of, name)
            events.revoked(claims, of, name, closed)
        finally:
            self._begun -= 1
            self._idle.set()
        return json_response(200, {"success": True, "closed": closed})

    def refuse_while_draining(self) -> None:
        """
        Raises:
            RequestError: 503.
        """
        if self._draining:
            raise unavailable("the server is shutting down")

    def _check(self, value: object, traceparent: str | None) -> tuple[str, str, Span]:
        """The id and the JSON of a notification, with what the server adds; its span has begun.

        Raises:
            RequestError: it is none, or too large.
        """
        try:
            if isinstance(value, dict):  # what a sender wrote there is replaced, whatever it is
                for name in _OURS:
                    if name in value:
                        del value[name]
            wire = check_wire(value)
            if "id" not in wire:
                wire["id"] = str(uuid_utils.uuid7())
            if "timestamp" not in wire:
                wire["timestamp"] = now_as_timestamp()
            span = begin_publish(wire, traceparent) if is_on() else NOTHING
            content = pydantic_core.to_json(wire)
            if (
                b"Infinity" in content or b"NaN" in content
            ):  # perhaps a number: 1e999 is right JSON, and none of ours
                content = encode_json("notification", wire)
        except InvalidArgumentError as error:
            raise malformed(
                "Invalid message format. Required: type, data", f"{error.field}: {error.problem}"
            ) from error
        if len(content) > MAX_NOTIFICATION_BYTES:
            raise too_large(f"a notification has at most {MAX_NOTIFICATION_BYTES} bytes")
        return wire["id"], content.decode(), span


def _result(receipts: Sequence[tuple[Room, Receipt]]) -> dict[str, Any]:
    """What became of one notification of a batch."""
    return {
        "success": True,
        "broadcastCount": sum(receipt.broadcast_count for _, receipt in receipts),
        "id": receipts[0][1].id,
        "rooms": {
            room: {
                "broadcastCount": receipt.broadcast_count,
                "cursor": str(receipt.cursor),
                "duplicate": receipt.duplicate,
            }
            for room, receipt in receipts
        },
    }


def _limit_of(text: str | None) -> int:
    if text is None:
        return HISTORY_LIMIT
    if text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MAX_HISTORY_LIMIT:
        return int(text)
    raise malformed("Invalid limit", f"limit: expected 1 to {MAX_HISTORY_LIMIT}")


def _has_rooms(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("rooms"), list) and bool(item["rooms"])


def _rooms_of(item: object) -> list[Room] | RequestError:
    """The rooms of one notification of a batch, each once, or what is wrong with them."""
    try:
        if not isinstance(item, dict):
            raise malformed("Invalid notification", "expected a JSON object")
        if not _has_rooms(item):
            raise malformed("Invalid notification", "rooms: expected a list of at least one")
        if len(item["rooms"]) == 1:
            return [room_of(_room_name(item["rooms"][0]))]
        return [room_of(name) for name in dict.fromkeys(map(_room_name, item["rooms"]))]
    except RequestError as error:
        return error


def _room_name(value: object) -> str:
    if not isinstance(value, str):
        raise malformed("Invalid room id", "rooms: expected strings")
    return value
