"""Parse responses into results, and describe their errors. Pure; shared by all clients."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import httpx

from ..documentation import Topic, see
from ..endpoint import retry_after_s
from ..errors import ConfigurationError
from ..network import BoundedBody, find_proxy, reason_of, tls_problem
from ..protocol import rejections
from ..protocol.rooms import Room
from ..redaction import redacted
from .encoding import EncodedNotification
from .endpoint import Endpoint
from .result import BroadcastResult

_NOT_IMPLEMENTED = (501, 505)
"""Statuses of a server that never supports this method or this HTTP version."""

MAX_REASON_CHARACTERS = 500
"""Maximum length of a server's error text in results and logs."""


@dataclass(frozen=True, slots=True)
class ApiResponse:
    """The response to a request: a status and a body, or the reason why there is none.

    ``retry_after_s`` is the delay that the server asked for, or 0.
    """

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
        """
        if self.is_permanent or self.is_misconfigured:
            return False
        if self.status in _NOT_IMPLEMENTED:
            return False
        return self.status is None or self.status == 429 or self.status >= 500

    @property
    def is_misconfigured(self) -> bool:
        """Whether the server's own configuration is invalid; only its operator can fix it."""
        return isinstance(self.body, dict) and self.body.get("code") == "misconfigured"


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
    link = see(Topic.NO_PUBLISH)
    return ApiResponse(error=f"{endpoint.named} could not be reached{way}: {reason}{link}")


_TOPICS = {401: Topic.CREDENTIALS, 403: Topic.PERMISSIONS}


def _way(endpoint: Endpoint) -> str:
    """Return the environment's proxy in use, if any: the proxy may be the part that is down."""
    try:
        proxy = find_proxy(endpoint.address, socks_library="socksio")
    except ConfigurationError:
        return ""
    return f" through {proxy.shown}" if proxy else ""


def lacks_batch_route(answer: ApiResponse) -> bool:
    """Whether the server has no ``POST /broadcast``."""
    if answer.status == 400:
        return not (isinstance(answer.body, dict) and "code" in answer.body)
    return answer.status in (404, 405)


def batch_results(answer: ApiResponse, count: int) -> list[object]:
    """Return the result of each notification of a batch, in order; None where there is none."""
    match answer.body:
        case {"results": list(results)} if len(results) == count:
            return results
    return [None] * count


class Rejection(NamedTuple):
    """Why a room has not taken a notification, so that sending the same again cannot help.

    Attributes:
        code: as in PROTOCOL.md, "Errors". ``invalid_request`` for a server without codes.
        offset: where the next piece of a text has to begin; None if that is not the cause.
        attempt: the attempt of the key; None if the key is not the cause.
    """

    code: str
    offset: int | None = None
    attempt: int | None = None


REPEATED = Rejection("repeated")
"""Of a piece that the room has already: an answer was lost, or another execution has written it."""

_CODES = {400: "invalid_request", 413: "payload_too_large", 422: "invalid_request"}


def single_rejection(answer: ApiResponse) -> Rejection | None:
    """Return why a request with one notification for one room was rejected, if it was."""
    if answer.status in (*_CODES, 409):
        return _rejection(answer.body) or (
            Rejection(_CODES[answer.status]) if answer.status in _CODES else None
        )
    return _rejection(answer.body) if answer.error is None else None


def item_rejections(
    answer: ApiResponse, result: object, encoded: EncodedNotification
) -> dict[Room, Rejection]:
    """Return the rooms that have rejected one notification of a batch."""
    if answer.error is not None:
        every = single_rejection(answer)
        return {} if every is None else dict.fromkeys(encoded.rooms, every)
    match result:
        case {"success": False, "rooms": dict(answers)}:
            each = {room: _rejection(answers.get(room)) for room in encoded.rooms}
            return {room: found for room, found in each.items() if found is not None}
        case {"success": False}:
            every = _rejection(result)
            return {} if every is None else dict.fromkeys(encoded.rooms, every)
    return {}


def _rejection(body: object) -> Rejection | None:
    code = body.get("code") if isinstance(body, dict) else None
    if not isinstance(body, dict) or not isinstance(code, str):
        return None
    return Rejection(code, _natural(body.get("offset")), _natural(body.get("attempt")))


def _natural(value: object) -> int | None:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return value if is_number and isinstance(value, int) else None


def failure_result(
    encoded: EncodedNotification, attempts: int, error: str | None
) -> BroadcastResult:
    """Return the result of a notification that no room has."""
    return BroadcastResult(False, 0, encoded.id, (), attempts, error)


def unsent(endpoint: Endpoint, encoded: EncodedNotification, error: Exception) -> BroadcastResult:
    """Return the result of a notification that could not be sent for a non-network reason."""
    reason = _bounded(str(error) or type(error).__name__)
    return failure_result(encoded, 1, f"nothing could be sent to {endpoint.redacted}: {reason}")


def is_unavailable(result: object) -> bool:
    """Whether the store could not keep this notification of a batch, so that a retry may help."""
    return isinstance(result, dict) and result.get("code") == "unavailable"


def read_result(
    endpoint: Endpoint,
    answer: ApiResponse,
    result: object,
    encoded: EncodedNotification,
    attempts: int,
) -> BroadcastResult:
    """Convert one of :func:`batch_results`; ``attempts`` counts the notification's requests."""
    error = answer.error
    if error is None:
        match result:
            case {"success": True}:
                return BroadcastResult(
                    success=True,
                    broadcast_count=delivery_count(result),
                    id=encoded.id,
                    rooms=encoded.rooms,
                    attempts=attempts,
                    duplicate=_are_duplicates(result, encoded.rooms),
                )
            case {"error": str()}:
                error = f"{endpoint.named} rejected the notification{_reason(endpoint, result)}"
            case _:
                error = unexpected_response(endpoint, answer)
    return failure_result(encoded, attempts, error)


def read_single(endpoint: Endpoint, answer: ApiResponse) -> str | None:
    if answer.error is not None:
        return answer.error
    match answer.body:
        case {"success": True}:
            return None
        case {"success": False, "error": str()}:
            return f"{endpoint.named} rejected the notification{_reason(endpoint, answer.body)}"
        case _:
            return unexpected_response(endpoint, answer)


def unexpected_response(endpoint: Endpoint, answer: ApiResponse) -> str:
    return (
        f"{endpoint.named} is not a room server (HTTP {answer.status}); "
        f"check the URL ({endpoint.url_setting}), and the path where the rooms are mounted"
    )


def delivery_count(body: object) -> int:
    count = body.get("broadcastCount") if isinstance(body, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else 0


def is_duplicate(body: object) -> bool:
    return isinstance(body, dict) and body.get("duplicate") is True


def _are_duplicates(result: object, rooms: Sequence[Room]) -> bool:
    match result:
        case {"rooms": dict(answers)}:
            return all(is_duplicate(answers.get(room)) for room in rooms)
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
    topic = _TOPICS.get(status)
    return f"{said}{_reason(endpoint, body)}{hint}{see(topic) if topic else ''}"


def _reason(endpoint: Endpoint, body: object) -> str:
    """Return a room server's own reason for a rejection, after a colon."""
    if (given := rejections.reason_of(body)) is None:
        return ""
    hint = f"; check {endpoint.key_setting}" if rejections.blames_credential(body) else ""
    return f": {_bounded(given)}{hint}"


def _key_hint(endpoint: Endpoint) -> str:
    if endpoint.key_setting == "api_key=":
        return "; give api_key= one of the server's API keys"
    return "; set REALTIME_API_KEY to one of the server's API keys"
