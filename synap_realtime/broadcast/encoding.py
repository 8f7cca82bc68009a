"""Encode requests and parse responses. Pure; shared by both clients.

:func:`delivery` is a generator that holds the whole logic: it yields requests, receives their
responses, and returns the results. The clients only run it.
"""

from __future__ import annotations

import base64
import codecs
import json
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import uuid_utils
from pydantic import BaseModel

from ..endpoint import authorization_header, parse_server_url, retry_after_s
from ..errors import ConfigurationError, InvalidArgumentError
from ..network import BoundedBody, find_proxy, reason_of, tls_problem
from ..protocol.notification import (
    MAX_BATCH_BYTES,
    MAX_BATCH_FANOUT_BYTES,
    MAX_BATCH_NOTIFICATIONS,
    MAX_NOTIFICATION_BYTES,
    Notification,
    Status,
    encode_json,
    format_timestamp,
    parse_notification,
    to_json_object,
)
from ..protocol.rooms import Room, UserId, id_text, request_room, user_room
from ..redaction import redacted
from ..tracing import TRACEPARENT, Span, current_traceparent, start_span
from .result import BroadcastResult


class ApiRequest(NamedTuple):
    """One ``POST``: a path below the server's URL and a JSON body."""

    path: str
    body: bytes


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """The response to a request: a status and a body, or the reason why there is none.

    ``retry_after_s`` is the delay that the server asked for, or 0.
    """

    attempts: int = 1
    status: int | None = None
    body: object = None
    error: str | None = None
    retry_after_s: float = 0.0
    is_permanent: bool = False

    @property
    def retriable(self) -> bool:
        """Whether a retry may succeed.

        Retriable are connection errors, timeouts, 429, and 5xx except 501 and 505. Other 4xx are
        not, and neither are failures that need a configuration change (``is_permanent``,
        ``is_misconfigured``).

        A batch that the server stored partially or not at all is retriable, too: recipients that
        have a notification drop the duplicate by its id.
        """
        if self.is_permanent or self.is_misconfigured:
            return False
        match self.body:
            case {"results": list(results)}:
                if any(_is_unavailable(result) for result in results):
                    return True
        if self.status in _NOT_IMPLEMENTED:
            return False
        return self.status is None or self.status == 429 or self.status >= 500

    @property
    def is_misconfigured(self) -> bool:
        """Whether the server's own configuration is invalid; only its operator can fix it."""
        return isinstance(self.body, dict) and self.body.get("code") == "misconfigured"


_NOT_IMPLEMENTED = (501, 505)
"""Statuses of a server that never supports this method or this HTTP version."""

MAX_ANSWER_BYTES = 1024 * 1024
"""Maximum number of response bytes to read. No room server sends more."""

MAX_REASON_CHARACTERS = 500
"""Maximum length of a server's error text in results and logs."""

TRANSPORT_ERRORS = (httpx.RequestError, httpx.InvalidURL, OSError, UnicodeError)
"""Errors that an HTTP client raises when there is no response or the host name is invalid."""


def check_seconds(field: str, value: object) -> float:
    """Validate a duration.

    Raises:
        InvalidArgumentError: the value is not a positive number of seconds.
    """
    if not isinstance(value, int | float) or not 0 < value < 86400:
        raise InvalidArgumentError(field, f"expected seconds, more than 0; got {value!r}")
    return float(value)


Delivery = Generator[ApiRequest, ApiResponse, list[BroadcastResult]]
Single = Generator[ApiRequest, ApiResponse, BroadcastResult]

_EMPTY_BATCH = b'{"notifications":[]}'


