"""What a connection says beside notifications: keepalive, control frames, close codes.

See PROTOCOL.md, "Subscribing" and "Close codes".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

SUBPROTOCOL = "synap.v1"
"""The WebSocket subprotocol of clients that want control frames."""

BEARER_SUBPROTOCOL = "bearer."
"""Offered with a token behind it, by clients that cannot set a header."""

PING = "ping"
PONG = "pong"
IDLE_TIMEOUT_S = 75.0
"""A connection from which nothing has come for so long is closed."""

PING_QUIET_S = 25.0
"""The server pings a connection from which nothing has come for so long."""

PING_INTERVAL_S = 30.0
"""How often a client says ``ping``."""

PONG_TIMEOUT_S = 10.0
"""A server that does not answer a ``ping`` for so long is dead."""

MAX_CLIENT_TEXT_BYTES = 4 * 1024
"""The longest text that a client may send."""

SUBSCRIBED = "synap.subscribed"
PRESENCE = "synap.presence"
TOKEN_EXPIRING = "synap.token_expiring"  # noqa: S105 - the name of a frame
CLOSING = "synap.closing"


class CloseCode(IntEnum):
    """4000 to 4499: come back with the last cursor. 4500 to 4999: don't."""

    SLOW_CONSUMER = 4008
    IDLE_TIMEOUT = 4009
    DRAINING = 4012
    RATE_LIMITED = 4029
    TOKEN_EXPIRED = 4401
    UNAUTHORIZED = 4501
    FORBIDDEN = 4503
    REVOKED = 4504
    CONNECTION_LIMIT = 4529
    PROTOCOL_VIOLATION = 4540

    @property
    def reason(self) -> str:
        """What the close frame says where nothing more exact is known."""
        return _REASONS[self]


_REASONS = {
    CloseCode.SLOW_CONSUMER: "slow consumer: the client does not read what it is sent",
    CloseCode.IDLE_TIMEOUT: "idle timeout: nothing was received, not even a pong",
    CloseCode.DRAINING: "the server is draining",
    CloseCode.RATE_LIMITED: "rate limit: too many messages",
    CloseCode.TOKEN_EXPIRED: "token expired",
    CloseCode.UNAUTHORIZED: "invalid token",
    CloseCode.FORBIDDEN: "forbidden",
    CloseCode.REVOKED: "token revoked",
    CloseCode.CONNECTION_LIMIT: "connection limit: too many connections of this user",
    CloseCode.PROTOCOL_VIOLATION: "expected text messages of at most 4 KiB",
}


@dataclass(frozen=True)
class ControlFrame:
    """``{"type":…,"data":{…}}``, for clients that asked for it."""

    type: str
    data: Mapping[str, Any]

    def encoded(self) -> str:
        return self._text

    @cached_property
    def _text(self) -> str:
        """Encoded once, however many connections the frame goes to."""
        return json.dumps({"type": self.type, "data": self.data}, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Ack:
    """``{"action":"ack","cursor":…}``: the client has received everything up to there."""

    cursor: str


@dataclass(frozen=True, slots=True)
class Authenticate:
    """``{"action":"authenticate","token":…}``: a new token in place of the old one."""

    token: str

    def __repr__(self) -> str:
        return "Authenticate(…)"


def parse_action(text: str) -> Ack | Authenticate | None:
    """What a client asks for; None for every other text."""
    if not text.startswith("{"):
        return None
    try:
        match json.loads(text):
            case {"action": "ack", "cursor": str(cursor)}:
                return Ack(cursor)
            case {"action": "authenticate", "token": str(token)}:
                return Authenticate(token)
    except (ValueError, RecursionError):
        pass
    return None
