"""Receive on one connection, for one room or for many. Without I/O.

See PROTOCOL.md, "WebSocket" and "Clients".
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Generator
from dataclasses import replace

from ..errors import InvalidArgumentError
from ..protocol.control import CLOSING, PONG, PONG_TIMEOUT_S, TOKEN_EXPIRING, ControlFrame
from ..protocol.notification import Notification, parse_notification
from .keepalive import Keepalive
from .reconnect import Failure
from .steps import Receive, RenewToken, Send, Step, StepResult

logger = logging.getLogger("synap_realtime.subscriber")

Content = Notification | ControlFrame
Handling = Generator[Step, StepResult, None]


def _nothing_planned() -> float:
    return math.inf


def receive(
    keepalive: Keepalive,
    clock: Callable[[], float],
    handle: Callable[[Content, int], Handling],
    *,
    reads_control: bool = True,
    do_planned: Callable[[], float] = _nothing_planned,
) -> Generator[Step, StepResult, Failure]:
    """Receive until the connection fails. Return the failure.

    Args:
        keepalive: decides when the peer is dead.
        clock: in seconds.
        handle: returns the steps for a message, whose size is its second argument.
        reads_control: whether the server has control frames; the others are ignored.
        do_planned: called before each wait. Returns seconds until it has to be called again.
    """
    asked_s: float | None = None
    while True:
        timeout_s = min(do_planned(), keepalive.receive_timeout_s())
        since = clock()
        message = yield Receive(timeout_s)
        keepalive.waited(since)
        if isinstance(message, Failure):
            return replace(message, retry_after_s=asked_s)
        if message == PONG:
            keepalive.pong()
        elif message is not None:
            content = read(message)
            if isinstance(content, Notification):
                yield from handle(content, len(message))
            elif content is None or not reads_control:
                pass
            elif content.type == CLOSING:
                asked_s = seconds(content.data.get("reconnectAfterMs"))
            elif content.type != TOKEN_EXPIRING:
                yield from handle(content, len(message))
            elif "room" not in content.data:  # the token of the connection
                token = yield RenewToken()
                if isinstance(token, str):
                    yield Send(json.dumps({"action": "authenticate", "token": token}))
        if keepalive.is_dead:
            return Failure(f"no pong within {PONG_TIMEOUT_S:g} s", retry_after_s=asked_s)


def read(message: str | bytes) -> Notification | ControlFrame | None:
    """Parse a message; return None if this version does not know it.

    Problems of a message are logged, its content never.
    """
    if isinstance(message, bytes):
        logger.warning("ignoring binary message of %d bytes", len(message))
        return None
    try:
        value = json.loads(message)
    except (ValueError, RecursionError):
        logger.warning("ignoring message of %d characters that is not JSON", len(message))
        return None
    match value:
        case {"type": str(type), **rest} if type.startswith("synap."):
            data = rest.get("data")
            return ControlFrame(type, data if isinstance(data, dict) else {})
    try:
        return parse_notification(value)
    except (InvalidArgumentError, RecursionError) as error:
        field = error.field if isinstance(error, InvalidArgumentError) else "data"
        logger.warning("ignoring invalid notification (field %.50r)", field)
        return None


def seconds(milliseconds: object) -> float | None:
    """Return a delay that the server asks for; None if it is not one."""
    if not isinstance(milliseconds, int | float) or isinstance(milliseconds, bool):
        return None
    return milliseconds / 1000 if 0 <= milliseconds < 1e9 else None
