"""One subscription on a shared connection, and the queue of its consumer. Without I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

from ..protocol.notification import Notification
from .core import Notify, RoomProgress
from .options import Options, SubscriptionState
from .reconnect import Failure, ReconnectPolicy

logger = logging.getLogger("synap_realtime.subscriber")

MAX_QUEUED_BYTES = 1024 * 1024
"""What is queued for one consumer. With more, its room is left until the half is processed."""

MAX_QUEUED = 1000
"""The same in messages."""

BURST = 16
"""After this number of messages, the consumer gets time to process them."""

PAUSE_S = 0.001
"""The time that it gets while half of the bounds is exceeded."""


class Queued(NamedTuple):
    """One item for a consumer.

    Attributes:
        content: what to deliver or to call; an error that ends the subscription; None if the server
            has no connections with many rooms.
        cursor: what to acknowledge when it is processed.
        size: in bytes of the message; 0 if it was none.
    """

    content: Notification | Notify | Exception | None
    cursor: str | None = None
    size: int = 0


class SharedSubscription:
    """One subscription on a shared connection.

    Attributes:
        options: its arguments.
        room: its room.
        progress: its position.
        policy: counts its reconnects.
        retry_at: when it is subscribed again; None if that is not planned.
        since: when it was subscribed.
        is_paused: its consumer is slow, so the room was left.
    """

    def __init__(
        self,
        options: Options,
        put: Callable[[Queued], None],
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        """
        Args:
            put: appends an item to the queue of the consumer. It never blocks.
        """
        self.options = options
        self.room = options.room
        self.progress = RoomProgress(options)
        self.policy = ReconnectPolicy(options.max_reconnects, random)
        self.retry_at: float | None = None
        self.since: float | None = None
        self.is_paused = False
        self.count = 0
        self.bytes = 0
        self._put = put
        self._clock = clock

    @property
    def is_behind(self) -> bool:
        """Whether the queue is too long for more."""
        return self.count > MAX_QUEUED or self.bytes > MAX_QUEUED_BYTES

    @property
    def pause_s(self) -> float | None:
        """How long not to receive, so that the consumer can keep up; None if it does.

        It is short, because other consumers wait, too: a room whose consumer stays slow is left.
        """
        if self.count <= BURST:
            return None
        return 0.0 if self.has_caught_up else PAUSE_S

    @property
    def has_caught_up(self) -> bool:
        """Whether the room can be subscribed again after :attr:`is_behind`."""
        return self.count <= MAX_QUEUED // 2 and self.bytes <= MAX_QUEUED_BYTES // 2

    def put(self, content: Notification | None, size: int = 0) -> None:
        """Queue a notification, or only its cursor if it is a duplicate."""
        self.count += 1
        self.bytes += size
        no_call = Notify(None, "")
        self._put(Queued(content or no_call, self.progress.cursor, size))

    def notify_gap(self, cursor: str | None = None) -> None:
        self.count += 1
        self._put(Queued(Notify(self.options.on_gap, self.room), cursor))

    def notify_state(self, state: SubscriptionState) -> None:
        self.count += 1
        self._put(Queued(Notify(self.options.on_state_change, state)))

    def end(self, error: Exception | None) -> None:
        """End the subscription; None: continue on a connection of its own."""
        self._put(Queued(error))

    def on_processed(self, item: Queued) -> None:
        self.count -= 1
        self.bytes -= item.size

    def fail(self, failure: Failure, up_s: float, shown: str) -> float:
        """Count a failure. Return seconds until the next attempt.

        Raises:
            SubscriptionError: none may follow.
        """
        delay_s = self.policy.delay_after(failure, up_s, shown)
        self.since = None
        if self.progress.lost():
            logger.info("replay repeatedly interrupted; possible gap")
            self.notify_gap()
        return delay_s