class Endpoint:
    """One room server: its address, its key, and its known routes.

    A program may fork while another thread publishes. A module that is being imported at that
    moment stays partially imported in the child. Therefore everything that a request needs is
    imported before a thread needs it, including the codec ``idna`` for host names.
    """

    _codec = codecs.lookup("idna")  # the interpreter caches it

    def __init__(self, url: str | None, api_key: str | None) -> None:
        """Read the arguments, then ``REALTIME_URL`` and ``REALTIME_API_KEY``.

        Raises:
            ConfigurationError: the URL is not an ``http`` or ``https`` URL.
        """
        address = parse_server_url(url)
        self.address = address.url.copy_with(username=None, password=None)
        self.url = self.redacted = address.redacted
        self.named = address.named
        self.url_setting = address.setting or "REALTIME_URL"
        self.key_setting = "api_key=" if api_key else "REALTIME_API_KEY"
        key = api_key or os.environ.get("REALTIME_API_KEY")
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "keep-alive",
            "Content-Type": "application/json",
            "User-Agent": f"python-httpx/{httpx.__version__}",
        }
        if key:
            source = "api_key" if api_key else "REALTIME_API_KEY"
            headers["Authorization"] = authorization_header(source, key)
        elif address.url.userinfo:
            user, password = address.url.username, address.url.password
            basic = base64.b64encode(f"{user}:{password}".encode()).decode()
            headers["Authorization"] = f"Basic {basic}"
        self.headers = httpx.Headers(headers)
        self.has_batch_route = True


_url = lru_cache(maxsize=128)(httpx.URL)  # parsed once because it never changes


def build_request(
    endpoint: Endpoint, call: ApiRequest, timeout_s: float | None = None
) -> httpx.Request:
    """Build the httpx request.

    It is passed directly to a transport. An httpx client would apply the environment, merge
    parameters and headers for each request, and store every cookie that a server sets.

    Args:
        timeout_s: timeout of each read and write in seconds; None if the caller limits the whole
            request.
    """
    return httpx.Request(
        "POST",
        _url(endpoint.url + call.path),
        headers=endpoint.headers,
        content=call.body,
        extensions={"timeout": httpx.Timeout(timeout_s).as_dict()},
    )


def read_body(endpoint: Endpoint, response: httpx.Response, body: BoundedBody) -> ApiResponse:
    """Convert a response and its body to an :class:`ApiResponse`."""
    answer = parse_response(endpoint, response.status_code, response.headers, body.content)
    if not body.encoding:
        return answer
    error = (
        f"{endpoint.named} answered {answer.status} with Content-Encoding {body.encoding!r}, "
        "which the client did not accept; check for a proxy that compresses responses"
    )
    return replace(answer, error=error)


def parse_response(
    endpoint: Endpoint, status: int, headers: Mapping[str, str], content: bytes
) -> ApiResponse:
    """Parse a response; a body that is not JSON stays text."""
    try:
        body: object = json.loads(content)
    except (ValueError, RecursionError):
        body = content[:200].decode(errors="replace")
    return ApiResponse(
        status=status,
        body=body,
        error=None if 200 <= status < 300 else _describe(endpoint, status, headers, body),
        retry_after_s=retry_after_s(headers.get("Retry-After")) or 0.0,
    )


def response_from_error(endpoint: Endpoint, error: Exception) -> ApiResponse:
    """Convert a transport error to an :class:`ApiResponse` with the reason."""
    if isinstance(error, ConfigurationError):
        return ApiResponse(error=str(error), is_permanent=True)
    if (problem := tls_problem(error)) is not None:
        return ApiResponse(error=f"{endpoint.named} {problem}", is_permanent=True)
    way = _way(endpoint)
    if isinstance(error, TimeoutError | httpx.TimeoutException):
        return ApiResponse(error=f"{endpoint.named} did not answer in time{way}")
    reason = _bounded(reason_of(error))
    if way:
        reason = reason.partition(";")[0]  # the text names the server, not the proxy
    return ApiResponse(error=f"{endpoint.named} could not be reached{way}: {reason}")


def _way(endpoint: Endpoint) -> str:
    """Return the environment's proxy in use, if any: the proxy may be the part that is down."""
    try:
        proxy = find_proxy(endpoint.address, socks_library="socksio")
    except ConfigurationError:
        return ""
    return f" through {proxy.shown}" if proxy else ""


