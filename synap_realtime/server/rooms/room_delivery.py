"""How one room of a connection with many rooms shares the connection with the others.

See PROTOCOL.md, "Many rooms on one connection".
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from ...protocol.control import CLOSING, SUBSCRIBED, CloseCode, ControlFrame
from ...protocol.rooms import Room
from ..auth.claims import Claims
from ..metrics import Metrics
from ..resources.byte_budget import BacklogBudget, Caller, Holder
from ..stores.base import Entry, Store
from .backlog import Sink
from .delivery_state import DeliveryState
from .hub import FanoutGroup, Hub
from .replay import Replay
from .subscription import CountRead, Subscription

SLOW_READ_S = 1.0
"""A room whose log takes longer to read lets other rooms of the connection read theirs."""


class GroupMember(Protocol):
    """One room of a connection, in the fan-out group of the room."""

    @property
    def group(self) -> FanoutGroup | None:
        """The group; None after :meth:`leave`."""
        ...

    def leave(self) -> None:
        """Leave the group."""
        ...


class ConnectionSink(Sink, Protocol):
    """The writing side of a connection that may have many rooms."""

    def join_room_group(
        self, group: FanoutGroup | None, subscription: Subscription
    ) -> GroupMember | None:
        """Share the writes of one room's fan-out group, if there are many.

        Args:
            group: the group of the room; None: the sink creates one.
            subscription: of the room.

        Returns:
            The member of the group; None if this connection cannot share writes.
        """
        ...


class RoomWriter(Protocol):
    """The socket of the connection, as its rooms use it.

    Attributes:
        sink: the writing side of the connection.
    """

    sink: ConnectionSink

    @property
    def is_writable(self) -> bool:
        """Whether a notification can be written now."""
        ...

    def wait_writable(self, room: RoomSink) -> None:
        """Call ``on_writable`` of the room's subscription once the connection is writable."""
        ...

    def regroup(self, room: RoomSink) -> None:
        """Let the room join its fan-out group once the connection is writable."""
        ...

    def count_write(self) -> int:
        """Return the number of one more write of a room."""
        ...


class RoomHost(Protocol):
    """The connection, as its rooms use it.

    Attributes:
        address: of the peer.
        close_code: why it was closed; None while it is open.
        is_draining: whether it accepts nothing new.
        replays: the permits of the rooms that read their logs.
        transport: ``websocket`` or ``sse``.
        writer: writes to the socket.
    """

    address: str | None
    close_code: CloseCode | None
    is_draining: bool
    replays: asyncio.Semaphore
    transport: str

    @property
    def writer(self) -> RoomWriter: ...

    @property
    def ends_with_room(self) -> bool:
        """Whether the connection is an event stream, which ends with its first room."""
        ...

    def moved(self, room: Room, cursor: str) -> None:
        """Note that everything in a room of a stream up to a cursor was written."""
        ...

    def bound_backlog(self) -> None:
        """End rooms while the backlog of the connection is too large."""
        ...

    def send_control(self, frame: ControlFrame) -> None:
        """Send a control frame as soon as the socket is writable."""
        ...

    def on_room_closed(self, room: RoomSink, code: CloseCode) -> None:
        """Called when the server has closed the subscription of a room."""
        ...


class ConnectionBacklog(BacklogBudget):
    """The backlogs of one connection's rooms, which are a part of those of all subscribers.

    Attributes:
        bytes: of the live notifications that wait for this connection. What its replays hold does
            not count: it is bounded by their number.
    """

    def __init__(self, total: BacklogBudget) -> None:
        """
        Args:
            total: bounds the backlogs of all subscribers.
        """
        self.bytes = 0
        self._total = total

    def add(self, entry: Entry) -> None:
        self.bytes += entry.held_bytes
        self._total.add(entry)

    def remove(self, entry: Entry) -> None:
        self.bytes -= entry.held_bytes
        self._total.remove(entry)

    def hold(self, entry: Entry) -> None:
        self._total.hold(entry)

    def release(self, entry: Entry) -> None:
        self._total.release(entry)

    def charge(self, subscriber: Holder, caller: Caller, size: int) -> None:
        self._total.charge(subscriber, caller, size)


