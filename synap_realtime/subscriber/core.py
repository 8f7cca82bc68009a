"""The lifecycle of a subscription, without I/O; shared by both drivers.

:func:`run` is a generator that holds the logic: it yields steps, receives the result of each, and
ends only with an error. The drivers (:mod:`.aio`, :mod:`.sync`) execute the steps.

See PROTOCOL.md, "Subscribing" and "Clients".
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InvalidArgumentError
from ..protocol.control import (
    CLOSING,
    PONG,
    PONG_TIMEOUT_S,
    SUBPROTOCOL,
    SUBSCRIBED,
    TOKEN_EXPIRING,
    ControlFrame,
)
from ..protocol.notification import Notification, parse_notification
from .keepalive import Keepalive
from .options import Options, SubscriptionState, Token
from .reconnect import Failure, ReconnectPolicy

logger = logging.getLogger("synap_realtime.subscriber")

SEEN_IDS = 4096
"""Number of recent ids that are remembered to drop duplicates."""

POSITIONS = ("earliest", "latest")


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
EffectResult = str | bytes | Failure | None
Steps = Generator[Step, EffectResult, None]


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


MAX_INTERRUPTED_REPLAYS = 3
"""After this number of consecutive interrupted replays, the next one starts where the last ended.
"""


class RoomProgress:
    """The state that outlives a connection: the position, and the ids received."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cursor: str | None = None
        self.received: str | None = None
        # Whether gaps matter: a first connection without a cursor has missed nothing at its start.
        self.reports_gaps = options.after not in (None, *POSITIONS)
        self._was_connected = False
        # The server reports a gap only at the end of a replay. An interrupted replay is requested
        # again from its start, because otherwise no gap would ever be reported.
        self._resume = None if options.after in POSITIONS else options.after
        self._is_replay_complete = False
        self._interrupted_replays = 0
        self._seen: dict[str, None] = {}  # the oldest first

    @property
    def after(self) -> str | None:
        return self._resume or self.options.after

    def connected(self, *, speaks_v1: bool) -> None:
        self.reports_gaps |= self._was_connected
        self._was_connected = True
        # Without a position there is no gap to report.
        self._is_replay_complete = not speaks_v1 or self._resume is None

    def replay_complete(self, cursor: object) -> None:
        """Record that the replay has ended and the server has reported any gap."""
        self._is_replay_complete = self.reports_gaps = True
        self._interrupted_replays = 0
        self.move_to(cursor)

    def subscribed(self, frame: ControlFrame) -> bool:
        """Apply ``synap.subscribed``. Return whether to report a gap.

        The last connection may have ended before its last acknowledgement, so the caller repeats
        it.
        """
        has_gap = frame.data.get("recovered") is False and self.reports_gaps
        self.replay_complete(frame.data.get("cursor"))
        if has_gap:  # the log of the last one may be gone
            self.received = self.cursor
            logger.info("gap: missed notifications are no longer retained")
        return has_gap

    def pause(self) -> bool:
        """Record that this client has left the room for a while. Return whether a gap may stay
        unreported.
        """
        if self._is_replay_complete or self.cursor is None:
            return False
        has_reports = self.reports_gaps and self._resume is not None
        self._resume = self.cursor
        return has_reports

    def lost(self) -> bool:
        """Record that the connection was lost. Return whether a gap may stay unreported."""
        if self._is_replay_complete or self.cursor is None or self._resume == self.cursor:
            return False
        self._interrupted_replays += 1
        if self._interrupted_replays < MAX_INTERRUPTED_REPLAYS:
            return False
        self._interrupted_replays = 0
        self._resume = self.cursor
        return True

    def move_to(self, cursor: object) -> None:
        """Advance the position; ignore an invalid cursor."""
        if isinstance(cursor, str) and 0 < len(cursor) <= 64 and cursor.isascii():
            self.cursor = cursor
            if self._is_replay_complete:
                self._resume = cursor

    def is_new(self, notification: Notification) -> bool:
        """Return whether the id is new; a notification without an id always is."""
        if notification.id is None:
            return True
        if notification.id in self._seen:
            return False
        self._seen[notification.id] = None
        if len(self._seen) > SEEN_IDS:
            del self._seen[next(iter(self._seen))]
        return True