def rooms_for(user_id: UserId | None, request_id: UserId | None) -> tuple[Room, ...]:
    """Return the user's room and the request's room, whichever is given."""
    rooms = []
    if user_id is not None:
        rooms.append(user_room(user_id))
    if request_id is not None:
        rooms.append(request_room(request_id))
    if not rooms:
        raise InvalidArgumentError("user_id", "give user_id, request_id or both")
    return tuple(rooms)


def normalize(
    message: Notification | Mapping[str, Any], request_id: UserId | None = None
) -> Notification:
    """Validate a message, and add an id and a timestamp."""
    if isinstance(message, Notification):
        wire = message.to_wire()
    elif isinstance(message, Mapping):
        wire = dict(message)
    else:
        raise InvalidArgumentError(
            "message", f"expected a Notification or a mapping, got {type(message).__name__}"
        )
    if (snake := wire.pop("request_id", None)) is not None:
        wire["requestId"] = snake
    if "data" in wire:
        wire["data"] = to_json_object("data", wire["data"])
    if wire.get("requestId") is None and request_id is not None:
        wire["requestId"] = id_text("request_id", request_id)
    if wire.get("id") is None:
        wire["id"] = str(uuid_utils.uuid7())
    if wire.get("timestamp") is None:
        wire["timestamp"] = format_timestamp(datetime.now(UTC))
    return parse_notification(wire)


def message_of(
    type: str,
    data: Mapping[str, Any] | BaseModel,
    status: Status,
    *,
    id: str | None,
) -> dict[str, Any]:
    """Return the message of ``broadcast_success`` and ``broadcast_error``; :func:`normalize` checks
    it.
    """
    return {"id": id, "type": type, "data": data, "status": status}


def error_data(error: str) -> dict[str, Any]:
    """Return the ``data`` of an error notification, as specified by the original report."""
    if not isinstance(error, str):
        raise InvalidArgumentError(
            "error", f"expected a text for the user, got {type(error).__name__}"
        )
    return {"error": error}


class EncodedNotification(NamedTuple):
    """A validated notification with its rooms, encoded for the wire."""

    rooms: tuple[Room, ...]
    id: str
    body: bytes

    @property
    def as_batch_item(self) -> bytes:
        """Return the notification as a member of a batch, including ``rooms``."""
        # No character of a room id needs an escape in JSON.
        return b'%b,"rooms":["%b"]}' % (self.body[:-1], '","'.join(self.rooms).encode())


class BatchBudget:
    """The size of one request, limited as in PROTOCOL.md, "HTTP", "Many"."""

    def __init__(self, most: int = MAX_BATCH_NOTIFICATIONS) -> None:
        """Create an empty budget for at most this number of notifications."""
        self._most = most
        self._count = 0
        self._rooms = 0
        self._bytes = len(_EMPTY_BATCH)
        self._spread_bytes = 0

    def add(self, parcel: EncodedNotification) -> bool:
        """Add a notification if it fits. The first always fits, because it could not be sent
        otherwise.
        """
        rooms = self._rooms + len(parcel.rooms)
        size = len(parcel.body) + sum(len(room) + 3 for room in parcel.rooms) + 12
        spread = self._spread_bytes + size * len(parcel.rooms)
        if self._count and (
            self._count >= self._most
            or rooms > MAX_BATCH_NOTIFICATIONS
            or self._bytes + size > MAX_BATCH_BYTES
            or spread > MAX_BATCH_FANOUT_BYTES
        ):
            return False
        self._count += 1
        self._rooms = rooms
        self._bytes += size
        self._spread_bytes = spread
        return True


def encode(rooms: tuple[Room, ...], notification: Notification) -> EncodedNotification:
    """Encode a notification."""
    wire = notification.to_wire()
    if TRACEPARENT not in wire and (traceparent := current_traceparent()) is not None:
        wire[TRACEPARENT] = traceparent
    body = encode_json("data", wire)
    if len(body) > MAX_NOTIFICATION_BYTES:
        raise InvalidArgumentError(
            "data",
            f"the notification has {len(body)} bytes; at most {MAX_NOTIFICATION_BYTES} are "
            "allowed. Send a link to large data instead",
        )
    return EncodedNotification(rooms, str(notification.id), body)


