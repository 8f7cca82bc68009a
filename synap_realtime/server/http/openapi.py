"""Describe the HTTP routes as an OpenAPI 3.1 document, served at ``/openapi.json``."""

from __future__ import annotations

from functools import cache
from typing import Any

from ...protocol.control import MAX_STREAM_ROOMS
from ...protocol.folding import MAX_ATTEMPT, MAX_KEY_LENGTH
from ...protocol.job_state import EVENTS, MAX_ID_LENGTH, MAX_NAME_LENGTH, STATUSES
from ...protocol.notification import MAX_BATCH_NOTIFICATIONS
from ...protocol.rooms import KEY_PATTERN, ROOM_PATTERN

_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
_FLAG: dict[str, Any] = {"type": "boolean"}
_CURSOR: dict[str, Any] = {"type": "string", "pattern": "^[A-Za-z0-9]{1,32}-[0-9]{1,18}$"}
_ROOM_ID: dict[str, Any] = {"type": "string", "pattern": f"^{ROOM_PATTERN}$"}
_NAME: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 128}
_KEY: dict[str, Any] = {"type": "string", "pattern": f"^{KEY_PATTERN}$"}
_TIME: dict[str, Any] = {"type": "string", "format": "date-time"}


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_NUMBER: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": MAX_ATTEMPT}
_OPTIONAL_NUMBER = {**_NUMBER, "type": ["integer", "null"]}


def _fold(mode: str, **members: Any) -> dict[str, Any]:
    """Return a member ``fold`` of a published notification."""
    fold = _object(
        "key", "mode",
        key={"type": "string", "pattern": f"^[ -~]{{1,{MAX_KEY_LENGTH}}}$"},
        mode={"const": mode},
        attempt=_OPTIONAL_NUMBER,
        final={"type": ["boolean", "null"]},
        **members,
    )  # fmt: skip
    return {**fold, "additionalProperties": False}


_FOLDED = [
    _object(fold={"anyOf": [{"type": "null"}, _fold("replace", offset={"type": "null"})]}),
    _object(
        "fold",
        fold=_fold("append", offset=_OPTIONAL_NUMBER),
        data=_object("delta", delta=_TEXT),
    ),
]

_JOB = _object(
    "event", "name", "runId",
    event={"enum": list(EVENTS)}, name=_NAME, runId=_NAME,
    userId={"type": ["string", "null"], "minLength": 1, "maxLength": MAX_ID_LENGTH},
    attempt=_OPTIONAL_NUMBER,
)  # fmt: skip
_JOB["description"] = "Changes the record of a job. Unknown members have no effect."

_NOTIFICATION = _object(
    "type",
    "data",
    id={
        **_NAME,
        "description": "Publishing the same id again delivers nothing new. Default: a UUIDv7.",
    },
    type={
        **_NAME,
        "pattern": "^(?!synap\\.)",
        "description": "Dotted. The prefix synap. is reserved.",
    },
    data={"type": "object"},
    requestId={"type": ["string", "null"]},
    status={"enum": ["pending", "success", "error", None]},
    timestamp={"type": ["string", "null"], "format": "date-time"},
    job={"anyOf": [{"type": "null"}, _JOB]},
)
_NOTIFICATION["properties"]["id"]["type"] = ["string", "null"]
_NOTIFICATION["anyOf"] = _FOLDED
_NOTIFICATION["description"] = "Unknown members are kept and delivered."
_NOTIFICATION["properties"] |= {
    name: {"description": "Set by the server on delivery. A published value is replaced."}
    for name in ("room", "cursor")
}

_DELIVERED = _object(
    "type", "data", "id", "timestamp", "room", "cursor",
    type=_NAME, data={"type": "object"}, id=_NAME, requestId=_TEXT,
    status={"enum": ["pending", "success", "error"]},
    timestamp={"type": "string", "format": "date-time", "pattern": "\\.[0-9]{3}Z$"},
    room=_TEXT, cursor=_CURSOR,
    fold=_object(
        "key", "mode", "attempt",
        key=_TEXT, mode={"enum": ["append", "replace"]},
        attempt=_NUMBER, offset=_NUMBER, final=_FLAG,
    ),
    job=_JOB,
)  # fmt: skip

