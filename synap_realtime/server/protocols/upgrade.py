"""Validate requests with ``Upgrade``. See RFC 6455, section 4.2.1."""

from __future__ import annotations

import base64
import binascii
import re

from ..messages import RequestError, bad_request
from .exchange import HttpRequest

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2


def validate_upgrade(exchange: HttpRequest) -> bool:
    """Validate a request with ``Upgrade``. An invalid one gets :attr:`HttpRequest.error`.

    Returns:
        Whether HTTP ends on this connection after the request, because it is a WebSocket handshake
        or ``CONNECT``. Every other upgrade is ignored (RFC 9110, section 7.8).
    """
    headers = exchange.headers
    if exchange.method == "CONNECT":
        exchange.error = bad_request("Invalid method", "this server is not a proxy")
        return True
    offered = [name.strip().lower() for name in headers.get("upgrade", "").split(",")]
    if exchange.method != "GET" or "websocket" not in offered:
        return False
    if headers.get("content-length", "").strip(" 0") or "transfer-encoding" in headers:
        exchange.error = bad_request("Invalid WebSocket handshake", "the request has a body")
        return True
    protocols = headers.get("sec-websocket-protocol", "").split(",")
    exchange.subprotocols = [name for part in protocols if (name := part.strip())]
    if headers.get("sec-websocket-version") != "13":
        exchange.error = RequestError(
            426, "upgrade_required", "Unsupported WebSocket version", "expected 13",
            {"Sec-WebSocket-Version": "13"},
        )  # fmt: skip
    elif (
        exchange.is_http_10
        or not _is_key(headers.get("sec-websocket-key", ""))
        or not all(map(_TOKEN.fullmatch, exchange.subprotocols))
    ):
        exchange.error = bad_request("Invalid WebSocket handshake", "see RFC 6455, section 4.2.1")
    exchange.is_websocket = exchange.error is None
    return True


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text.strip(), validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
