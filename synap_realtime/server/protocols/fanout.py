"""Fan-out: one batched write to the subscribers of a room whose sockets have no pending writes."""

from __future__ import annotations

import os
from array import array
from typing import Any, Generic, Protocol, TypeVar

from ...tracing import is_enabled
from ..rooms.subscription import Subscription
from ..stores.base import Entry
from .io_uring import ENTRY_BYTES, LENGTH_AT, MAX_FRAME_BYTES, IoUring
from .writes import WriteBatch
from .ws_codec import encode_entry_frame

IO_URING_MIN_SOCKETS = 16
"""With fewer sockets, io_uring costs more than it saves."""

_INITIAL_ENTRIES = 16  # that a block has room for


class Member(Protocol):
    """A member of a :class:`BatchWriter`.

    Attributes:
        index: its position in the writer, which sets it.
    """

    index: int


M = TypeVar("M", bound=Member)


class BatchWriter(Generic[M]):
    """Sockets that receive the same frames. Adding and discarding one take constant time."""

    def __init__(self, ring: IoUring | None = None) -> None:
        """
        Args:
            ring: the io_uring to write with; None writes with one system call per socket.
        """
        self._members: list[M] = []
        self._descriptors: list[int] = []
        self._ring = ring
        self._block = memoryview(b"")  # one prepared submission entry per member
        self._lengths = self._block
        self._length = 0  # the frame length in all entries

    def __len__(self) -> int:
        return len(self._members)

    def add(self, member: M, descriptor: int) -> None:
        """Add a member.

        Args:
            member: in no other writer.
            descriptor: its non-blocking socket, with no pending write in its transport. It must
                stay open until the member is discarded.
        """
        member.index = len(self._members)
        self._members.append(member)
        self._descriptors.append(descriptor)
        self._write_sqe(member.index, descriptor)

    def discard(self, member: M) -> None:
        """Remove a member. The last member takes its position."""
        last = self._members.pop()
        descriptor = self._descriptors.pop()
        if last is not member:
            last.index = member.index
            self._members[last.index] = last
            self._descriptors[last.index] = descriptor
            self._write_sqe(last.index, descriptor)

    def write(self, frame: bytes) -> list[tuple[M, int]]:
        """Write a frame to all members, without blocking.

        Returns:
            The members that did not get the whole frame, each with the number of bytes that were
            written, or -1 if its connection is closed. They stay members.
        """
        begin = 0
        partial_writes: list[tuple[int, int]] = []
        ring, size, members = self._ring, len(frame), self._members
        if ring is not None and len(members) >= IO_URING_MIN_SOCKETS and size <= MAX_FRAME_BYTES:
            if size != self._length:
                self._length = size
                self._lengths[:] = array("I", [size]) * len(self._lengths)
            begin, partial_writes = ring.send(self._block, 0, len(members), frame)
        if begin < len(members):
            self._write_each(begin, frame, partial_writes)
        return [(members[index], written) for index, written in partial_writes]

    def _write_each(self, begin: int, frame: bytes, partial_writes: list[tuple[int, int]]) -> None:
        write, size = os.write, len(frame)
        for index, descriptor in enumerate(self._descriptors[begin:], begin):
            try:
                written = write(descriptor, frame)
            except BlockingIOError:
                written = 0
            except OSError:
                written = -1
            if written != size:
                partial_writes.append((index, written))

    def _write_sqe(self, index: int, descriptor: int) -> None:
        if self._ring is None:
            return
        if index * ENTRY_BYTES >= len(self._block):
            self._grow()
        self._ring.write_sqe(self._block, index, descriptor, self._length)

    def _grow(self) -> None:
        entries = self._block.tobytes()
        self._block = memoryview(
            bytearray(entries + bytes(len(entries) or _INITIAL_ENTRIES * ENTRY_BYTES))
        )
        self._lengths = self._block.cast("I")[LENGTH_AT // 4 :: ENTRY_BYTES // 4]


class PauseListener(Protocol):
    """What shares the writes of a socket, and bypasses its transport."""

    def on_pause(self, socket: Any, /) -> None:
        """Called when the socket is blocked or closing: it is no longer written to directly."""


class GroupSocket(Member, Protocol):
    """A WebSocket that can share the writes of a group, which bypass its transport.

    Attributes:
        descriptor: the socket's descriptor, if it can be written to directly.
        group: the group whose writes it shares. The group sets it.
    """

    descriptor: int | None
    group: Any

    def resume_write(self, frame: bytes, sent: int) -> None:
        """Write the rest of a frame that the group could not write whole.

        Args:
            frame: the whole frame.
            sent: how many of its bytes were written; -1 if the connection is closed.
        """


class RoomMember:
    """A WebSocket with many rooms, as a member of the group of one of them.

    Attributes:
        descriptor, group, index: see :class:`GroupSocket`.
        subscription: of the room.
    """

    __slots__ = ("_rooms", "descriptor", "group", "index", "subscription")

    def __init__(self, rooms: SharedSocket, subscription: Subscription) -> None:
        self.descriptor = rooms.socket.descriptor
        self.group: SocketFanoutGroup | None = None
        self.index = -1
        self.subscription = subscription
        self._rooms = rooms

    def resume_write(self, frame: bytes, sent: int) -> None:
        """See :class:`GroupSocket`."""
        self._rooms.socket.resume_write(frame, sent)

    def leave(self) -> None:
        """See :class:`backlog.GroupMember`."""
        assert self.group is not None  # noqa: S101 - it is a member
        self.group.discard(self)
        self._rooms.members.discard(self)


class SharedSocket:
    """A WebSocket with many rooms, which is a member of a group for each large one.

    Attributes:
        members: one for each group that it is in.
        socket: the WebSocket.
    """

    __slots__ = ("members", "socket")

    def __init__(self, socket: GroupSocket) -> None:
        self.members: set[RoomMember] = set()
        self.socket = socket

    def create_member(self, subscription: Subscription) -> RoomMember:
        """Return a member for the group of one more room."""
        return RoomMember(self, subscription)

    def on_pause(self, _socket: object) -> None:
        """Leave all groups: the socket is blocked or closing."""
        for member in tuple(self.members):
            member.subscription.leave_group()


class SocketFanoutGroup:
    """Implements :class:`hub.FanoutGroup` for WebSockets without pending writes."""

    def __init__(self, ring: IoUring | None, write_batch: WriteBatch) -> None:
        self.last_offset = 0
        # A member that joined after the last broadcast may have replayed the log beyond it.
        self._highest_offset = 0
        self._write_batch = write_batch
        self._writer: BatchWriter[GroupSocket] = BatchWriter(ring)
        self._subscriptions: dict[GroupSocket, Subscription] = {}
        self._unacknowledging: set[Subscription] = set()

    def __len__(self) -> int:
        return len(self._subscriptions)

    def add(self, socket: GroupSocket, subscription: Subscription) -> None:
        """Add a member.

        Args:
            socket: a writable socket with a descriptor.
            subscription: its subscription. One that does not acknowledge must have no device, so
                that it shares the room's acknowledged position.
        """
        assert socket.descriptor is not None  # noqa: S101 - see WebSocketSink.join_group
        self._highest_offset = max(self._highest_offset, subscription.last_offset)
        self._subscriptions[socket] = subscription
        if not subscription.acknowledges:
            self._unacknowledging.add(subscription)
        socket.group = self
        self._writer.add(socket, socket.descriptor)

    def discard(self, socket: GroupSocket) -> None:
        """Remove a member."""
        self._writer.discard(socket)
        socket.group = None
        self._unacknowledging.discard(self._subscriptions.pop(socket))

    def on_pause(self, socket: GroupSocket) -> None:
        """Remove a socket that is blocked or closing: it is no longer written to directly."""
        self._subscriptions[socket].on_write_blocked()

    def flush_pending(self) -> None:
        """See :class:`hub.FanoutGroup`."""
        self._write_batch.flush()

    def broadcast(self, entry: Entry) -> bool:
        """See :class:`hub.FanoutGroup`.

        Deliveries are not batched while tracing is on, since each has its own span, nor for an
        entry that a member has already replayed from the log, or a part of it.
        """
        offset = entry.cursor.offset
        first = entry.parts[0][0] if entry.parts else offset
        if first <= self._highest_offset or is_enabled():
            return False
        self.last_offset = self._highest_offset = offset
        frame = encode_entry_frame(entry)
        for socket, written in self._writer.write(frame):
            subscription = self._subscriptions[socket]
            socket.resume_write(frame, written)
            subscription.on_partial_write(entry)
        for subscription in self._unacknowledging:
            subscription.store_ack(entry.cursor)
            break  # they share the room's acknowledged position: one of them is enough
        return True

    def disband(self) -> None:
        """See :class:`hub.FanoutGroup`."""
        for subscription in tuple(self._subscriptions.values()):
            subscription.leave_group()
