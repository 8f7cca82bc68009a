"""The socket of a connection, which its rooms share.

See PROTOCOL.md, "Many rooms on one connection".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from operator import attrgetter

from ...protocol.control import CloseCode, ControlFrame
from .backlog import NULL_SINK, SLOW_CONSUMER_TIMEOUT_S
from .room_delivery import ConnectionSink, RoomSink

MAX_PENDING_FRAMES = 1000
"""A connection with more unsent control frames is closed as a slow consumer."""


class ConnectionWriter:
    """Writes control frames, and lets the rooms write in turn while the socket is not blocked.

    The rooms share the timer of a slow consumer: a room that waits for its turn is not slow while
    the peer reads what the others have written.

    Attributes:
        sink: the writing side of the connection.
    """

    __slots__ = ("_close", "_frames", "_slow_timer", "_ungrouped", "_waiting", "_writes", "sink")

    def __init__(self, close: Callable[[CloseCode], None]) -> None:
        """
        Args:
            close: closes the connection of a slow consumer.
        """
        self.sink: ConnectionSink = NULL_SINK
        self._close = close
        # Mostly empty: an empty deque takes 0.7 KB, and an empty set four times as much as a dict.
        self._frames: list[ControlFrame] = []  # until the sink is writable
        self._waiting: dict[RoomSink, None] = {}  # they found the sink blocked
        self._ungrouped: dict[RoomSink, None] = {}  # they left their fan-out groups when it blocked
        self._writes = 0
        self._slow_timer: asyncio.TimerHandle | None = None  # while the socket is blocked

    @property
    def is_writable(self) -> bool:
        """Whether a notification can be written now. Control frames are written before."""
        return not self._frames and self.sink.is_writable

    @property
    def has_pending_frames(self) -> bool:
        """Whether control frames wait until the socket is writable."""
        return bool(self._frames)

    def wait_writable(self, room: RoomSink) -> None:
        """Call ``on_writable`` of the room's subscription once the connection is writable."""
        self._waiting[room] = None
        self.on_write_blocked()

    def regroup(self, room: RoomSink) -> None:
        """Let the room join its fan-out group again once the connection is writable."""
        self._ungrouped[room] = None

    def forget(self, room: RoomSink) -> None:
        """Let a room that has ended wait for nothing."""
        self._waiting.pop(room, None)
        self._ungrouped.pop(room, None)

    def count_write(self) -> int:
        """Return the number of one more write of a room."""
        self._writes += 1
        return self._writes

    def send_control(self, frame: ControlFrame) -> None:
        """Send a control frame as soon as the socket is writable, between notifications."""
        if self.is_writable:
            self.sink.send_control(frame)
            return
        self._frames.append(frame)
        self.on_write_blocked()
        if len(self._frames) > MAX_PENDING_FRAMES:
            self._close(CloseCode.SLOW_CONSUMER)

    def on_write_blocked(self) -> None:
        """Limit the time for which the socket stays blocked from now on."""
        if self._slow_timer is None and self.sink is not NULL_SINK:
            loop = asyncio.get_running_loop()
            self._slow_timer = loop.call_later(
                SLOW_CONSUMER_TIMEOUT_S, self._close, CloseCode.SLOW_CONSUMER
            )

    def on_writable(self) -> None:
        """Write control frames, then let the rooms write that wait, the longest waiting first."""
        self._stop_timer()
        while self._frames and self.sink.is_writable:
            self.sink.send_control(self._frames.pop(0))
        for room in sorted(self._waiting, key=attrgetter("last_write")):
            if not self.is_writable:
                break
            self._waiting.pop(room, None)
            room.subscription.on_writable()
        if self.is_writable:
            ungrouped, self._ungrouped = self._ungrouped, {}
            for room in ungrouped:
                room.subscription.join_group()
        elif self._frames or self._waiting:
            self.on_write_blocked()

    def stop(self) -> None:
        """Drop everything that waits, and stop the timer."""
        self._stop_timer()
        self._frames.clear()
        self._waiting.clear()
        self._ungrouped.clear()

    def _stop_timer(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None