_ANY_STATUS = f"({'|'.join(sorted(STATUSES))})"

POSITION_PATTERN = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z/.{1,200}"
"""A position in a list of jobs: ``startedAt``, a slash, and the id of the record."""

_JOB_RECORD = _object(
    "type", "status", "runId", "attempt", "truncated",
    type=_NAME, status={"enum": sorted(STATUSES)}, runId=_NAME, userId=_TEXT, requestId=_TEXT,
    progress={"type": "number", "minimum": 0, "maximum": 1}, label=_TEXT,
    attempt={"type": "integer", "minimum": 1}, maxAttempts={"type": "integer", "minimum": 1},
    result={"type": "object"}, error=_TEXT, truncated=_FLAG,
    stallAfterS={"type": "number", "exclusiveMinimum": 0},
    startedAt=_TIME, updatedAt=_TIME, endedAt=_TIME,
    text={**_TEXT, "description": "What the run has written. Lists do not have it."},
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
        "offset_mismatch",
        "stale_attempt",
        "fold_mode",
        "too_many_keys",
    ],
}

_PARTIAL = {
    **_object(
        "answered", "nodes", answered=_COUNT, nodes={"type": ["integer", "null"], "minimum": 0}
    ),
    "description": "Present if some nodes did not answer. The counts are those of the others.",
}

_RECEIPT = {"broadcastCount": _COUNT, "cursor": _CURSOR, "duplicate": _FLAG}

_ERROR = {
    "error": _TEXT, "details": _TEXT, "code": _CODE,
    "offset": {**_NUMBER, "description": "For offset_mismatch: where the next piece begins."},
    "attempt": {**_NUMBER, "description": "For a conflict: the attempt of the fold key."},
}  # fmt: skip