def start_broadcast_span(notification: Notification) -> Span:
    """Start the span of one broadcast, from the call to its result."""
    return start_span(
        "broadcast",
        "producer",
        messaging__system="synap_realtime",
        messaging__operation__name="send",
        messaging__message__id=str(notification.id),
    )


def delivery(endpoint: Endpoint, parcels: Sequence[EncodedNotification]) -> Delivery:
    """Publish notifications to their rooms; see PROTOCOL.md, "HTTP"."""
    attempts = 0
    if endpoint.has_batch_route:
        answer = yield batch_request(parcels)
        attempts += answer.attempts
        if not lacks_batch_route(answer):
            return [
                replace(result, attempts=attempts)
                for result in read_batch(endpoint, answer, parcels)
            ]
        endpoint.has_batch_route = False
    results = []
    for parcel in parcels:
        results.append((yield from publish_per_room(endpoint, parcel, attempts)))
        attempts = 0
    return results


def batch_request(parcels: Sequence[EncodedNotification]) -> ApiRequest:
    """Build one request for all notifications."""
    notifications = b",".join([parcel.as_batch_item for parcel in parcels])
    return ApiRequest("/broadcast", b'{"notifications":[%b]}' % notifications)


def publish_per_room(endpoint: Endpoint, parcel: EncodedNotification, attempts: int) -> Single:
    """Send one ``POST /rooms/{room}/broadcast`` for each room; ``attempts`` counts earlier
    attempts.
    """
    count = 0
    duplicates = 0
    reached: list[str] = []
    errors: list[str] = []
    for room in parcel.rooms:
        answer = yield ApiRequest(f"/rooms/{quote(room, safe='')}/broadcast", parcel.body)
        attempts += answer.attempts
        if answer.status in (404, 405):
            endpoint.has_batch_route = True  # a later server at this address may have the route
            return failure_result(parcel, attempts, _unexpected_response(endpoint, answer))
        error = _read_single(endpoint, answer)
        if error is None:
            reached.append(room)
            count += _count(answer.body)
            duplicates += _is_duplicate(answer.body)
        else:
            errors.append(f"{room}: {error}")
    return BroadcastResult(
        success=not errors,
        broadcast_count=count,
        id=parcel.id,
        rooms=tuple(reached),
        attempts=attempts,
        error="; ".join(errors) or None,
        duplicate=duplicates == len(parcel.rooms),
    )


def lacks_batch_route(answer: ApiResponse) -> bool:
    """Whether the server has no ``POST /broadcast``."""
    if answer.status == 400:
        return not (isinstance(answer.body, dict) and "code" in answer.body)
    return answer.status in (404, 405)


def read_batch(
    endpoint: Endpoint, answer: ApiResponse, parcels: Sequence[EncodedNotification]
) -> list[BroadcastResult]:
    """Return the result of each notification, in order, from the response to a batch."""
    match answer.body:
        case {"results": list(results)} if len(results) == len(parcels):
            pass
        case _:
            results = [None] * len(parcels)
    return [
        _read_result(endpoint, answer, result, parcel)
        for result, parcel in zip(results, parcels, strict=True)
    ]


def is_item_retryable(answer: ApiResponse, n: int) -> bool:
    """Whether a retry may succeed for the nth member of a batch."""
    if answer.error is not None:
        return answer.retriable
    match answer.body:
        case {"results": list(results)} if n < len(results):
            return _is_unavailable(results[n])
    return False


def failure_result(
    parcel: EncodedNotification, attempts: int, error: str | None
) -> BroadcastResult:
    """Return the result of a notification that no room has."""
    return BroadcastResult(False, 0, parcel.id, (), attempts, error)


