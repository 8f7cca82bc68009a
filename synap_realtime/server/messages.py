"""HTTP requests, responses and errors, independent of the HTTP server.

The errors of the server are translated here: status, code and headers. See PROTOCOL.md, "Errors".
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_plus

import pydantic_core

from ..errors import InvalidArgumentError
from ..lexical import OWS
from ..protocol.control import BEARER_SUBPROTOCOL, SUBPROTOCOL, SUBPROTOCOL_V2
from ..protocol.cursor import Cursor, parse_cursor
from ..protocol.notification import MAX_BATCH_BYTES
from ..protocol.rooms import Room, parse_room
from ..tokens import parse_device
from .auth.claims import Claims
from .errors import (
    ConflictError,
    PeerRejectedError,
    PermissionDeniedError,
    RateLimitedError,
    RejectedError,
    StoreUnavailableError,
    UnauthenticatedError,
)

RETRY_AFTER_S = 1

MAX_TARGET_BYTES = 8 * 1024
"""The longest request target, path and query together (RFC 9112, section 3)."""

MAX_BODY_BYTES = MAX_BATCH_BYTES
"""The largest request body of any route."""

MAX_QUERY_FIELDS = 32
"""The maximum number of parameters in a query. The routes know six."""

_MAX_SEGMENTS = 32  # of a path: the routes have three, and the mount path adds some
_HOST = re.compile(r"[A-Za-z0-9._~!$&'()*+;=%:\[\]-]*")  # RFC 9110, section 7.2, without a comma

Read = Callable[[], Awaitable[bytes]]


async def _no_body() -> bytes:
    return b""


class Request:
    """An HTTP request, from the built-in server or from an ASGI server.

    Attributes:
        path: as received, percent-encoded, without the query.
        root_path: the path that the server is mounted at, when it is a part of an app.
        headers: by names in lower case. Repeated fields are joined with a comma (RFC 9110, section
            5.3). So two hosts, two origins or two credentials are invalid, and each of two
            ``X-Forwarded-For`` counts.
        address: the address of the peer; None where it is unknown.
        subprotocols: the subprotocols that a WebSocket client offers.
        content: the body, if it arrived together with the head; else ``read`` returns it. A route
            reads the body after authentication.
        path_segments: after :meth:`parse_target`, the path below the mount path, split at ``/`` and
            then percent-decoded.
        query: after :meth:`parse_target`, the parameters: the last of a repeated one, without empty
            ones.
        credential: after :meth:`parse_target`, an API key or a token: from ``Authorization``, else
            the subprotocol, else the query.
        claims: the claims of the credential, after authentication.
    """

    __slots__ = (
        "address",
        "claims",
        "content",
        "credential",
        "headers",
        "method",
        "path",
        "path_segments",
        "query",
        "query_string",
        "read",
        "root_path",
        "subprotocols",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        path: str,
        query_string: str,
        headers: dict[str, str],
        address: str | None = None,
        subprotocols: Sequence[str] = (),
        root_path: str = "",
        read: Read = _no_body,
    ) -> None:
        self.method = method
        self.path = path
        self.query_string = query_string
        self.headers = headers
        self.address = address
        self.subprotocols = subprotocols
        self.root_path = root_path
        self.read = read
        self.content: bytes | None = None
        self.path_segments: tuple[str, ...] = ()
        self.query: dict[str, str] = {}
        self.credential: str | None = None
        self.claims: Claims | None = None

    def parse_target(self) -> None:
        """Parse the path, the query and the credential.

        Raises:
            RequestError: 400.
        """
        self.path_segments = self._split() if self.root_path else split_path(self.path)
        if self.query_string:
            self.query = dict(_split_query(self.query_string))
        self.credential = self._find_credential()

    def hold_response(self, response: Response) -> None:
        """Check that a response can be held for the peer. Requests of a mounted app do.

        Raises:
            RequestError: the response exceeds a byte budget.
        """

    def room(self) -> Room | None:
        """Return the room that the path is about, if it is about one."""
        try:
            match self._split():
                case ("rooms", segment, *_):
                    return parse_room_param(segment)
                case ("jobs", segment):
                    return parse_room_param(f"request_{segment}")
                case ("users", segment, "jobs"):
                    return parse_room_param(f"user_{segment}")
        except RequestError:
            pass
        return None

    def values(self, name: str) -> list[str]:
        """Return all values of a parameter that may be repeated, without empty ones."""
        return [value for each, value in _split_query(self.query_string) if each == name]

    @property
    def supports_control_frames(self) -> bool:
        """Return whether the client offered the subprotocol of the route."""
        return self._own_subprotocol in self.subprotocols

    @property
    def chosen_subprotocol(self) -> str | None:
        """Return the subprotocol of the route if it was offered, else the one with the token.

        A browser fails the handshake unless the server selects a subprotocol that it offered.
        """
        if self.supports_control_frames:
            return self._own_subprotocol
        return next((n for n in self.subprotocols if n.startswith(BEARER_SUBPROTOCOL)), None)

    @property
    def _own_subprotocol(self) -> str:
        return SUBPROTOCOL if len(self.path_segments) > 1 else SUBPROTOCOL_V2

    def _split(self) -> tuple[str, ...]:
        segments = split_path(self.path)
        if self.root_path:
            mounted = tuple(part for part in self.root_path.split("/") if part)
            for start in range(len(mounted)):  # a proxy may have removed the first part of it
                prefix = mounted[start:]
                if segments[: len(prefix)] == prefix:
                    return segments[len(prefix) :]
        return segments

    def _find_credential(self) -> str | None:
        given = self.headers.get("authorization", "")
        if given[:7].lower() == "bearer " and (value := given[7:].strip(OWS)):
            return value
        for name in self.subprotocols:
            if name.startswith(BEARER_SUBPROTOCOL):
                return name.removeprefix(BEARER_SUBPROTOCOL)
        return self.query.get("token")


_NONE: Mapping[str, str] = MappingProxyType({})
_NO_MEMBERS: Mapping[str, int] = MappingProxyType({})


class Response(NamedTuple):
    """An HTTP response.

    Attributes:
        error: the content of the body of an error.
        rest: yields the chunks of a long body after ``body``; None if ``body`` is complete. The
            HTTP server closes it in every case.
    """

    status: int
    body: bytes
    headers: Mapping[str, str] = _NONE
    content_type: str = "application/json"
    error: Mapping[str, Any] | None = None
    rest: AsyncGenerator[bytes] | None = None

    def with_headers(self, headers: Mapping[str, str]) -> Response:
        return self._replace(headers={**self.headers, **headers})

    def header_fields(self) -> dict[str, str]:
        """Return all header fields except those about the transfer of the body."""
        fields = {"Cache-Control": "no-store", **self.headers}
        if self.status != 204:  # a 204 has no body, hence no content type
            fields["Content-Type"] = self.content_type
        return fields


def json_response(status: int, body: object) -> Response:
    return Response(status, pydantic_core.to_json(body))


class RequestError(Exception):
    """An error that answers a request. See PROTOCOL.md, "Errors".

    Attributes:
        body: the members of the response's body.
        response: the response.
        is_routine: whether clients that do nothing wrong meet it, so that it is only logged for
            debugging.
    """

    def __init__(
        self,
        status: int,
        code: str,
        error: str,
        details: str,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, int] = _NO_MEMBERS,
        *,
        is_routine: bool = False,
    ) -> None:
        """
        Args:
            members: further members of the body.
            is_routine: see :class:`RequestError`.
        """
        super().__init__(error)
        self.body: dict[str, Any] = {"error": error, "details": details, "code": code, **members}
        content = json_response(status, self.body).body
        self.response = Response(status, content, headers or {}, error=self.body)
        self.is_routine = is_routine


def head_error(
    target_bytes: int,
    version: str,
    headers: Mapping[str, str],
    versions: Collection[str] = ("1.0", "1.1"),
) -> RequestError | None:
    """Check a request head before it is routed. Return the error, or None if it is well formed.

    Args:
        target_bytes: length of the request target.
        version: of HTTP, as ``1.1``.
        headers: as in :class:`Request`; several ``Host`` fields are one with commas.
        versions: the supported ones. A request with another version may be an attempt to have it
            parsed differently by a proxy and by this server (RFC 9112, section 2.3).
    """
    if target_bytes > MAX_TARGET_BYTES:
        return target_too_long()
    if version not in versions:
        return bad_request("Invalid HTTP request", "expected HTTP/1.1")
    host = headers.get("host")
    # RFC 9112, section 3.2: if a proxy routes by a different Host than this server reads, a client
    # can reach rooms that the proxy blocks.
    if host is None:
        if version == "1.1":
            return bad_request("Invalid Host", "expected one Host field, got none")
    elif not _HOST.fullmatch(host):
        return bad_request("Invalid Host", "expected one Host field with host or host:port")
    coding = headers.get("transfer-encoding")
    if coding is not None and coding.strip(OWS).lower() != "chunked":
        # RFC 9112, section 6.1: with another coding, or a list with empty members, a proxy and
        # this server may disagree about the end of the body (request smuggling).
        return bad_request("Invalid Transfer-Encoding", "expected chunked alone")
    return None


def target_too_long() -> RequestError:
    details = f"a path and its query have at most {MAX_TARGET_BYTES} bytes"
    return RequestError(414, "payload_too_large", "URI too long", details)


def bad_request(error: str, details: str) -> RequestError:
    return RequestError(400, "invalid_request", error, details)


def payload_too_large(details: str) -> RequestError:
    return RequestError(413, "payload_too_large", "Too large", details)


def body_too_large() -> RequestError:
    return payload_too_large(f"a body has at most {MAX_BODY_BYTES} bytes")


def body_too_slow(limit_s: float) -> RequestError:
    return RequestError(
        408, "request_timeout", "Too slow", f"a body has to arrive within {limit_s:g} s"
    )


def method_not_allowed(right: str) -> RequestError:
    return RequestError(
        405, "method_not_allowed", "Method not allowed", f"this route takes {right}",
        {"Allow": right},
    )  # fmt: skip


def _split_query(query: str) -> list[tuple[str, str]]:
    """Return the parameters of a query, without empty ones (URL standard, section 5.1).

    Raises:
        RequestError: 400.
    """
    fields = query.split("&", MAX_QUERY_FIELDS)
    if len(fields) > MAX_QUERY_FIELDS:
        details = f"a query has at most {MAX_QUERY_FIELDS} parameters"
        raise bad_request("Invalid query", details)
    parameters = []
    is_encoded = "%" in query or "+" in query
    for field in fields:
        name, _, value = field.partition("=")
        if value:
            parameters.append(
                (unquote_plus(name), unquote_plus(value)) if is_encoded else (name, value)
            )
    return parameters


_parse_room = lru_cache(1024)(parse_room)  # publishes go to the same rooms again and again


def parse_room_param(segment: str) -> Room:
    """Parse the room in a path.

    Raises:
        RequestError: 400.
    """
    try:
        return _parse_room(segment)
    except InvalidArgumentError as error:
        raise bad_request("Invalid room id", error.problem) from error


def split_path(raw: str) -> tuple[str, ...]:
    """Split a raw path into decoded segments. ``%2F`` does not split.

    Raises:
        RequestError: 400, if the decoded bytes are not UTF-8.
    """
    parts = raw.strip("/").split("/", _MAX_SEGMENTS)  # what follows is in no route
    if "%" not in raw:
        return tuple(parts)
    try:
        return tuple(unquote(part, errors="strict") for part in parts)
    except UnicodeDecodeError:
        raise bad_request("Invalid path", "the percent-encoded bytes are not UTF-8") from None


def parse_cursor_param(text: str, words: str = "'earliest' or 'latest'") -> Cursor:
    """Parse the cursor in a query.

    Args:
        words: the other values that the parameter accepts, for the message.

    Raises:
        RequestError: 400.
    """
    try:
        return parse_cursor(text)
    except InvalidArgumentError as error:
        raise bad_request("Invalid cursor", f"after: expected a cursor, {words}") from error


def parse_device_param(query: Mapping[str, str]) -> str | None:
    """Parse the device in a query.

    Raises:
        RequestError: 400.
    """
    if (name := query.get("device")) is None:
        return None
    try:
        return parse_device(name)
    except InvalidArgumentError as error:
        raise bad_request("Invalid device", f"device: {error.problem}") from error


async def read_json_body(request: Request) -> bytes:
    """Check the content headers, and read the body.

    Raises:
        RequestError: 408, 413 or 415.
    """
    kind = request.headers.get("content-type")
    if kind is not None and kind != "application/json":
        media = kind.partition(";")[0].strip(OWS).lower()
        if media != "application/json" and not media.endswith("+json"):
            raise RequestError(
                415,
                "unsupported_media_type",
                "Unsupported media type",
                "send Content-Type: application/json",
            )
    coding = request.headers.get("content-encoding", "").strip(OWS).lower()
    if coding not in ("", "identity"):
        raise RequestError(
            415,
            "unsupported_media_type",
            "Unsupported content coding",
            "send the body without Content-Encoding",
            {"Accept-Encoding": "identity"},  # RFC 9110, section 12.5.3
        )
    content = request.content
    if content is None:
        content = await request.read()
    return content


def decode_json(content: bytes) -> object:
    """Decode a JSON body, strictly: no NaN, no lone surrogates, bounded depth.

    Raises:
        RequestError: 400.
    """
    try:
        return _from_json(content, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise bad_request("Invalid JSON", str(error)) from error


_from_json = pydantic_core.from_json


DomainError = RejectedError | StoreUnavailableError
"""An error that :func:`to_request_error` translates."""

ERRORS = (RequestError, RejectedError, StoreUnavailableError)
"""The errors that answer a request."""


def to_request_error(error: RequestError | DomainError) -> RequestError:
    """Return the error of HTTP that answers a request."""
    if isinstance(error, RequestError):
        return error
    details = str(error)
    match error:
        case UnauthenticatedError():  # RFC 6750, section 3
            challenge = 'Bearer error="invalid_token"' if error.is_invalid else "Bearer"
            headers = {"WWW-Authenticate": challenge}
            return RequestError(401, "unauthorized", "Unauthorized", details, headers)
        case PermissionDeniedError():
            return RequestError(403, "forbidden", "Forbidden", details)
        case PeerRejectedError():
            return RequestError(403, "forbidden", error.summary, details)
        case RateLimitedError():
            headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
            return RequestError(429, "rate_limited", "Too many requests", details, headers)
        case ConflictError(code="payload_too_large"):
            return payload_too_large(details)
        case ConflictError():
            known = {"offset": error.offset, "attempt": error.attempt}
            members = {name: value for name, value in known.items() if value is not None}
            return RequestError(409, error.code, "Conflict", details, members=members)
        case _:
            headers = {"Retry-After": str(RETRY_AFTER_S)}
            return RequestError(503, "unavailable", "Try again later", details, headers)
