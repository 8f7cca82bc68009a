"""The HTTP routes as an OpenAPI 3.1 document, served at ``/openapi.json``."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..protocol.notification import MAX_BATCH_NOTIFICATIONS
from ..protocol.rooms import ROOM_PATTERN

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_FLAG: dict[str, Any] = {"type": "boolean"}
_CURSOR: dict[str, Any] = {"type": "string", "pattern": "^[A-Za-z0-9]{1,32}-[0-9]{1,18}$"}
_ROOM_ID: dict[str, Any] = {"type": "string", "pattern": f"^{ROOM_PATTERN}$"}
_NAME: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 128}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_NOTIFICATION = _object(
    "type",
    "data",
    id={**_NAME, "description": "The same id is the same notification. Default: a UUIDv7."},
    type={**_NAME, "pattern": "^(?!synap\\.)", "description": "Dotted; synap. is reserved."},
    data={"type": "object"},
    requestId={"type": ["string", "null"]},
    status={"enum": ["pending", "success", "error", None]},
    timestamp={"type": ["string", "null"], "format": "date-time"},
)
_NOTIFICATION["properties"]["id"]["type"] = ["string", "null"]
_NOTIFICATION["description"] = "Members that are not named here are kept and delivered."
_NOTIFICATION["properties"] |= {
    name: {"description": "Set by the server on delivery; what is sent here is replaced."}
    for name in ("room", "cursor")
}

_DELIVERED = _object(
    "type", "data", "id", "timestamp", "room", "cursor",
    type=_NAME, data={"type": "object"}, id=_NAME, requestId=_TEXT,
    status={"enum": ["pending", "success", "error"]},
    timestamp={"type": "string", "format": "date-time", "pattern": "\\.[0-9]{3}Z$"},
    room=_TEXT, cursor=_CURSOR,
)  # fmt: skip

_CODE = {
    "enum": [
        "invalid_request",
        "unauthorized",
        "forbidden",
        "not_found",
        "method_not_allowed",
        "payload_too_large",
        "unsupported_media_type",
        "upgrade_required",
        "request_timeout",
        "rate_limited",
        "unavailable",
        "misconfigured",
    ],
}

_RECEIPT = {"broadcastCount": _COUNT, "cursor": _CURSOR, "duplicate": _FLAG}

_SCHEMAS: dict[str, Any] = {
    "Notification": _NOTIFICATION,
    "DeliveredNotification": _DELIVERED,
    "Batch": _object(
        "notifications",
        notifications={
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_BATCH_NOTIFICATIONS,
            "description": "Each is checked alone: a bad one fails alone, in the answer.",
            "items": {"anyOf": [_ref("BatchItem"), {}]},
        },
    ),
    "BatchItem": {
        "allOf": [
            _ref("Notification"),
            _object("rooms", rooms={"type": "array", "minItems": 1, "items": _ROOM_ID}),
        ],
    },
    "Receipt": _object(
        "success", "broadcastCount", "message", "id", "cursor", "duplicate",
        success={"const": True}, message=_TEXT, id=_TEXT, **_RECEIPT,
    ),
    "BatchReceipt": _object(
        "success", "results",
        success=_FLAG,
        results={
            "type": "array",
            "items": {
                "oneOf": [
                    _object(
                        "success", "id", "broadcastCount", "rooms",
                        success={"const": True}, id=_TEXT, broadcastCount=_COUNT,
                        rooms={
                            "type": "object",
                            "additionalProperties": _object(*_RECEIPT, **_RECEIPT),
                        },
                    ),
                    _object(
                        "success", "error", "details", "code",
                        success={"const": False}, error=_TEXT, details=_TEXT, code=_CODE,
                    ),
                ]
            },
        },
    ),
    "History": _object(
        "room", "notifications", "cursor", "recovered", "more",
        room=_TEXT, cursor=_CURSOR, recovered=_FLAG, more=_FLAG,
        notifications={"type": "array", "items": _ref("DeliveredNotification")},
    ),
    "RoomHealth": _object(
        "status", "connections", "roomId",
        status={"const": "ok"}, connections=_COUNT, roomId=_TEXT,
    ),
    "RoomPresence": _object(
        "room", "connections", "users",
        room=_TEXT, connections=_COUNT,
        users={
            "type": "array",
            "items": _object(
                "user", "connections", "devices",
                user=_TEXT, connections=_COUNT, devices={"type": "array", "items": _TEXT},
            ),
        },
    ),
    "Revocation": {
        "anyOf": [
            _object("user", user={**_TEXT, "minLength": 1, "maxLength": 512}),
            _object("token", token={**_TEXT, "minLength": 1, "maxLength": 8292}),
            _object("jti", jti={**_TEXT, "minLength": 1, "maxLength": 512}),
        ]
    },
    "Revoked": _object(
        "success", "revoked", "closed",
        success={"const": True}, revoked={"type": "boolean"}, closed=_COUNT,
    ),
    "Error": _object("error", "details", "code", error=_TEXT, details=_TEXT, code=_CODE),
}  # fmt: skip

_ROOM = {
    "name": "room",
    "in": "path",
    "required": True,
    "schema": _ROOM_ID,
    "example": "user_42",
}


def _query(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """An empty one is none."""
    parameter = {"name": name, "in": "query", "description": text, "schema": schema}
    return {**parameter, "allowEmptyValue": True}


def _position(*names: str) -> dict[str, Any]:
    """``names`` beside a cursor; an empty one is none."""
    return _query("after", "Where to start.", {"anyOf": [_CURSOR, {"enum": [*names, ""]}]})


_DEVICE = _query(
    "device",
    "Which of the user's devices this is; an empty one is none.",
    {"type": "string", "pattern": "^[A-Za-z0-9._~:@|=+-]{0,64}$"},
)

_PRESENCE = _query(
    "presence", "1: tell who comes and goes; wants the scope presence.", {"enum": ["", "0", "1"]}
)


def _answer(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _error(status: int) -> dict[str, Any]:
    answer = _answer("See PROTOCOL.md, Errors.", _ref("Error"))
    if status == 426:
        answer["headers"] = {"Upgrade": {"required": True, "schema": {"const": "websocket"}}}
    if status == 401:
        answer["headers"] = {"WWW-Authenticate": {"required": True, "schema": _TEXT}}
    if status in (429, 503):
        seconds = {"type": "integer", "minimum": 1}
        answer["headers"] = {"Retry-After": {"required": True, "schema": seconds}}
    return answer


def _operation(id: str, text: str, answers: dict[str, Any], *errors: int) -> dict[str, Any]:
    """``answers`` by status; each error is the same object (PROTOCOL.md, "Errors")."""
    wrong = {str(status): _error(status) for status in errors}
    return {"operationId": id, "summary": text, "responses": {**answers, **wrong}}


def _json_body(name: str) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": _ref(name)}}}


def _ok(name: str) -> dict[str, Any]:
    return {"200": _answer("Done.", _ref(name))}


def _yes(status: str) -> dict[str, Any]:
    return {"200": _answer("Yes.", _object("status", status={"const": status}))}


@cache
def document() -> dict[str, Any]:
    """OpenAPI 3.1.0. The WebSocket route is in it as what it is without an upgrade: a 426."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "synap-realtime room server",
            "version": "1",
            "description": "The HTTP part of the wire contract; PROTOCOL.md is the whole.",
        },
        "paths": {
            "/health": {"get": _operation("health", "Does the process live?", _yes("ok"), 403)},
            "/ready": {
                "get": _operation("ready", "May it have traffic?", _yes("ready"), 403, 503),
            },
            "/openapi.json": {
                "get": _operation(
                    "openapi", "This document.", {"200": _answer("It.", {"type": "object"})}, 403
                )
            },
            "/metrics": {
                "get": _operation(
                    "metrics", "Counts for Prometheus, in its text format.",
                    {"200": {
                        "description": "They.", "content": {"text/plain": {"schema": _TEXT}},
                    }},
                    401, 403, 503,
                )
            },
            "/broadcast": {
                "post": {
                    **_operation(
                        "broadcastMany", "Many notifications, each to its rooms.",
                        _ok("BatchReceipt"), 400, 401, 403, 408, 413, 415, 429, 503,
                    ),
                    "requestBody": _json_body("Batch"),
                }
            },
            "/revoke": {
                "post": {
                    **_operation(
                        "revoke", "A user's tokens, or one, count no more.",
                        _ok("Revoked"), 400, 401, 403, 408, 413, 415, 503,
                    ),
                    "requestBody": _json_body("Revocation"),
                }
            },
            "/rooms/{room}/broadcast": {
                "parameters": [_ROOM],
                "post": {
                    **_operation(
                        "broadcast", "One notification to one room.",
                        _ok("Receipt"), 400, 401, 403, 408, 413, 415, 429, 503,
                    ),
                    "requestBody": _json_body("Notification"),
                },
            },
            "/rooms/{room}/subscribe": {
                "parameters": [_ROOM],
                "get": {
                    **_operation(
                        "subscribe", "A WebSocket.",
                        {"101": {"description": "The WebSocket, for a request with an upgrade."}},
                        400, 401, 403, 426, 429, 503,
                    ),
                    "parameters": [_position("earliest", "latest"), _DEVICE, _PRESENCE],
                },
            },
            "/rooms/{room}/events": {
                "parameters": [_ROOM],
                "get": {
                    **_operation(
                        "events", "The same as Server-Sent Events; ends when the server does.",
                        {"200": {
                            "description": "Events.",
                            "content": {"text/event-stream": {"schema": _TEXT}},
                        }},
                        400, 401, 403, 429, 503,
                    ),
                    "parameters": [
                        _position("earliest", "latest"),
                        _DEVICE,
                        _PRESENCE,
                        {
                            "name": "Last-Event-ID", "in": "header", "schema": _TEXT,
                            "description": "Resumes after this cursor; wins over after.",
                        },
                    ],
                },
            },
            "/rooms/{room}/history": {
                "parameters": [_ROOM],
                "get": {
                    **_operation(
                        "history", "The retained log, oldest first.", _ok("History"),
                        400, 401, 403, 503,
                    ),
                    "parameters": [
                        _position("earliest"),
                        _query("limit", "At most so many; default 100.",
                               {"type": "integer", "minimum": 1, "maximum": 1000}),
                    ],
                },
            },
            "/rooms/{room}/health": {
                "parameters": [_ROOM],
                "get": _operation(
                    "roomHealth", "How many connections a room has.", _ok("RoomHealth"),
                    400, 401, 403, 503,
                ),
            },
            "/rooms/{room}/presence": {
                "parameters": [_ROOM],
                "get": _operation(
                    "roomPresence", "Who is in a room.", _ok("RoomPresence"), 400, 401, 403, 503,
                ),
            },
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {
                "credential": {
                    "type": "http", "scheme": "bearer",
                    "description": "A publisher's key, or a JWT. See PROTOCOL.md.",
                },
                "query": {"type": "apiKey", "in": "query", "name": "token"},
            },
        },
        # The last: a server without keys wants none, and neither do the routes about its health.
        "security": [{"credential": []}, {"query": []}, {}],
    }  # fmt: skip
