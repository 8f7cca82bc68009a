"""What a subscription asks of its driver, step by step.

The logic of a subscription is a generator without I/O: it yields steps, receives the result of
each, and ends with an error or by itself. The drivers execute them, those of a connection by
:mod:`.aio_connection` and :mod:`.sync_connection`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from ..protocol.notification import Notification
from .keepalive import Keepalive
from .options import SubscriptionState
from .reconnect import Failure


@dataclass(frozen=True, slots=True)
class Connect:
    """Connect and start after a position. Result: the subprotocol, None, or a Failure."""

    after: str | None


@dataclass(frozen=True, slots=True)
class StartKeepalive:
    """Start the keepalive, which sends its due texts until :class:`Disconnect`. No result."""

    keepalive: Keepalive


@dataclass(frozen=True, slots=True)
class Receive:
    """Wait for a message. Result: the message, None after a timeout, or a Failure."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Deliver:
    """Deliver a notification. Continues when the consumer requests the next one."""

    notification: Notification


@dataclass(frozen=True, slots=True)
class Send:
    """Send a text. No result: a closed connection is reported by the next :class:`Receive`."""

    text: str


class RenewToken:
    """Call the token function, as the token expires soon. Result: the new token; None if there is
    none, or if it is the present one.
    """


class WakeKeepalive:
    """Wake the keepalive because a text is due. No result."""


class Disconnect:
    """Close the connection and stop its keepalive. No result."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait. No result."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class Notify:
    """Call one of the consumer's callbacks with this argument. No result."""

    function: Callable[[Any], object] | None
    value: SubscriptionState | str


Step = (
    Connect
    | StartKeepalive
    | Receive
    | Deliver
    | Send
    | RenewToken
    | WakeKeepalive
    | Disconnect
    | Sleep
    | Notify
)
StepResult = str | bytes | Failure | None
Steps = Generator[Step, StepResult, None]