_SCHEMAS: dict[str, Any] = {
    "Notification": _NOTIFICATION,
    "DeliveredNotification": _DELIVERED,
    "Batch": _object(
        "notifications",
        notifications={
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_BATCH_NOTIFICATIONS,
            "description": "Each is validated alone. An invalid one fails alone, in the response.",
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
                        success={"const": False}, **_ERROR,
                        id=_TEXT, broadcastCount=_COUNT,
                        rooms={
                            "type": "object",
                            "description": "For a conflict: the result for each room.",
                            "additionalProperties": {
                                "anyOf": [_object(*_RECEIPT, **_RECEIPT), _ref("Error")]
                            },
                        },
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
    "Job": _JOB_RECORD,
    "JobSnapshot": _object("job", "cursor", job=_ref("Job"), cursor=_CURSOR),
    "Jobs": _object(
        "jobs", "cursor", "next",
        jobs={"type": "array", "items": _ref("Job")}, cursor=_CURSOR,
        next={"type": ["string", "null"], "description": "Where the next page begins."},
    ),
    "RoomHealth": _object(
        "status", "connections", "roomId",
        status={"const": "ok"}, connections=_COUNT, roomId=_TEXT, partial=_PARTIAL,
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
        success={"const": True}, revoked={"type": "boolean"}, closed=_COUNT, partial=_PARTIAL,
    ),
    "Error": _object("error", "details", "code", **_ERROR),
}  # fmt: skip

_ROOM = {
    "name": "room",
    "in": "path",
    "required": True,
    "schema": _ROOM_ID,
    "example": "user_42",
}


def _path(name: str) -> dict[str, Any]:
    """Return a path parameter with an id: what follows the kind of a room."""
    return {"name": name, "in": "path", "required": True, "schema": _KEY, "example": "42"}


def _query(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return a query parameter. An empty value counts as absent."""
    parameter = {"name": name, "in": "query", "description": text, "schema": schema}
    return {**parameter, "allowEmptyValue": True}


def _position(*names: str) -> dict[str, Any]:
    """Return the parameter for a position: a cursor or one of ``names``."""
    return _query("after", "Where to start.", {"anyOf": [_CURSOR, {"enum": [*names, ""]}]})


_DEVICE = _query(
    "device",
    "The name of the user's device. An empty value counts as absent.",
    {"type": "string", "pattern": "^[A-Za-z0-9._~:@|=+-]{0,64}$"},
)

_PRESENCE = _query(
    "presence", "1 sends presence frames. Requires the scope presence.", {"enum": ["", "0", "1"]}
)


def _response(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _error(status: int) -> dict[str, Any]:
    response = _response("See PROTOCOL.md, Errors.", _ref("Error"))
    if status == 426:
        response["headers"] = {"Upgrade": {"required": True, "schema": {"const": "websocket"}}}
    if status == 401:
        response["headers"] = {"WWW-Authenticate": {"required": True, "schema": _TEXT}}
    if status in (429, 503):
        seconds = {"type": "integer", "minimum": 1}
        response["headers"] = {"Retry-After": {"required": True, "schema": seconds}}
    return response


def _operation(id: str, text: str, responses: dict[str, Any], *errors: int) -> dict[str, Any]:
    """Return an operation. All errors have the same schema (PROTOCOL.md, "Errors")."""
    wrong = {str(status): _error(status) for status in errors}
    return {"operationId": id, "summary": text, "responses": {**responses, **wrong}}


def _json_body(name: str) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": _ref(name)}}}


def _ok(name: str) -> dict[str, Any]:
    return {"200": _response("Success.", _ref(name))}


def _status(status: str) -> dict[str, Any]:
    return {"200": _response("Success.", _object("status", status={"const": status}))}


@cache
def document() -> dict[str, Any]:
    """Return the OpenAPI 3.1.0 document. The WebSocket route is in it as an HTTP route (426)."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "synap-realtime room server",
            "version": "1",
            "description": "The HTTP routes. PROTOCOL.md describes the whole protocol.",
        },
        "paths": {
            "/health": {
                "get": _operation(
                    "health", "Check that the process is alive.", _status("ok"), 403,
                ),
            },
            "/ready": {
                "get": _operation(
                    "ready", "Check that the server can accept traffic.", _status("ready"),
                    403, 503,
                ),
            },
            "/openapi.json": {
                "get": _operation(
                    "openapi", "Return this document.",
                    {"200": _response("The document.", {"type": "object"})}, 403,
                )
            },
            "/metrics": {
                "get": _operation(
                    "metrics", "Return metrics in Prometheus' text format.",
                    {"200": {
                        "description": "The metrics.", "content": {"text/plain": {"schema": _TEXT}},
                    }},
                    401, 403, 503,
                )
            },
            "/broadcast": {
                "post": {
                    **_operation(
                        "broadcastMany", "Publish notifications, each to its rooms.",
                        _ok("BatchReceipt"), 400, 401, 403, 408, 413, 415, 429, 503,
                    ),
                    "requestBody": _json_body("Batch"),
                }
            },
            "/revoke": {
                "post": {
                    **_operation(
                        "revoke", "Revoke the tokens of a user, or one token.",
                        _ok("Revoked"), 400, 401, 403, 408, 413, 415, 503,
                    ),
                    "requestBody": _json_body("Revocation"),
                }
            },
            "/rooms/{room}/broadcast": {
                "parameters": [_ROOM],
                "post": {
                    **_operation(
                        "broadcast", "Publish a notification to a room.",
                        _ok("Receipt"), 400, 401, 403, 408, 409, 413, 415, 429, 503,
                    ),
                    "requestBody": _json_body("Notification"),
                },
            },
            "/rooms/{room}/subscribe": {
                "parameters": [_ROOM],
                "get": {
                    **_operation(
                        "subscribe", "Subscribe by WebSocket.",
                        {"101": {"description": "The handshake, for a request with an upgrade."}},
                        400, 401, 403, 426, 429, 503,
                    ),
                    "parameters": [_position("earliest", "latest"), _DEVICE, _PRESENCE],
                },
            },
            "/rooms/{room}/events": {
                "parameters": [_ROOM],
                "get": {
                    **_operation(
                        "events", "Subscribe by Server-Sent Events, until the server stops.",
                        {"200": {
                            "description": "The event stream.",
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
                            "description": "Resumes after this cursor. Overrides after.",
                        },
                    ],
                },
            },
            "/subscribe": {
                "get": _operation(
                    "subscribeMany", "Subscribe to many rooms by one WebSocket.",
                    {"101": {"description": "The handshake, for a request with an upgrade."}},
                    400, 401, 403, 404, 426, 429, 503,
                ),
            },
            "/events": {
                "get": {
                    **_operation(
                        "eventsOfMany", "Subscribe to many rooms by Server-Sent Events.",
                        {"200": {
                            "description": "The event stream.",
                            "content": {"text/event-stream": {"schema": _TEXT}},
                        }},
                        400, 401, 403, 404, 429, 503,
                    ),
                    "parameters": [
                        {
                            "name": "room", "in": "query", "required": True,
                            "description": "Each of the rooms.",
                            "schema": {
                                "type": "array", "items": _ROOM_ID,
                                "minItems": 1, "maxItems": MAX_STREAM_ROOMS,
                            },
                            "example": ["user_42"],
                        },
                        _query("after", "Where to start: room/cursor,room/cursor,…", _TEXT),
                        _DEVICE,
                        _PRESENCE,
                        {
                            "name": "Last-Event-ID", "in": "header", "schema": _TEXT,
                            "description": "Resumes after these positions. Overrides after.",
                        },
                    ],
                },
            },
            "/rooms/{room}/history": {
                "parameters": [_ROOM],
                "get": {
                    **_operation(
                        "history", "Return the retained log, oldest first.", _ok("History"),
                        400, 401, 403, 503,
                    ),
                    "parameters": [
                        _position("earliest"),
                        _query("limit", "The maximum number of notifications. Default: 100.",
                               {"type": "integer", "minimum": 1, "maximum": 1000}),
                    ],
                },
            },
            "/jobs/{requestId}": {
                "parameters": [_path("requestId")],
                "get": _operation(
                    "job", "Return how the job of a request stands.", _ok("JobSnapshot"),
                    400, 401, 403, 404, 503,
                ),
            },
            "/users/{id}/jobs": {
                "parameters": [_path("id")],
                "get": {
                    **_operation(
                        "jobs", "Return the jobs of a user, newest first.", _ok("Jobs"),
                        400, 401, 403, 404, 503,
                    ),
                    "parameters": [
                        _query("status", "Statuses, separated by commas.", {
                            "type": "string", "pattern": f"^({_ANY_STATUS}(,{_ANY_STATUS})*)?$",
                        }),
                        _query("type", "The name of a job type.",
                               {"type": "string", "maxLength": MAX_NAME_LENGTH}),
                        _query("limit", "The maximum number of jobs. Default: 100.",
                               {"type": "integer", "minimum": 1, "maximum": 1000}),
                        _query("after", "The value of next of another response.",
                               {"type": "string", "pattern": f"^({POSITION_PATTERN})?$"}),
                    ],
                },
            },
            "/rooms/{room}/health": {
                "parameters": [_ROOM],
                "get": _operation(
                    "roomHealth", "Return the number of connections of a room.", _ok("RoomHealth"),
                    400, 401, 403, 503,
                ),
            },
            "/rooms/{room}/presence": {
                "parameters": [_ROOM],
                "get": _operation(
                    "roomPresence", "Return the users who are connected to a room.",
                    _ok("RoomPresence"), 400, 401, 403, 503,
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
        # The empty one: health routes, and a server without keys, need no credential.
        "security": [{"credential": []}, {"query": []}, {}],
    }  # fmt: skip