def run(options: Options, clock: Callable[[], float], random: Callable[[], float]) -> Steps:
    """Run one subscription: connect, receive, and reconnect until a permanent failure."""
    subscription = RoomProgress(options)
    reconnect = ReconnectPolicy(options.max_reconnects, random)
    while True:
        answer = yield Connect(subscription.after)
        up_s = 0.0
        if isinstance(answer, Failure):
            failure = explain_expiry(answer, options.token)
        else:
            start = clock()
            speaks_v1 = answer == SUBPROTOCOL
            subscription.connected(speaks_v1=speaks_v1)
            keepalive = Keepalive(clock, acknowledges=speaks_v1 and options.acknowledge)
            yield StartKeepalive(keepalive)
            yield Notify(options.on_state_change, SubscriptionState("connected"))
            failure = yield from _connected(subscription, keepalive, clock, speaks_v1=speaks_v1)
            up_s = clock() - start
            yield Disconnect()
            if subscription.lost():
                logger.info("replay repeatedly interrupted; possible gap")
                yield Notify(options.on_gap, options.room)
        delay_s = reconnect.delay_after(failure, up_s, options.address.named)
        logger.info("%s; reconnecting in %.1f s", failure.reason, delay_s)
        state = SubscriptionState("reconnecting", reconnect.count, delay_s, failure.reason)
        yield Notify(options.on_state_change, state)
        yield Sleep(delay_s)


def explain_expiry(failure: Failure, token: Token) -> Failure:
    """Note that a handshake was rejected because a token expired that a function can replace."""
    if failure.status != 401 or not callable(token):
        return failure
    return replace(failure, is_expired=re.search(r"\bexpired\b", failure.reason) is not None)


def _connected(
    subscription: RoomProgress,
    keepalive: Keepalive,
    clock: Callable[[], float],
    *,
    speaks_v1: bool,
) -> Generator[Step, EffectResult, Failure]:
    """Receive on one connection until it fails; return the failure."""
    asked_s: float | None = None
    while True:
        since = clock()
        message = yield Receive(keepalive.receive_timeout_s())
        keepalive.waited(since)
        if isinstance(message, Failure):
            return replace(message, retry_after_s=asked_s)
        if message == PONG:
            keepalive.pong()
        elif message is not None:
            content = read(message)
            if isinstance(content, Notification):
                subscription.move_to(content.cursor)
                if subscription.is_new(content):
                    yield Deliver(content)
                # The consumer has requested the next one, so it has processed this one.
                subscription.received = subscription.cursor
                if keepalive.acknowledge(subscription.received):
                    yield WakeKeepalive()
            elif isinstance(content, ControlFrame) and speaks_v1:
                if content.type == SUBSCRIBED:
                    has_gap = subscription.subscribed(content)
                    if keepalive.acknowledge(subscription.received):
                        yield WakeKeepalive()
                    if has_gap:
                        yield Notify(subscription.options.on_gap, subscription.options.room)
                elif content.type == CLOSING:
                    asked_s = seconds(content.data.get("reconnectAfterMs"))
                elif content.type == TOKEN_EXPIRING:
                    token = yield RenewToken()
                    if isinstance(token, str):
                        yield Send(authentication(token))
        if keepalive.is_dead:
            return Failure(f"no pong within {PONG_TIMEOUT_S:g} s", retry_after_s=asked_s)


def authentication(token: str) -> str:
    """Return the action that replaces the token of a connection."""
    return json.dumps({"action": "authenticate", "token": token})


def seconds(milliseconds: object) -> float | None:
    """Return a delay that the server asks for; None if it is not one."""
    if not isinstance(milliseconds, int | float) or isinstance(milliseconds, bool):
        return None
    return milliseconds / 1000 if 0 <= milliseconds < 1e9 else None
