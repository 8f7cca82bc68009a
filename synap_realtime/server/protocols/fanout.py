"""The subscriptions of one room to which nothing waits to be written: they are told in one go."""

from __future__ import annotations

from ...tracing import is_enabled
from ..rooms.subscription import Subscription
from ..stores.base import Entry
from .batch_writer import BatchWriter
from .frames import encode_entry_frame
from .io_uring import IoUring
from .websocket import WebSocketProtocol
from .writes import WriteBatch


class SocketFanoutGroup:
    """See :class:`hub.FanoutGroup`.

    Attributes:
        handed: the offset that all of them were handed last.
    """

    def __init__(self, ring: IoUring | None, write_batch: WriteBatch) -> None:
        self.last_offset = 0
        self._furthest = 0  # where a log was read to, by one who has come since, may be further
        self._write_batch = write_batch
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
        self._furthest = max(self._furthest, subscription.last_offset)
        self._subscriptions[socket] = subscription
        if not subscription.acknowledges:
            self._unacknowledging.add(subscription)
        socket.group = self
        self._fan.add(socket, socket.descriptor)

    def discard(self, socket: WebSocketProtocol) -> None:
        """Take one out that is there."""
        self._fan.discard(socket)
        socket.group = None
        self._unacknowledging.discard(self._subscriptions.pop(socket))

    def on_pause(self, socket: WebSocketProtocol) -> None:
        """See :class:`socket.Company`."""
        self._subscriptions[socket].on_write_blocked()

    def flush_pending(self) -> None:
        """See :class:`hub.FanoutGroup`."""
        self._write_batch.flush()

    def broadcast(self, entry: Entry) -> bool:
        """See :class:`hub.FanoutGroup`: of each delivery there may have to be a span, and what one
        of them has read in the log already is for the others alone."""
        offset = entry.cursor.offset
        if offset <= self._furthest or is_enabled():
            return False
        self.last_offset = self._furthest = offset
        frame = encode_entry_frame(entry)
        for socket, taken in self._fan.write(frame):
            subscription = self._subscriptions[socket]
            socket.resume_write(frame, taken)
            subscription.on_partial_write(entry)
        for subscription in self._unacknowledging:  # they have one mark, which is the room's
            subscription.ack(entry.cursor)
            break
        return True

    def disband(self) -> None:
        """See :class:`hub.FanoutGroup`."""
        for subscription in tuple(self._subscriptions.values()):
            subscription.leave_group()
