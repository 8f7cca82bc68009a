"""One subscription on a shared connection: its rooms, and its consumer's queue. Without I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from ..protocol.notification import Notification
from ..protocol.rooms import Room
from .options import Options, SubscriptionState
from .progress import RoomProgress
from .reconnect import Failure, ReconnectPolicy
from .steps import Notify

logger = logging.getLogger("synap_realtime.subscriber")

MAX_QUEUED_BYTES = 1024 * 1024
"""What is queued for one consumer. With more, its rooms are left until the half is processed."""

MAX_QUEUED = 1000
"""The same in messages."""

BURST = 16
"""After this number of messages, the consumer gets time to process them."""

PAUSE_S = 0.001
"""The time that it gets while half of the bounds is exceeded."""

_NO_CALL = Notify(None, "")


class Queued(NamedTuple):
    """One item for a consumer.

    Attributes:
        content: what to deliver or to call; an error that ends the subscription; None if the server
            has no connections with many rooms.
        room: which room it is about; None if it is about the connection.
        cursor: what to acknowledge in this room when the item is processed.
        size: in bytes of the message; 0 if it was none.
    """

    content: Notification | Notify | Exception | None
    room: SharedRoom | None = None
    cursor: str | None = None
    size: int = 0


class RoomStatus(Enum):
    """Whether a room is subscribed on the present connection."""

    WAITING = auto()
    """It waits for a connection, or for the time of its next attempt."""

    SUBSCRIBED = auto()
    """It was requested, and has not been left."""

    PAUSED = auto()
    """It was left because its consumer is slow, and waits until that has caught up."""


class SharedRoom:
    """One room of a subscription.

    Attributes:
        name: its room id.
        subscription: whose room it is.
        status: whether it is subscribed.
        progress: its position.
        policy: counts its consecutive failures.
        since: when the server had replayed it; None while it is not subscribed.
    """

    def __init__(
        self,
        name: Room,
        after: str | None,
        subscription: SharedSubscription,
        policy: ReconnectPolicy,
    ) -> None:
        self.name = name
        self.subscription = subscription
        self.status = RoomStatus.WAITING
        self.progress = RoomProgress(after)
        self.policy = policy
        self.since: float | None = None

    def put(self, notification: Notification | None, size: int = 0) -> None:
        """Queue a notification, or only its cursor if it is a duplicate."""
        item = Queued(notification or _NO_CALL, self, self.progress.cursor, size)
        self.subscription.put(item)

    def put_gap(self, cursor: str | None = None) -> None:
        """Queue the report of a gap."""
        call = Notify(self.subscription.options.on_gap, self.name)
        self.subscription.put(Queued(call, self, cursor))

    def lose(self) -> None:
        """Note that the server has ended the room, or that the connection was lost.

        An attempt to connect that failed loses nothing: the room was not subscribed.
        """
        if self.status is not RoomStatus.SUBSCRIBED:
            return
        self.status = RoomStatus.WAITING
        self.since = None
        if self.progress.lost():
            logger.info("replay repeatedly interrupted; possible gap")
            self.put_gap()


class SharedSubscription:
    """One subscription on a shared connection.

    Its rooms have one consumer, and therefore one queue.

    Attributes:
        options: its arguments.
        rooms: its rooms.
        policy: counts its consecutive connections that failed.
        paused: those of its rooms that were left because the consumer is slow.
    """

    def __init__(
        self,
        options: Options,
        put: Callable[[Queued], None],
        random: Callable[[], float],
    ) -> None:
        """
        Args:
            put: appends an item to the queue of the consumer. It never blocks.
        """
        self.options = options
        self.policy = ReconnectPolicy(options.max_reconnects, random)
        self.rooms = [
            SharedRoom(
                room,
                after,
                self,
                # For a single room, it makes no difference what failed.
                self.policy
                if len(options.positions) == 1
                else ReconnectPolicy(options.max_reconnects, random),
            )
            for room, after in options.positions.items()
        ]
        self.paused: list[SharedRoom] = []
        self._put = put
        self._count = 0
        self._bytes = 0

    @property
    def positions(self) -> dict[Room, str | None]:
        """Where each room continues."""
        return {room.name: room.progress.after for room in self.rooms}

    # ---- its queue

    @property
    def is_behind(self) -> bool:
        """Whether the queue is too long for more."""
        return self._count > MAX_QUEUED or self._bytes > MAX_QUEUED_BYTES

    @property
    def has_caught_up(self) -> bool:
        """Whether rooms can be subscribed again after :attr:`is_behind`."""
        return self._count <= MAX_QUEUED // 2 and self._bytes <= MAX_QUEUED_BYTES // 2

    @property
    def pause_s(self) -> float | None:
        """How long not to receive, so that the consumer can keep up; None if it does.

        It is short, because other consumers wait, too: rooms whose consumer stays slow are left.
        """
        if self._count <= BURST:
            return None
        return 0.0 if self.has_caught_up else PAUSE_S

    def put(self, item: Queued) -> None:
        self._count += 1
        self._bytes += item.size
        self._put(item)

    def put_state(self, state: SubscriptionState) -> None:
        self.put(Queued(Notify(self.options.on_state_change, state)))

    def put_room_state(self, state: SubscriptionState) -> None:
        """Queue the state of one room, which is that of the subscription if it has no other."""
        if len(self.rooms) == 1:
            self.put_state(state)

    def on_processed(self, item: Queued) -> None:
        self._count -= 1
        self._bytes -= item.size

    # ---- its end

    def end(self, error: Exception | None) -> None:
        """End the subscription; None: continue on connections with one room."""
        self._put(Queued(error))

    def fail(self, failure: Failure, up_s: float, shown: str) -> None:
        """Count a connection that failed.

        Raises:
            SubscriptionError: no other may follow.
        """
        self.policy.delay_after(failure, up_s, shown)
        for room in self.rooms:
            room.lose()
