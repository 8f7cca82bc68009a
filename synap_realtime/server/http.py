"""HTTP requests, answers and errors, apart from any web framework."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

import pydantic_core

from ..errors import InvalidArgumentError
from ..protocol.cursor import Cursor, parse_cursor
from ..protocol.rooms import Room, parse_room
from ..tokens import parse_device

RETRY_AFTER_S = 1


async def _no_body() -> bytes:
    return b""


@dataclass(frozen=True, slots=True)
class Request:
    """An HTTP request.

    ``segments`` is the path, split at ``/`` and then percent-decoded; of a repeated parameter in
    ``query`` the last counts, and an empty one is none. ``credential`` is a publisher's key or a
    token. ``read`` brings the body: a route asks for it when it knows who sends it.
    """

    method: str
    segments: tuple[str, ...]
    query: Mapping[str, str] = field(default_factory=dict)
    content_type: str | None = None
    traceparent: str | None = None
    credential: str | None = field(default=None, repr=False)
    read: Callable[[], Awaitable[bytes]] = _no_body


@dataclass(frozen=True, slots=True)
class Response:
    """An HTTP answer. ``problem`` is what an error's body says."""

    status: int
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    problem: Mapping[str, str] | None = None


def json_response(status: int, body: object) -> Response:
    content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(status, content)


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
        content = json_response(status, self.body).content
        self.response = Response(status, content, headers or {}, problem=self.body)


def malformed(error: str, details: str) -> RequestError:
    return RequestError(400, "malformed", error, details)


def too_large(details: str) -> RequestError:
    return RequestError(413, "too_large", "Too large", details)


def unavailable(details: str) -> RequestError:
    headers = {"Retry-After": str(RETRY_AFTER_S)}
    return RequestError(503, "unavailable", "Try again later", details, headers)


def method_not_allowed(right: str) -> RequestError:
    return RequestError(
        405, "method_not_allowed", "Method not allowed", f"this route takes {right}",
        {"Allow": right},
    )  # fmt: skip


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


def position_of(text: str, words: str = "'earliest' or 'latest'") -> Cursor:
    """The cursor in a query.

    Args:
        words: what else could be there, for the message.

    Raises:
        RequestError: 400.
    """
    try:
        return parse_cursor(text)
    except InvalidArgumentError as error:
        raise malformed("Invalid position", f"after: expected a cursor, {words}") from error


def device_of(query: Mapping[str, str]) -> str | None:
    """Which of the user's devices asks.

    Raises:
        RequestError: 400.
    """
    if (name := query.get("device")) is None:
        return None
    try:
        return parse_device(name)
    except InvalidArgumentError as error:
        raise malformed("Invalid device", f"device: {error.problem}") from error


async def json_body(request: Request) -> object:
    """The JSON body: strict (no NaN, no lone surrogates, bounded depth).

    Raises:
        RequestError: 400, 408, 413 or 415.
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
        return pydantic_core.from_json(
            await request.read(), allow_inf_nan=False, cache_strings="keys"
        )
    except ValueError as error:
        raise malformed("Invalid JSON", str(error)) from error