def unsent(endpoint: Endpoint, parcel: EncodedNotification, error: Exception) -> BroadcastResult:
    """Return the result of a notification that could not be sent for a non-network reason."""
    reason = _bounded(str(error) or type(error).__name__)
    return failure_result(parcel, 1, f"nothing could be sent to {endpoint.redacted}: {reason}")


def _is_unavailable(result: object) -> bool:
    return isinstance(result, dict) and result.get("code") == "unavailable"


def _read_result(
    endpoint: Endpoint, answer: ApiResponse, result: object, parcel: EncodedNotification
) -> BroadcastResult:
    error = answer.error
    if error is None:
        match result:
            case {"success": True}:
                return BroadcastResult(
                    success=True,
                    broadcast_count=_count(result),
                    id=parcel.id,
                    rooms=parcel.rooms,
                    attempts=answer.attempts,
                    duplicate=_are_duplicates(result, parcel.rooms),
                )
            case {"error": str()}:
                error = f"{endpoint.named} rejected the notification{_reason(endpoint, result)}"
            case _:
                error = _unexpected_response(endpoint, answer)
    return failure_result(parcel, answer.attempts, error)


def _read_single(endpoint: Endpoint, answer: ApiResponse) -> str | None:
    if answer.error is not None:
        return answer.error
    match answer.body:
        case {"success": True}:
            return None
        case {"success": False, "error": str()}:
            return f"{endpoint.named} rejected the notification{_reason(endpoint, answer.body)}"
        case _:
            return _unexpected_response(endpoint, answer)


def _unexpected_response(endpoint: Endpoint, answer: ApiResponse) -> str:
    return (
        f"{endpoint.named} is not a room server (HTTP {answer.status}); "
        f"check the URL ({endpoint.url_setting}), and the path where the rooms are mounted"
    )


def _count(body: object) -> int:
    count = body.get("broadcastCount") if isinstance(body, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else 0


def _is_duplicate(body: object) -> bool:
    return isinstance(body, dict) and body.get("duplicate") is True


def _are_duplicates(result: object, rooms: Sequence[Room]) -> bool:
    match result:
        case {"rooms": dict(answers)}:
            return all(_is_duplicate(answers.get(room)) for room in rooms)
    return False


def _bounded(reason: str) -> str:
    if len(reason) <= MAX_REASON_CHARACTERS:
        return reason
    return reason[:MAX_REASON_CHARACTERS] + "…"


def _describe(endpoint: Endpoint, status: int, headers: Mapping[str, str], body: object) -> str:
    """Describe an error response: which server, why, and what to change."""
    said = f"{endpoint.named} answered {status}"
    if 300 <= status < 400 and (location := headers.get("Location")):
        to = redacted(location).partition("?")[0]
        return f"{said} and redirects to {_bounded(to)}; set {endpoint.url_setting} to the server"
    match body:
        case str(text) if text.lstrip().startswith("<"):
            return (
                f"{said} with an HTML page, which no room server sends; "
                f"check {endpoint.url_setting}, and any proxy in between"
            )
        case str(text) if text.strip():
            return f"{said}: {_bounded(text.strip())}"
    hint = _key_hint(endpoint) if status == 401 else ""
    return f"{said}{_reason(endpoint, body)}{hint}"


def _reason(endpoint: Endpoint, body: object) -> str:
    """Return a room server's own reason for a rejection, after a colon."""
    match body:
        case {"error": str(error), "details": str(details)}:
            reason = _bounded(f"{error}: {details}")
        case {"error": str(error)}:
            reason = _bounded(error)
        case _:
            return ""
    # Rejections of an origin, of an address or by the authorizer do not concern the key.
    is_about_key = reason.startswith(("Forbidden: the key", "Forbidden: the token"))
    return f": {reason}; check {endpoint.key_setting}" if is_about_key else f": {reason}"


def _key_hint(endpoint: Endpoint) -> str:
    if endpoint.key_setting == "api_key=":
        return "; give api_key= one of the server's API keys"
    return "; set REALTIME_API_KEY to one of the server's API keys"
