"""Encode the heads and chunks of HTTP responses. See RFC 9112, sections 4 and 7.1."""

from __future__ import annotations

import time
from collections.abc import Mapping
from email.utils import formatdate
from http import HTTPStatus

from ..messages import Response

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