class RoomSubscription(Subscription):
    """A subscription whose connection may be blocked by another room."""

    __slots__ = ("_host",)

    has_timer = False  # the connection has one for all rooms

    def __init__(
        self,
        host: RoomHost,
        store: Store,
        hub: Hub,
        room: Room,
        metrics: Metrics,
        *,
        device: str | None,
        acknowledges: bool,
        budget: ConnectionBacklog,
        claims: Claims,
        address: str | None,
        count_read: CountRead,
    ) -> None:
        super().__init__(
            store, hub, room, metrics,
            device=device, acknowledges=acknowledges, budget=budget, claims=claims,
            address=address, count_read=count_read,
        )  # fmt: skip
        self._host = host

    def deliver(self, entry: Entry, published_at: float) -> bool:
        # A room that had nothing to write does not know yet that the socket is blocked.
        if self.state is DeliveryState.LIVE and not self._sink.is_writable:
            self.on_write_blocked()
        is_accepted = super().deliver(entry, published_at)
        self._host.bound_backlog()
        return is_accepted and self.state is not DeliveryState.CLOSED

    async def _replay(self, replay: Replay) -> None:
        bounded = BoundedReplay(replay, self._host.replays)
        try:
            await super()._replay(bounded)
        finally:
            bounded.release()


class BoundedReplay(Replay):
    """A replay that holds a page in memory only while it has one of a few permits.

    It waits for a permit before each page, so the replays of a connection alternate. A log that
    does not answer keeps no permit, so that it delays no other room.
    """

    __slots__ = ("_has_permit", "_permits")

    def __init__(self, replay: Replay, permits: asyncio.Semaphore) -> None:
        """
        Args:
            replay: the replay, which has read nothing yet.
            permits: those of the connection.
        """
        for name in Replay.__slots__:
            setattr(self, name, getattr(replay, name))
        self._permits = permits
        self._has_permit = False

    async def read_page(self) -> Sequence[Entry]:
        self.release()
        await self._acquire()
        timer = asyncio.get_running_loop().call_later(SLOW_READ_S, self.release)
        try:
            page = await super().read_page()
        finally:
            timer.cancel()
        if not self._has_permit:
            await self._acquire()
        return page

    async def _acquire(self) -> None:
        await self._permits.acquire()
        self._has_permit = True

    def release(self) -> None:
        """Give the permit back, if there is one: the page is written."""
        if self._has_permit:
            self._has_permit = False
            self._permits.release()


class RoomSink:
    """The sink of one room's subscription: it writes to the connection.

    Attributes:
        last_write: the number of its last write among those of all rooms.
        max_joined_bytes: see :class:`Sink`.
        resubscribe_after_ms: when a client whose room is closed should subscribe again; None: it
            chooses the time.
        room: the room.
        subscription: set once it is created.
    """

    __slots__ = (
        "_host",
        "_member",
        "_writer",
        "last_write",
        "max_joined_bytes",
        "resubscribe_after_ms",
        "room",
        "subscription",
    )  # fmt: skip

    subscription: Subscription

    def __init__(self, host: RoomHost, room: Room) -> None:
        self.room = room
        self.last_write = 0
        # Each event of a stream has an id of its own.
        self.max_joined_bytes = 0 if host.ends_with_room else host.writer.sink.max_joined_bytes
        self.resubscribe_after_ms: int | None = None
        self._host = host
        self._writer = host.writer
        self._member: GroupMember | None = None

    @property
    def is_writable(self) -> bool:
        if self._writer.is_writable:
            return True
        self._writer.wait_writable(self)
        return False

    def send(self, entry: Entry) -> bool:
        self._on_write(entry)
        self._writer.sink.send(entry)
        return self.is_writable

    def send_joined(self, entries: Sequence[Entry]) -> bool:
        self._on_write(entries[-1])
        self._writer.sink.send_joined(entries)
        return self.is_writable

    def send_batched(self, entry: Entry) -> bool:
        self._on_write(entry)
        self._writer.sink.send_batched(entry)
        return self.is_writable

    def send_control(self, frame: ControlFrame) -> None:
        if frame.type == CLOSING:
            if self._host.is_draining:
                return  # the connection has sent its own
            self.resubscribe_after_ms = frame.data["reconnectAfterMs"]
        elif frame.type == SUBSCRIBED and self._host.ends_with_room:
            self._host.moved(self.room, frame.data["cursor"])
        self._host.send_control(frame.in_room(self.room))

    def close(self, code: CloseCode) -> None:
        self._host.on_room_closed(self, code)

    def join_group(self, group: FanoutGroup | None) -> FanoutGroup | None:
        if not self._writer.is_writable:
            self._writer.regroup(self)
            return None
        self._member = self._writer.sink.join_room_group(group, self.subscription)
        return None if self._member is None else self._member.group

    def leave_group(self) -> None:
        member, self._member = self._member, None
        assert member is not None  # noqa: S101 - it has joined one
        member.leave()
        if not self._writer.is_writable:
            self._writer.regroup(self)

    def _on_write(self, entry: Entry) -> None:
        self.last_write = self._writer.count_write()
        if self._host.ends_with_room:
            self._host.moved(self.room, f"{entry.cursor.epoch}-{entry.cursor.offset}")
