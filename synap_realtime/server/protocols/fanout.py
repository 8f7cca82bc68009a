"""Fan-out groups of sockets: the subscriptions of a room that share one batched write."""

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
    """Implements :class:`hub.FanoutGroup` for WebSockets without pending writes."""

    def __init__(self, ring: IoUring | None, write_batch: WriteBatch) -> None:
        self.last_offset = 0
        # A member that joined after the last broadcast may have replayed the log beyond it.
        self._highest_offset = 0
        self._write_batch = write_batch
        self._writer: BatchWriter[WebSocketProtocol] = BatchWriter(ring)
        self._subscriptions: dict[WebSocketProtocol, Subscription] = {}
        self._unacknowledging: set[Subscription] = set()

    def __len__(self) -> int:
        return len(self._subscriptions)

    def add(self, socket: WebSocketProtocol, subscription: Subscription) -> None:
        """Add a member.

        Args:
            socket: a writable socket with a descriptor.
            subscription: its subscription. One that does not acknowledge must have no device, so
                that it shares the room's acknowledged position.
        """
        assert socket.descriptor is not None  # noqa: S101 - see WebSocketSink.can_group
        self._highest_offset = max(self._highest_offset, subscription.last_offset)
        self._subscriptions[socket] = subscription
        if not subscription.acknowledges:
            self._unacknowledging.add(subscription)
        socket.group = self
        self._writer.add(socket, socket.descriptor)

    def discard(self, socket: WebSocketProtocol) -> None:
        """Remove a member."""
        self._writer.discard(socket)
        socket.group = None
        self._unacknowledging.discard(self._subscriptions.pop(socket))

    def on_pause(self, socket: WebSocketProtocol) -> None:
        """See :class:`websocket.WriteGroup`."""
        self._subscriptions[socket].on_write_blocked()

    def flush_pending(self) -> None:
        """See :class:`hub.FanoutGroup`."""
        self._write_batch.flush()

    def broadcast(self, entry: Entry) -> bool:
        """See :class:`hub.FanoutGroup`.

        Deliveries are not batched while tracing is on, since each has its own span, nor for an
        entry that a member has already replayed from the log.
        """
        offset = entry.cursor.offset
        if offset <= self._highest_offset or is_enabled():
            return False
        self.last_offset = self._highest_offset = offset
        frame = encode_entry_frame(entry)
        for socket, written in self._writer.write(frame):
            subscription = self._subscriptions[socket]
            socket.resume_write(frame, written)
            subscription.on_partial_write(entry)
        for subscription in self._unacknowledging:
            subscription.ack(entry.cursor)
            break  # they share the room's acknowledged position: one of them is enough
        return True

    def disband(self) -> None:
        """See :class:`hub.FanoutGroup`."""
        for subscription in tuple(self._subscriptions.values()):
            subscription.leave_group()
