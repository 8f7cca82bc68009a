"""HTTP requests, answers and errors, apart from any web framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

import pydantic_core

from ..errors import InvalidArgumentError
from ..protocol.control import BEARER_SUBPROTOCOL, SUBPROTOCOL
from ..protocol.cursor import Cursor, parse_cursor
from ..protocol.rooms import Room, parse_room
from ..tokens import parse_device
from .auth import Claims

RETRY_AFTER_S = 1


Read = Callable[[], Awaitable[bytes]]


async def _no_body() -> bytes:
    return b""


class Request:
    """An HTTP request, from whichever front.

    Attributes:
        path: as it came, percent-encoded, without the query.
        mounted: the path below which the server answers, when it is a part of an app.
        headers: by names in lower case; one that comes twice as one, with a comma between (RFC
            9110, section 5.3): of two hosts, two origins or two credentials none counts, and of two
            ``X-Forwarded-For`` each.
        address: the peer's; None where it is not known.
        subprotocols: what a WebSocket's client offers.
        content: the body, where all of it has come with the head; else ``read`` brings it: a route
            asks for it when it knows who sends it.
        segments: after :meth:`open`, the path below where the server is mounted, split at ``/`` and
            then percent-decoded.
        query: after it, the parameters; of a repeated one the last, and an empty one is none.
        credential: after it, a publisher's key or a token: from ``Authorization``, else the
            subprotocol, else the query.
        claims: what it says, after it was looked at.
    """

    __slots__ = (
        "address", "claims", "content", "credential", "headers", "method", "mounted", "path",
        "query", "query_string", "read", "segments", "subprotocols",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        path: str,
        query_string: str,
        headers: dict[str, str],
        address: str | None = None,
        subprotocols: Sequence[str] = (),
        mounted: str = "",
        read: Read = _no_body,
    ) -> None:
        self.method = method
        self.path = path
        self.query_string = query_string
        self.headers = headers
        self.address = address
        self.subprotocols = subprotocols
        self.mounted = mounted
        self.read = read
        self.content: bytes | None = None
        self.segments: tuple[str, ...] = ()
        self.query: dict[str, str] = {}
        self.credential: str | None = None
        self.claims: Claims | None = None

    def open(self) -> None:
        """Take apart what it asks for.

        Raises:
            RequestError: 400.
        """
        self.segments = self._split() if self.mounted else split_path(self.path)
        if self.query_string:
            parameters = parse_qs(self.query_string, max_num_fields=None)
            self.query = {name: values[-1] for name, values in parameters.items()}
        self.credential = self._find_credential()

    def room(self) -> Room | None:
        """The room in the path, if there is one."""
        try:
            match self._split():
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

    def _split(self) -> tuple[str, ...]:
        segments = split_path(self.path)
        if self.mounted:
            mounted = tuple(part for part in self.mounted.split("/") if part)
            for start in range(len(mounted)):  # a proxy may have taken a first part of it away
                prefix = mounted[start:]
                if segments[: len(prefix)] == prefix:
                    return segments[len(prefix) :]
        return segments

    def _find_credential(self) -> str | None:
        given = self.headers.get("authorization", "")
        if given[:7].lower() == "bearer " and (value := given[7:].strip()):
            return value
        for name in self.subprotocols:
            if name.startswith(BEARER_SUBPROTOCOL):
                return name.removeprefix(BEARER_SUBPROTOCOL)
        return self.query.get("token")


_NONE: Mapping[str, str] = MappingProxyType({})


class Response(NamedTuple):
    """An HTTP answer. ``problem`` is what an error's body says."""

    status: int
    content: bytes
    headers: Mapping[str, str] = _NONE
    content_type: str = "application/json"
    problem: Mapping[str, str] | None = None

    def with_headers(self, headers: Mapping[str, str]) -> Response:
        return self._replace(headers={**self.headers, **headers})

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


_parse_room = lru_cache(1024)(parse_room)  # those that are published to are mostly the same


def room_of(segment: str) -> Room:
    """The room in a path.

    Raises:
        RequestError: 400.
    """
    try:
        return _parse_room(segment)
    except InvalidArgumentError as error:
        raise malformed("Invalid room id", error.problem) from error


def known_room(segment: str) -> Room | None:
    """The room in a path; None: there is none."""
    try:
        return _parse_room(segment)
    except InvalidArgumentError:
        return None


@lru_cache(1024)
def _split_short(raw: str) -> tuple[str, ...]:
    return tuple(raw.strip("/").split("/"))


def split_path(raw: str) -> tuple[str, ...]:
    """A path as it came, as decoded segments; ``%2F`` does not split.

    Raises:
        RequestError: 400, if it is not UTF-8 under its percent-encoding.
    """
    if "%" not in raw and len(raw) < 256:
        return _split_short(raw)
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


async def json_body(request: Request) -> bytes:
    """The body, whose sender says that it is JSON.

    Raises:
        RequestError: 408, 413 or 415.
    """
    kind = request.headers.get("content-type")
    if kind is not None and kind != "application/json":
        media = kind.partition(";")[0].strip().lower()
        if media != "application/json" and not media.endswith("+json"):
            raise RequestError(
                415,
                "unsupported_media_type",
                "Unsupported media type",
                "send Content-Type: application/json",
            )
    content = request.content
    if content is None:
        content = await request.read()
    return content


def parsed_json(content: bytes) -> object:
    """What a body holds: strict (no NaN, no lone surrogates, bounded depth).

    Raises:
        RequestError: 400.
    """
    try:
        return _from_json(content, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise malformed("Invalid JSON", str(error)) from error


_from_json = pydantic_core.from_json
