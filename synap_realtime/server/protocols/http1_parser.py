"""Parse requests and queue them until they can be served. See RFC 9112.

Heads, bodies and pipelined requests are bounded. A stream that could be understood in two ways is
rejected: a proxy may have understood it in the other way (request smuggling).
"""

from __future__ import annotations

import enum
from collections import deque
from itertools import chain
from typing import Any, NamedTuple, Protocol

import httptools

from ..messages import (
    MAX_BODY_BYTES,
    MAX_TARGET_BYTES,
    RequestError,
    bad_request,
    head_error,
    payload_too_large,
    target_too_long,
)
from .requests import HttpRequest, TrustedProxies, parse_target, validate_upgrade

MAX_HEAD_BYTES = 64 * 1024
"""Largest request head, not counting the bytes of its first packet."""

MAX_HEADERS = 256
"""Most header fields of a request."""

MAX_CHUNKS = 32 * 1024
"""Most chunks of a request body (RFC 9112, section 7.1). Each chunk costs a parser callback, so a
body in chunks of one byte would block the event loop."""

MAX_PIPELINED = 100
"""Most queued requests of one connection."""

MAX_UNREAD_BYTES = 8 * MAX_BODY_BYTES
"""Most bytes of an unwanted body that are read and discarded, so that the client can receive the
response. Also the most bytes that a body may take on the wire, with chunk headers and trailers."""

_NAMES = {
    spelled.encode(): name
    for name in (
        "accept", "accept-encoding", "accept-language", "authorization", "cache-control",
        "connection", "content-length", "content-type", "host", "origin", "pragma",
        "sec-websocket-extensions", "sec-websocket-key", "sec-websocket-protocol",
        "sec-websocket-version", "traceparent", "upgrade", "user-agent",
    )
    for spelled in (name, name.title(), name.title().replace("Websocket", "WebSocket"))
}  # fmt: skip

_MAX_BLANK_BYTES = 8 * 1024  # of empty lines before a request (RFC 9112, section 2.2)
_REQUEST_WEIGHT = 2048  # memory of a request beside its bytes: its Python objects
_FIELD_WEIGHT = 200  # memory of a header field beside its bytes


def _read_fields(fields: list[tuple[bytes, bytes]]) -> tuple[dict[str, str], int]:
    """Return the fields of a head as those of :class:`Request`, and their weight."""
    headers: dict[str, str] = {}
    weight = _FIELD_WEIGHT * len(fields) + sum(map(len, chain.from_iterable(fields)))
    for name, value in fields:
        key = _NAMES.get(name) or name.decode("latin-1").lower()
        text = value.decode("latin-1")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text
    return headers, weight


class ParserState(enum.Enum):
    """Where in a stream of requests a parser is.

    ======================  =====================================================
    ``BETWEEN_REQUESTS``    before the first byte of a request
    ``HEAD``                in a head
    ``BODY``                in a body, or between its chunks
    ``CHUNK_OR_TRAILERS``   after a chunk header: data follows, or after the last one trailers
    ``IGNORED_UPGRADE``     after a head whose ``Upgrade`` is ignored; its framing is parsed again
    ``STOPPED``             the rest of the stream is not parsed
    ======================  =====================================================
    """

    BETWEEN_REQUESTS = enum.auto()
    HEAD = enum.auto()
    BODY = enum.auto()
    CHUNK_OR_TRAILERS = enum.auto()
    IGNORED_UPGRADE = enum.auto()
    STOPPED = enum.auto()


# In Python 3.11, each access to a member by its class costs as much as a call.
BETWEEN_REQUESTS, HEAD, BODY, CHUNK_OR_TRAILERS, IGNORED_UPGRADE, STOPPED = ParserState


class Upgrade(NamedTuple):
    """The request that ends HTTP on a connection, and the bytes that follow its head."""

    request: HttpRequest
    rest: bytes


class RequestHandler(Protocol):
    """The connection that requests are parsed for."""

    def abort(self) -> None:
        """Close immediately: a bound is exceeded that is not worth a response."""

    def on_head_begun(self) -> None:
        """A head was received in part."""

    def on_request_complete(self) -> None:
        """The request whose body was received is complete."""


