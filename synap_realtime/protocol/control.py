"""The frames of a connection other than notifications: keepalive, control frames, close codes.

See PROTOCOL.md, "Subscribing" and "Close codes".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import pydantic_core

from .rooms import Room

SUBPROTOCOL = "synap.v1"
"""The WebSocket subprotocol of clients that want control frames."""

SUBPROTOCOL_V2 = "synap.v2"
"""The WebSocket subprotocol of connections with many rooms."""

BEARER_SUBPROTOCOL = "bearer."
"""The prefix of a subprotocol that carries a token, for clients that cannot set a header."""

PING = "ping"
PONG = "pong"
IDLE_TIMEOUT_S = 75.0
"""The server closes a connection from which nothing has arrived for this time."""

PING_QUIET_S = 25.0
"""The server pings a connection from which nothing has arrived for this time."""

PING_INTERVAL_S = 30.0
"""The interval at which a client sends ``ping``."""

PONG_TIMEOUT_S = 10.0
"""A client reconnects if a ``ping`` is not answered within this time."""

MAX_CLIENT_TEXT_BYTES = 4 * 1024
"""The longest text that a client may send."""

MAX_ACTION_BYTES = 12 * 1024
"""The same on a connection with many rooms, where an action may contain a token."""

MAX_ROOMS = 128
"""The maximum number of rooms of one connection."""

MAX_STREAM_ROOMS = 24
"""The maximum number of rooms of one event stream, whose address contains them all."""

SUBSCRIBED = "synap.subscribed"
UNSUBSCRIBED = "synap.unsubscribed"
ERROR = "synap.error"
PRESENCE = "synap.presence"
TOKEN_EXPIRING = "synap.token_expiring"  # noqa: S105 - the name of a frame
CLOSING = "synap.closing"


class CloseCode(IntEnum):
    """The close codes. A client reconnects after 4000 to 4499, and does not after 4500 to 4999."""

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
        """The default reason in the close frame."""
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
    """``{"type":…,"data":{…}}``, for clients that speak ``synap.v1`` or ``synap.v2``."""

    type: str
    data: Mapping[str, Any]

    def encoded(self) -> str:
        """Return the JSON, encoded once for all connections that receive the frame."""
        if (text := self.__dict__.get("_text")) is None:
            content = pydantic_core.to_json({"type": self.type, "data": self.data})
            text = self.__dict__["_text"] = content.decode()
        return text

    def in_room(self, room: Room) -> ControlFrame:
        """Return the frame with ``data.room``, for a connection with many rooms.

        Args:
            room: the same at each call.
        """
        if "room" in self.data:
            return self
        if (frame := self.__dict__.get("_in_room")) is None:
            frame = self.__dict__["_in_room"] = ControlFrame(self.type, {"room": room, **self.data})
        return frame


@dataclass(frozen=True, slots=True)
class Ack:
    """``{"action":"ack","cursor":…}``: the client has received everything up to the cursor.

    Attributes:
        room: None on a connection with one room.
    """

    cursor: str
    room: Room | None = None


@dataclass(frozen=True, slots=True)
class Authenticate:
    """``{"action":"authenticate","token":…}``: a new token in place of the old one.

    Attributes:
        room: the room whose token it is; None: it is the token of the connection.
    """

    token: str
    room: Room | None = None

    def __repr__(self) -> str:
        return "Authenticate(…)"


def parse_action(text: str) -> Ack | Authenticate | None:
    """Parse the action in a message on a connection with one room; None for every other text."""
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
