"""HTTP requests, answers and errors, apart from any web framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qs, unquote

import pydantic_core

from ..errors import InvalidArgumentError
from ..protocol.control import BEARER_SUBPROTOCOL, SUBPROTOCOL
from ..protocol.cursor import Cursor, parse_cursor
from ..protocol.rooms import Room, parse_room
from ..tokens import parse_device

RETRY_AFTER_S = 1


Read = Callable[[], Awaitable[bytes]]


@dataclass(slots=True)
class Head:
    """The head of a request, from whichever front.

    Attributes:
        path: as it came, percent-encoded, without the query.
        mounted: the path below which the server answers, when it is a part of an app.
        headers: by names in lower case; one that comes twice as one, with a comma between (RFC
            9110, section 5.3): of two hosts, two origins or two credentials none counts, and of two
            ``X-Forwarded-For`` each.
        address: the peer's; None where it is not known.
        subprotocols: what a WebSocket's client offers.
    """

    method: str
    path: str
    query_string: str
    headers: dict[str, str]
    address: str | None = None
    subprotocols: Sequence[str] = ()
    mounted: str = ""

    def segments(self) -> tuple[str, ...]:
        """The path below where the server is mounted, split and then decoded.

        Raises:
            RequestError: 400.
        """
        segments = split_path(self.path)
        if self.mounted:
            mounted = tuple(part for part in self.mounted.split("/") if part)
            for start in range(len(mounted)):  # a proxy may have taken a first part of it away
                prefix = mounted[start:]
                if segments[: len(prefix)] == prefix:
                    return segments[len(prefix) :]
        return segments

    def query(self) -> dict[str, str]:
        """The parameters; of a repeated one the last, and an empty one is none."""
        if not self.query_string:
            return {}
        parameters = parse_qs(self.query_string, max_num_fields=None)
        return {name: values[-1] for name, values in parameters.items()}

    def credential(self, query: Mapping[str, str]) -> str | None:
        """A key or a token: from ``Authorization``, else the subprotocol, else the query."""
        if given := self.headers.get("authorization"):
            scheme, _, value = given.strip().partition(" ")
            if scheme.lower() == "bearer" and (value := value.strip()):
                return value
        for name in self.subprotocols:
            if name.startswith(BEARER_SUBPROTOCOL):
                return name.removeprefix(BEARER_SUBPROTOCOL)
        return query.get("token")

    def room(self) -> Room | None:
        """The room in the path, if there is one."""
        try:
            match self.segments():
                case ("rooms", segment, *_):
                    return room_of(segment)
        except RequestError:
            pass
        return None

    @property
    def speaks_control(self) -> bool:
        """Whether the client offered ``synap.v1``."""
        return SUBPROTOCOL in self.subprotocols

    @property
    def chosen_subprotocol(self) -> str | None:
        """Ours, else the one with the token, because a browser wants one of those that it has
        offered."""
        if self.speaks_control:
            return SUBPROTOCOL
        return next((n for n in self.subprotocols if n.startswith(BEARER_SUBPROTOCOL)), None)


async def _no_body() -> bytes:
    return b""


@dataclass(slots=True)
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
    read: Read = _no_body


@dataclass(slots=True)
class Response:
    """An HTTP answer. ``problem`` is what an error's body says."""

    status: int
    content: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"
    problem: Mapping[str, str] | None = None

    @property
    def is_plain(self) -> bool:
        """As most answers are: JSON, and nothing to be said about it."""
        return self.status == 200 and not self.headers and self.content_type == "application/json"

    def with_headers(self, headers: Mapping[str, str]) -> Response:
        return replace(self, headers={**self.headers, **headers})

    def fields(self) -> dict[str, str]:
        """All headers but those about how the body is sent."""
        fields = {"Cache-Control": "no-store", **self.headers}
        if self.status != 204:  # which has no body, and may not say what it is
            fields["Content-Type"] = self.content_type
        return fields


def json_response(status: int, body: object) -> Response:
    return Response(status, pydantic_core.to_json(body))


class RequestError(Exception):
    """A request that gets an error answer. See PROTOCOL.md, "Errors".

    Attributes:
        is_about_credential: who sends it may not have this.
    """

    def __init__(
        self,
        status: int,
        code: str,
        error: str,
        details: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(error)
        self.is_about_credential = False
        self.body = {"error": error, "details": details, "code": code}
        content = json_response(status, self.body).content
        self.response = Response(status, content, headers or {}, problem=self.body)


def malformed(error: str, details: str) -> RequestError:
    return RequestError(400, "malformed", error, details)


def too_large(details: str) -> RequestError:
    return RequestError(413, "too_large", "Too large", details)


def body_too_large(most: int) -> RequestError:
    return too_large(f"a body has at most {most} bytes")


def body_too_slow(limit_s: float) -> RequestError:
    return RequestError(408, "timeout", "Too slow", f"a body has to arrive within {limit_s:g} s")


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
    parts = raw.strip("/").split("/")
    if "%" not in raw:
        return tuple(parts)
    try:
        return tuple(unquote(part, errors="strict") for part in parts)
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
    if request.content_type is not None and request.content_type != "application/json":
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
