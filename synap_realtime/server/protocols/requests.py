"""The requests of a connection, and the heads and chunks of their responses.

Of a request: its body, and what its head means (the target, an upgrade, the client's address). See
RFC 9112, sections 3, 4, 6 and 7.1.
"""

from __future__ import annotations

import asyncio
import binascii
import enum
import ipaddress
import re
import time
from collections.abc import Callable, Iterable, Mapping
from email.utils import formatdate
from http import HTTPStatus

import httptools

from ...lexical import OWS, parse_digits
from ...loopback import strip_port
from ..messages import (
    MAX_BODY_BYTES,
    Request,
    RequestError,
    Response,
    bad_request,
    body_too_large,
    body_too_slow,
)

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

LAST_CHUNK = b"0\r\n\r\n"
"""Ends a chunked body: RFC 9112, section 7.1."""

_STATUS = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


def _encode_fields(fields: Mapping[str, str]) -> bytes:
    return "".join([f"{name}: {value}\r\n" for name, value in fields.items()]).encode("latin-1")


_PLAIN = _STATUS[200] + _encode_fields(Response(200, b"").header_fields()) + b"Content-Length: "
"""The head of the most frequent response, up to its length."""


def encode_head(
    response: Response, length: int | None, *, keeps_alive: bool = False, chunked: bool = False
) -> bytes:
    """Return the status line and header fields of a response.

    Args:
        response: the status and the header fields.
        length: bytes of the body; None if it is not known yet.
        keeps_alive: the connection stays open after the response.
        chunked: the body is chunked. Otherwise, without a length, it ends with the connection.
    """
    if (
        keeps_alive
        and length is not None
        and response.status == 200
        and not (response.headers or response.content_type != "application/json")
    ):  # the common case
        return b"%b%d\r\nDate: %b\r\n\r\n" % (_PLAIN, length, _date())
    fields = response.header_fields()
    if length is not None and response.status != 204:  # RFC 9110, section 8.6
        fields["Content-Length"] = str(length)
    if chunked:
        fields["Transfer-Encoding"] = "chunked"
    if not keeps_alive:
        fields.setdefault("Connection", "close")
    return b"%b%bDate: %b\r\n\r\n" % (_STATUS[response.status], _encode_fields(fields), _date())


def encode_switching_protocols(accept: str, subprotocol: str | None) -> bytes:
    """Return the response to a WebSocket handshake: RFC 6455, section 4.2.2."""
    chosen = "" if subprotocol is None else f"Sec-WebSocket-Protocol: {subprotocol}\r\n"
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n{chosen}\r\n"
    ).encode("latin-1")


