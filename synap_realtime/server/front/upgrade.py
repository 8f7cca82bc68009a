"""What a request that wants another protocol must be. See RFC 6455, section 4.2.1."""

from __future__ import annotations

import base64
import binascii
import re

from ..http import RequestError, malformed
from .exchange import Exchange

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2


def look_at_upgrade(exchange: Exchange) -> None:
    """The parser stops behind a head with ``Upgrade`` and takes a body for the next request:
    one that was smuggled past a proxy, which knows better. So there is none."""
    headers = exchange.headers
    exchange.keeps_alive = False
    length = headers.get("content-length", "").strip(" 0")
    if exchange.method == "CONNECT":
        exchange.problem = malformed("Invalid method", "this is no proxy")
        return
    if length or "transfer-encoding" in headers:
        exchange.problem = malformed("Invalid upgrade", "it has a body")
        return
    offered = [name.strip().lower() for name in headers.get("upgrade", "").split(",")]
    if exchange.method != "GET" or "websocket" not in offered:
        return  # it is answered as if it asked for nothing more
    protocols = headers.get("sec-websocket-protocol", "").split(",")
    exchange.subprotocols = [name for part in protocols if (name := part.strip())]
    if headers.get("sec-websocket-version") != "13":
        exchange.problem = RequestError(
            426, "upgrade_required", "Unsupported WebSocket version", "expected 13",
            {"Sec-WebSocket-Version": "13"},
        )  # fmt: skip
    elif (
        exchange.is_http_10
        or not _is_key(headers.get("sec-websocket-key", ""))
        or not all(map(_TOKEN.fullmatch, exchange.subprotocols))
    ):
        exchange.problem = malformed("Invalid WebSocket handshake", "see RFC 6455, section 4.2.1")
    exchange.is_websocket = exchange.problem is None


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text.strip(), validate=True)) == 16
    except (binascii.Error, ValueError):
        return False