class RequestParser:
    """Parses what one client sends.

    Attributes:
        state: where in the stream it is.
        queue: the requests whose head is complete, until they are served.
        receiving: the request whose body is being received, queued or served.
    """

    __slots__ = (
        "_address",
        "_blank_bytes",
        "_chunks",
        "_fields",
        "_handler",
        "_head_bytes",
        "_parser",
        "_proxies",
        "_queued_bytes",
        "_upgrade",
        "_url",
        "_wire_bytes",
        "queue",
        "receiving",
        "state",
    )

    def __init__(
        self, handler: RequestHandler, address: str | None, proxies: TrustedProxies
    ) -> None:
        """
        Args:
            handler: the connection.
            address: of the peer.
            proxies: may name the address of their client.
        """
        self.state = BETWEEN_REQUESTS
        self.queue: deque[HttpRequest] = deque()
        self.receiving: HttpRequest | None = None
        self._handler = handler
        self._address = address
        self._proxies = proxies
        self._parser: Any = httptools.HttpRequestParser(self)
        self._upgrade: HttpRequest | None = None
        self._url = b""
        self._fields: list[tuple[bytes, bytes]] = []  # of the head, at most one over the bound
        self._head_bytes = 0  # of the head, or of the line of a chunk header or trailer
        self._blank_bytes = 0  # empty lines since the last request head
        self._wire_bytes = 0  # of the body, with chunk headers and trailers
        self._chunks = 0  # of the body
        self._queued_bytes = 0  # weight of the requests in the queue

    @property
    def held_bytes(self) -> int:
        """About the memory of the queued requests and of the one that is being received."""
        size = self._queued_bytes
        if self.receiving is not None:
            size += len(self.receiving.body.content)
        if self.state is HEAD:
            size += _REQUEST_WEIGHT + _FIELD_WEIGHT * len(self._fields) + self._head_bytes
        return size

    def feed(self, data: bytes) -> Upgrade | None:
        """Parse received data.

        Returns:
            The request that ends HTTP on this connection, if there is one.

        Raises:
            RequestError: the request that is being received is invalid, or over a bound.
        """
        try:
            while True:
                try:
                    self._parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    data = data[upgrade.args[0] :]
                    if self.state is not IGNORED_UPGRADE:
                        return None if self._upgrade is None else Upgrade(self._upgrade, data)
                    self._read_past_upgrade()
        except httptools.HttpParserError:
            raise bad_request("Invalid HTTP request", "it is not HTTP/1.1") from None
        if self.state is HEAD:
            self._count_head(len(data))
        elif self.receiving is not None:
            self._count_body(len(data))
        else:
            self._blank_bytes += len(data)
            if self._blank_bytes > _MAX_BLANK_BYTES:
                raise bad_request("Invalid HTTP request", "it begins with empty lines")
        return None

    def take(self) -> HttpRequest:
        """Return the next request of the queue, which is served now."""
        request = self.queue.popleft()
        self._queued_bytes -= request.weight
        return request

    def clear_queue(self) -> None:
        """Forget the queued requests: they are not answered."""
        self.queue.clear()
        self._queued_bytes = 0

    def stop(self) -> HttpRequest | None:
        """Parse nothing more. Return the request whose body was being received."""
        self.state = STOPPED
        request, self.receiving = self.receiving, None
        return request

    def close(self) -> None:
        """Forget everything, because the connection has ended or is a WebSocket now.

        A request refers to its connection. After a flood, the reference cycles would keep their
        memory until the garbage collector runs, which on an idle server is hours later.
        """
        self._parser = None
        self._handler = _CLOSED
        self.receiving = self._upgrade = None
        self.clear_queue()

    def _count_head(self, size: int) -> None:
        if not self._head_bytes:
            self._handler.on_head_begun()
        self._head_bytes += size
        if len(self._url) > MAX_TARGET_BYTES:
            raise target_too_long()
        if self._head_bytes > MAX_HEAD_BYTES:
            details = f"a request's head has at most {MAX_HEAD_BYTES} bytes"
            raise RequestError(431, "payload_too_large", "Head too large", details)

    def _count_body(self, size: int) -> None:
        self._wire_bytes += size
        if self.state is CHUNK_OR_TRAILERS:  # the parser buffers a whole line
            self._head_bytes += size
        if self._wire_bytes > MAX_UNREAD_BYTES or self._head_bytes > MAX_HEAD_BYTES:
            self._handler.abort()
        elif self._chunks > MAX_CHUNKS:
            raise payload_too_large(f"a body has at most {MAX_CHUNKS} chunks")

    def _read_past_upgrade(self) -> None:
        """Continue after the head of a request whose ``Upgrade`` is ignored.

        See RFC 9110, section 7.8. The parser treats a request with ``Upgrade`` as the last one of
        its connection, without a body. It would then parse as a request what a proxy has forwarded
        as a body (request smuggling). So a new parser gets a head with nothing but the framing
        fields, which the first parser has validated.

        Raises:
            HttpParserError: the framing is invalid.
        """
        request = self.receiving
        assert request is not None  # noqa: S101 - see on_headers_complete
        framing = [
            f"{name}: {request.headers[name]}\r\n"
            for name in ("content-length", "transfer-encoding")
            if name in request.headers
        ]
        self._parser = httptools.HttpRequestParser(self)
        head = f"{request.method} / HTTP/1.1\r\n{''.join(framing)}\r\n"
        self._parser.feed_data(head.encode("latin-1"))

    # ---- callbacks of httptools

    def on_message_begin(self) -> None:
        if self.state is IGNORED_UPGRADE:
            return
        self._url = b""
        self._fields = []
        self.state = HEAD
        self._head_bytes = self._blank_bytes = 0

    def on_url(self, url: bytes) -> None:
        if self.state is IGNORED_UPGRADE:
            return
        if len(self._url) <= MAX_TARGET_BYTES:  # more is not needed to reject it
            self._url += url[: MAX_TARGET_BYTES + 1]

    def on_header(self, name: bytes, value: bytes) -> None:
        fields = self._fields
        if self.state is HEAD and len(fields) <= MAX_HEADERS:  # else it is a trailer
            fields.append((name, value))

    def on_headers_complete(self) -> None:
        if self.state is IGNORED_UPGRADE:
            self.state = BODY
            return
        self.state = BODY
        self._head_bytes = 0
        if len(self.queue) >= MAX_PIPELINED:
            self._handler.abort()
            return
        parser, address = self._parser, self._address
        url, self._url = self._url, b""
        fields, self._fields = self._fields, []
        headers, weight = _read_fields(fields[:MAX_HEADERS])
        if self._proxies.enabled:
            address = self._proxies.client_address(address, headers)
        version = parser.get_http_version()
        problem = head_error(len(url), version, headers)
        path, _, query = ("/", "", "") if problem else parse_target(url).partition("?")
        method = parser.get_method().decode("latin-1")
        request = HttpRequest(method, path, query, headers, address)
        request.is_http_10 = is_http_10 = version != "1.1"
        request.keeps_alive = not is_http_10 and parser.should_keep_alive()
        request.weight = _REQUEST_WEIGHT + weight + len(url)
        if len(fields) > MAX_HEADERS:
            details = f"a request's head has at most {MAX_HEADERS} fields"
            problem = RequestError(431, "payload_too_large", "Head too large", details)
        if problem is not None:
            request.error = problem
            request.keeps_alive = False
        if parser.should_upgrade():
            if problem is None and not validate_upgrade(request):
                self.state = IGNORED_UPGRADE
            else:
                self._upgrade = request
                request.keeps_alive = False
        self.receiving = request
        self._wire_bytes = self._chunks = 0
        self.queue.append(request)
        self._queued_bytes += request.weight

    def on_chunk_header(self) -> None:
        self._chunks += 1
        self.state = CHUNK_OR_TRAILERS  # until the chunk turns out to have data
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        self.state = BODY
        if self.receiving is not None:
            self.receiving.body.append(body)

    def on_message_complete(self) -> None:
        if self.state is IGNORED_UPGRADE:  # its body follows
            return
        self.state = BETWEEN_REQUESTS
        request, self.receiving = self.receiving, None
        if request is not None:
            size = len(request.body.content)
            request.weight += size
            if self.queue and self.queue[-1] is request:
                self._queued_bytes += size
            request.body.complete()
            self._handler.on_request_complete()


class _ClosedHandler:
    def abort(self) -> None: ...

    def on_head_begun(self) -> None: ...

    def on_request_complete(self) -> None: ...


_CLOSED = _ClosedHandler()
