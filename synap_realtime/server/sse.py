"""Encode Server-Sent Events. See PROTOCOL.md, "Server-Sent Events"."""

from __future__ import annotations

import json

from ..protocol.control import ControlFrame
from .app import SSE_RETRY_MS
from .stores.base import Entry

HEARTBEAT_S = 15.0
"""The interval of comment lines. Proxies close a stream that is idle for longer."""

COMMENT = b":\n\n"


def encode_retry() -> bytes:
    """Return the beginning of a stream, which sets the reconnect delay of browsers."""
    return f"retry: {SSE_RETRY_MS}\n\n".encode()


def encode_event(message: Entry | ControlFrame) -> bytes:
    """Encode a notification or a control frame as one event."""
    if isinstance(message, Entry):
        return f"id: {message.cursor}\ndata: {message.text}\n\n".encode()
    fields = ""
    if cursor := message.data.get("cursor"):
        fields += f"id: {cursor}\n"
    if retry_ms := message.data.get("reconnectAfterMs"):
        fields += f"retry: {retry_ms}\n"
    data = json.dumps(message.data, separators=(",", ":"))
    return f"event: {message.type}\n{fields}data: {data}\n\n".encode()
