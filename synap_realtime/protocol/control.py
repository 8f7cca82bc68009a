"""What a connection says beside notifications: keepalive and close codes.

See PROTOCOL.md, "Subscribing" and "Close codes".
"""

from __future__ import annotations

from enum import IntEnum

SUBPROTOCOL = "synap.v1"
"""Who offers it gets control frames, and may acknowledge."""

SUBSCRIBED = "synap.subscribed"
CLOSING = "synap.closing"

PING = "ping"
PONG = "pong"
SILENCE_LIMIT_S = 75.0
"""A connection from which nothing has come for so long is closed."""

PING_INTERVAL_S = 30.0
"""How often a client says ``ping``."""

PONG_WITHIN_S = 10.0
"""A server that does not answer a ``ping`` for so long is dead."""

MAX_CLIENT_TEXT_BYTES = 4 * 1024
"""The longest text that a client may send."""


class CloseCode(IntEnum):
    """4000 to 4499: come back with the last cursor. 4500 to 4999: don't."""

    TOO_SLOW = 4008
    SILENT = 4009
    DRAINING = 4012
    CONTRACT_BROKEN = 4540