def encode_chunk(data: bytes) -> bytes:
    """Return a chunk of a chunked body. ``data`` must not be empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


_now: tuple[int, bytes] = (0, b"")


def _date() -> bytes:
    """Return the value of ``Date`` (RFC 9110, section 6.6.1), formatted once a second."""
    global _now
    second = int(time.time())
    if second != _now[0]:
        _now = second, formatdate(second, usegmt=True).encode()
    return _now[1]


AHEAD_BYTES = 64 * 1024
"""The bytes that are received before they are needed. Above this, reading pauses."""

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_SLASH = ord("/")


def incomplete_body() -> RequestError:
    return bad_request("Incomplete body", "client disconnected before the body was complete")


class BodyState(enum.Enum):
    """How far a body has been received.

    A body that is not complete when its request is answered is discarded, so that the client
    receives the response.
    """

    RECEIVING = enum.auto()
    DISCARDING = enum.auto()
    COMPLETE = enum.auto()


# In Python 3.11, each access to a member by its class costs as much as a call.
RECEIVING, DISCARDING, COMPLETE = BodyState


class RequestBody:
    """A body, as far as it has been received.

    Attributes:
        content: the bytes that are held: none if the body is too large, or discarded.
        size: the number of bytes that were received, including discarded ones.
    """

    __slots__ = ("_error", "_waiter", "content", "size", "state")

    def __init__(self) -> None:
        self.state = RECEIVING
        self.content: bytes | bytearray = b""
        self.size = 0
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None  # while the server waits for the body

    @property
    def is_ahead(self) -> bool:
        """Whether more was received than is held for a body that nothing waits for yet."""
        return self._waiter is None and self.size > AHEAD_BYTES and self.state is not DISCARDING

    def append(self, data: bytes) -> None:
        """Add a part of the body. What is too large or no longer needed is dropped."""
        self.size += len(data)
        if self.state is DISCARDING:
            return
        if self.size > MAX_BODY_BYTES:
            self.content = b""
            self.notify()
        elif not self.content:
            self.content = data
        else:  # in a list, many small chunks would take more memory than their bytes
            if isinstance(self.content, bytes):
                self.content = bytearray(self.content)
            self.content += data

    def complete(self, error: RequestError | None = None) -> None:
        """End the body.

        Args:
            error: raised by :meth:`read`, because the rest of the body is invalid.
        """
        self.state = COMPLETE
        self._error = error
        self.notify()

    def discard(self) -> None:
        """Drop what is held, and what is received from now on."""
        self.content = b""
        if self.state is not COMPLETE:
            self.state = DISCARDING

    def take(self) -> bytes | None:
        """Return the body if it is complete. It is no longer held here then."""
        if self.state is not COMPLETE or self.size > MAX_BODY_BYTES:
            return None
        content, self.content = bytes(self.content), b""
        return content

    def notify(self) -> None:
        """Wake :meth:`read`: the body is complete or too large, or the client has disconnected."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(
        self,
        transport: asyncio.Transport,
        resume_reading: Callable[[], None],
        *,
        declared_bytes: int,
        expects_continue: bool,
        timeout_s: float,
    ) -> bytes:
        """Return the whole body.

        Args:
            transport: the connection that it is received on.
            resume_reading: called when more has to be received.
            declared_bytes: the ``Content-Length``, or 0.
            expects_continue: the client sends the body only after 100 (RFC 9110, section 10.1.1).
            timeout_s: how long to wait for the body, in seconds.

        Raises:
            RequestError: 413 above ``MAX_BODY_BYTES``, 408 after the timeout, 400 if the client
                disconnects.
        """
        if transport.is_closing():
            raise incomplete_body()
        if declared_bytes > MAX_BODY_BYTES:
            raise body_too_large()
        if self.state is not COMPLETE and self.size <= MAX_BODY_BYTES:
            if expects_continue and not self.size:
                transport.write(CONTINUE)
            await self._wait(resume_reading, timeout_s)
        if self.size > MAX_BODY_BYTES:
            raise body_too_large()
        if self._error is not None:
            raise self._error
        if self.state is not COMPLETE:
            if transport.is_closing():
                raise incomplete_body()
            raise body_too_slow(timeout_s)
        return bytes(self.content)

    async def _wait(self, resume_reading: Callable[[], None], timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        resume_reading()
        timer = loop.call_later(timeout_s, self.notify)
        try:
            await self._waiter
        finally:
            timer.cancel()


class HttpRequest(Request):
    """A request, as far as it has been received.

    Attributes:
        error: answers the request instead of its route.
        body: receives the body.
        weight: about the bytes of memory that the head takes, and the body once it is complete.
    """

    __slots__ = ("body", "error", "is_http_10", "keeps_alive", "weight")

    def __init__(
        self, method: str, path: str, query: str, headers: dict[str, str], address: str | None
    ) -> None:
        super().__init__(method, path, query, headers, address)
        self.keeps_alive = False
        self.is_http_10 = False
        self.error: RequestError | None = None
        self.body = RequestBody()
        self.weight = 0

    @property
    def declared_bytes(self) -> int:
        """The value of ``Content-Length``, or 0."""
        return parse_digits(self.headers.get("content-length", "")) or 0

    @property
    def expects_continue(self) -> bool:
        """Whether the client waits for 100. HTTP/1.0 has no Expect (RFC 9110, section 10.1.1)."""
        return self.headers.get("expect", "").lower() == "100-continue" and not self.is_http_10

    def fail(self, error: RequestError) -> None:
        """Answer with an error, because the rest of the request is invalid."""
        self.error = error
        self.keeps_alive = False
        self.body.complete(error)


def parse_target(url: bytes) -> str:
    """Return the path and query of a request target.

    Of a target in absolute form (RFC 9112, section 3.2.2), these parts are returned.
    """
    if url[0] == _SLASH and b"#" not in url:  # the common case
        return url.decode("latin-1")
    if url[0] != _SLASH:
        try:
            parts = httptools.parse_url(url)
        except httptools.HttpParserInvalidURLError:
            return "/" + url.decode("latin-1")
        url = parts.path or b"/"
        if parts.query is not None:
            url += b"?" + parts.query
    return url.decode("latin-1").partition("#")[0]


def validate_upgrade(request: HttpRequest) -> bool:
    """Validate a request with ``Upgrade``. An invalid one gets :attr:`HttpRequest.error`.

    Returns:
        Whether HTTP ends on this connection after the request, because it is a WebSocket handshake
        or ``CONNECT``. Every other upgrade is ignored (RFC 9110, section 7.8).
    """
    headers = request.headers
    if request.method == "CONNECT":
        request.error = bad_request("Invalid method", "this server is not a proxy")
        return True
    offered = headers.get("upgrade", "").lower()
    if request.method != "GET" or (
        offered != "websocket"
        and "websocket" not in [name.strip(OWS) for name in offered.split(",")]
    ):
        return False
    if headers.get("content-length", "").strip(" 0") or "transfer-encoding" in headers:
        request.error = bad_request("Invalid WebSocket handshake", "the request has a body")
        return True
    protocols = headers.get("sec-websocket-protocol", "").split(",")
    request.subprotocols = [name for part in protocols if (name := part.strip(OWS))]
    if headers.get("sec-websocket-version") != "13":
        request.error = RequestError(
            426, "upgrade_required", "Unsupported WebSocket version", "expected 13",
            {"Sec-WebSocket-Version": "13"},
        )  # fmt: skip
    elif (
        request.is_http_10
        or not _is_key(headers.get("sec-websocket-key", ""))
        or not all(map(_TOKEN.fullmatch, request.subprotocols))
    ):
        request.error = bad_request("Invalid WebSocket handshake", "see RFC 6455, section 4.2.1")
    return True


def _is_key(text: str) -> bool:
    try:
        return len(binascii.a2b_base64(text.strip(OWS), strict_mode=True)) == 16
    except ValueError:
        return False


class TrustedProxies:
    """The operator's proxies. ``X-Forwarded-For`` is trusted only if one of them has sent it."""

    def __init__(self, trusted: Iterable[str]) -> None:
        """
        Args:
            trusted: addresses or networks of the proxies.

        Attributes:
            enabled: whether any proxy is trusted.
        """
        self._networks = [ipaddress.ip_network(name) for name in trusted]
        self.enabled = bool(self._networks)

    def client_address(self, peer: str | None, headers: Mapping[str, str]) -> str | None:
        """Return the last address of ``X-Forwarded-For`` that is not a trusted proxy.

        A client can send the header itself, so entries before that address are forgeable. If the
        peer is not a trusted proxy, its own address is returned.
        """
        if not self._trusts(peer):
            return peer
        given = headers.get("x-forwarded-for", "")
        hosts = [strip_port(host) for part in given.split(",") if (host := part.strip(OWS))]
        for host in reversed(hosts):
            if not self._trusts(host):
                return host
        return hosts[0] if hosts else peer

    def _trusts(self, host: str | None) -> bool:
        try:
            address = ipaddress.ip_address(host or "")
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)
