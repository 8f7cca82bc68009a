"""Every HTTP route as a pure request -> response. See PROTOCOL.md, "HTTP"."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import pydantic_core
import uuid_utils

from ..errors import InvalidArgumentError
from ..protocol.notification import (
    MAX_BATCH_BYTES,
    MAX_BATCH_NOTIFICATIONS,
    MAX_NOTIFICATION_BYTES,
    encode_json,
    format_timestamp,
    parse_notification,
)
from ..protocol.rooms import Room, parse_room
from .hub import Hub
from .stores.base import Receipt, Store, StoreUnavailableError

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = MAX_BATCH_BYTES
"""No route reads more."""

RETRY_AFTER_S = 1


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request. ``segments`` is the path, split at ``/`` and then percent-decoded."""

    method: str
    segments: tuple[str, ...]
    content_type: str | None = None
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer: always JSON."""

    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self) -> bytes:
        return json.dumps(self.body, ensure_ascii=False, separators=(",", ":")).encode()


class RequestError(Exception):
    """A request that gets an error answer. See PROTOCOL.md, "Errors"."""

    def __init__(
        self,
        status: int,
        code: str,
        error: str,
        details: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.body = {"error": error, "details": details, "code": code}
        self.response = Response(status, self.body, headers or {})


def malformed(error: str, details: str) -> RequestError:
    return RequestError(400, "malformed", error, details)


def too_large(details: str) -> RequestError:
    return RequestError(413, "too_large", "Too large", details)


def unavailable(details: str) -> RequestError:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return RequestError(503, "unavailable", "Try again later", details, headers)


def room_of(segment: str) -> Room:
    """The room in a path.

    Raises:
        RequestError: 400.
    """
    try:
        return parse_room(segment)
    except InvalidArgumentError as error:
        raise malformed("Invalid room id", error.problem) from error


def split_path(raw: str) -> tuple[str, ...]:
    """A path as it came, as decoded segments; ``%2F`` does not split.

    Raises:
        RequestError: 400, if it is not UTF-8 under its percent-encoding.
    """
    try:
        return tuple(unquote(part, errors="strict") for part in raw.strip("/").split("/"))
    except UnicodeDecodeError:
        raise malformed("Invalid path", "its percent-encoding is not UTF-8") from None


class Api:
    """The routes of one room server."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self._store = store
        self._hub = hub
        self.draining = False

    async def handle(self, request: Request) -> Response:
        """Answer a request. Never raises for what a client or the store can do."""
        try:
            method, route = self._route(request)
            if request.method != method:
                raise RequestError(
                    405,
                    "method_not_allowed",
                    "Method not allowed",
                    f"this route takes {method}",
                    {"Allow": method},
                )
            return await route(request)
        except RequestError as error:
            return error.response
        except StoreUnavailableError as error:
            logger.error("the store is not available: %s", error)
            return unavailable("the notification could not be stored").response

    def _route(self, request: Request) -> tuple[str, Callable[[Request], Awaitable[Response]]]:
        match request.segments:
            case ("health",):
                return "GET", self._health
            case ("ready",):
                return "GET", self._ready
            case ("broadcast",):
                return "POST", self._broadcast_many
            case ("rooms", _, "broadcast"):
                return "POST", self._broadcast_one
            case ("rooms", _, "subscribe"):
                return "GET", self._subscribe_without_upgrade
            case ("rooms", _, "health"):
                return "GET", self._room_health
        raise RequestError(404, "not_found", "Not found", "see PROTOCOL.md, 'HTTP', for the routes")

    async def _health(self, _: Request) -> Response:
        return Response(200, {"status": "ok"})

    async def _ready(self, _: Request) -> Response:
        if self.draining:
            raise unavailable("the server is shutting down")
        return Response(200, {"status": "ready"})

    async def _room_health(self, request: Request) -> Response:
        room = room_of(request.segments[1])
        connections = self._hub.connections(room)
        return Response(200, {"status": "ok", "connections": connections, "roomId": room})

    async def _subscribe_without_upgrade(self, request: Request) -> Response:
        room_of(request.segments[1])
        raise RequestError(
            426,
            "upgrade_required",
            "Expected WebSocket upgrade",
            "open this address as a WebSocket, ws:// or wss://",
            {"Upgrade": "websocket", "Connection": "Upgrade"},
        )

    async def _broadcast_one(self, request: Request) -> Response:
        self._refuse_while_draining()
        room = room_of(request.segments[1])
        id, wire = self._check(_decode(request))
        receipt = await self._publish(room, id, wire)
        return Response(
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

    async def _broadcast_many(self, request: Request) -> Response:
        self._refuse_while_draining()
        body = _decode(request)
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
        results = [await self._broadcast_item(item) for item in items]
        return Response(200, {"success": all(r["success"] for r in results), "results": results})

    async def _broadcast_item(self, item: object) -> dict[str, Any]:
        """One notification of a batch to its rooms: a bad one fails alone."""
        try:
            if not isinstance(item, dict):
                raise malformed("Invalid notification", "expected a JSON object")
            if not _has_rooms(item):
                raise malformed("Invalid notification", "rooms: expected a list of at least one")
            rooms = [room_of(name) for name in dict.fromkeys(map(_room_name, item["rooms"]))]
            id, wire = self._check({k: v for k, v in item.items() if k != "rooms"})
            receipts = {room: await self._publish(room, id, wire) for room in rooms}
        except RequestError as error:
            return {"success": False, **error.body}
        except StoreUnavailableError as error:
            logger.error("the store is not available: %s", error)
            return {"success": False, **unavailable("the store is not available").body}
        return {
            "success": True,
            "broadcastCount": sum(receipt.broadcast_count for receipt in receipts.values()),
            "id": id,
            "rooms": {
                room: {
                    "broadcastCount": receipt.broadcast_count,
                    "cursor": str(receipt.cursor),
                    "duplicate": receipt.duplicate,
                }
                for room, receipt in receipts.items()
            },
        }

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise unavailable("the server is shutting down")

    def _check(self, value: object) -> tuple[str, dict[str, Any]]:
        """A notification's id and its wire form, with what the server adds."""
        try:
            notification = parse_notification(value)
            wire = notification.to_wire()
            id = wire.setdefault("id", str(uuid_utils.uuid7()))
            wire.setdefault("timestamp", format_timestamp(datetime.now(UTC)))
            size = len(encode_json("notification", wire))
        except InvalidArgumentError as error:
            raise malformed(
                "Invalid message format. Required: type, data", f"{error.field}: {error.problem}"
            ) from error
        if size > MAX_NOTIFICATION_BYTES:
            raise too_large(f"a notification has at most {MAX_NOTIFICATION_BYTES} bytes")
        return str(id), wire

    async def _publish(self, room: Room, id: str, wire: dict[str, Any]) -> Receipt:
        receipt = await self._store.publish(
            room, id, wire, lambda entry: self._hub.deliver(room, entry)
        )
        # However much one request publishes, subscribers read along and others are answered.
        await asyncio.sleep(0)
        return receipt


def _has_rooms(item: object) -> bool:
    return isinstance(item, dict) and isinstance(item.get("rooms"), list) and bool(item["rooms"])


def _room_name(value: object) -> str:
    if not isinstance(value, str):
        raise malformed("Invalid room id", "rooms: expected strings")
    return value


def _decode(request: Request) -> object:
    """The JSON body: strict (no NaN, no lone surrogates, bounded depth).

    Raises:
        RequestError: 400 or 415.
    """
    if request.content_type is not None:
        media = request.content_type.partition(";")[0].strip().lower()
        if media != "application/json" and not media.endswith("+json"):
            raise RequestError(
                415,
                "unsupported_media_type",
                "Unsupported media type",
                "send Content-Type: application/json",
            )
    try:
        return pydantic_core.from_json(request.body, allow_inf_nan=False)
    except ValueError as error:
        raise malformed("Invalid JSON", str(error)) from error
