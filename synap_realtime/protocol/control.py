"""What a connection says beside notifications: keepalive, control frames, close codes.

See PROTOCOL.md, "Subscribing" and "Close codes".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

SUBPROTOCOL = "synap.v1"
"""The WebSocket subprotocol of clients that want control frames."""

PING = "ping"
PONG = "pong"
SILENCE_LIMIT_S = 75.0
"""A connection from which nothing has come for so long is closed."""

MAX_CLIENT_TEXT_BYTES = 4 * 1024
"""The longest text that a client may send."""

SUBSCRIBED = "synap.subscribed"
CLOSING = "synap.closing"


class CloseCode(IntEnum):
    """4000 to 4499: come back with the last cursor. 4500 to 4999: don't."""

    TOO_SLOW = 4008
    SILENT = 4009
    DRAINING = 4012
    CONTRACT_BROKEN = 4540


@dataclass(frozen=True, slots=True)
class ControlFrame:
    """``{"type":…,"data":{…}}``, for clients that asked for it."""

    type: str
    data: Mapping[str, Any]

    def encoded(self) -> str:
        return json.dumps({"type": self.type, "data": self.data}, separators=(",", ":"))


def read_ack(text: str) -> str | None:
    """The cursor of ``{"action":"ack","cursor":…}``; None for every other text."""
    if not text.startswith("{"):
        return None
    try:
        match json.loads(text):
            case {"action": "ack", "cursor": str(cursor)}:
                return cursor
    except (ValueError, RecursionError):
        pass
    return None
