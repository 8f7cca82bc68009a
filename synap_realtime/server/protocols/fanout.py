"""The subscriptions of one room to which nothing waits to be written: they are told in one go."""

from __future__ import annotations

from ...tracing import is_on
from ..rooms.subscription import Subscription
from ..stores.base import Entry
from .batch_writer import BatchWriter
from .frames import frame_of
from .io_uring import IoUring
from .websocket import WebSocketProtocol
from .writes import WriteBatch


class SocketFanoutGroup:
    """See :class:`hub.FanoutGroup`.

    Attributes:
        handed: the offset that all of them were handed last.
    """

    def __init__(self, ring: IoUring | None, turn: WriteBatch) -> None:
        self.handed = 0
        self._furthest = 0  # where a log was read to, by one who has come since, may be further
        self._turn = turn
        self._fan: BatchWriter[WebSocketProtocol] = BatchWriter(ring)
        self._subscriptions: dict[WebSocketProtocol, Subscription] = {}
        self._unacknowledging: set[Subscription] = set()

    def __len__(self) -> int:
        return len(self._subscriptions)

    def add(self, socket: WebSocketProtocol, subscription: Subscription) -> None:
        """
        Args:
            socket: one with a descriptor, on which nothing waits.
            subscription: one whose mark, if it does not acknowledge, is the room's.
        """
        assert socket.descriptor is not None  # noqa: S101 - what has none can not gather
        self._furthest = max(self._furthest, subscription.handed)
        self._subscriptions[socket] = subscription
        if not subscription.acknowledges:
            self._unacknowledging.add(subscription)
        socket.company = self
        self._fan.add(socket, socket.descriptor)

    def discard(self, socket: WebSocketProtocol) -> None:
        """Take one out that is there."""
        self._fan.discard(socket)
        socket.company = None
        self._unacknowledging.discard(self._subscriptions.pop(socket))

    def stalled(self, socket: WebSocketProtocol) -> None:
        """See :class:`socket.Company`."""
        self._subscriptions[socket].stall()

    def prepare(self) -> None:
        """See :class:`hub.FanoutGroup`."""
        self._turn.flush()

    def tell(self, entry: Entry) -> bool:
        """See :class:`hub.FanoutGroup`: of each delivery there may have to be a span, and what one
        of them has read in the log already is for the others alone."""
        offset = entry.cursor.offset
        if offset <= self._furthest or is_on():
            return False
        self.handed = self._furthest = offset
        frame = frame_of(entry)
        for socket, taken in self._fan.write(frame):
            subscription = self._subscriptions[socket]
            socket.go_on(frame, taken)
            subscription.was_handed(entry)
        for subscription in self._unacknowledging:  # they have one mark, which is the room's
            subscription.received(entry.cursor)
            break
        return True

    def part(self) -> None:
        """See :class:`hub.FanoutGroup`."""
        for subscription in tuple(self._subscriptions.values()):
            subscription.scatter()
