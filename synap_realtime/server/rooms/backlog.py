"""What is not written to a subscriber yet, and the writing side of its connection."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from ...protocol.control import CloseCode, ControlFrame
from ..stores.base import Entry
from .hub import FanoutGroup

MAX_BACKLOG_BYTES = 1024 * 1024
"""A subscriber with a larger backlog is closed as a slow consumer."""

SLOW_CONSUMER_TIMEOUT_S = 20.0
"""A subscriber whose socket stays blocked for this time is closed as a slow consumer, however
small its backlog is."""

MAX_BACKLOG_FRAMES = 1000
"""A subscriber with more unsent control frames is closed as a slow consumer."""

CHARGE_BYTES = 16 * 1024


class Sink(Protocol):
    """The writing side of one connection. Its methods never block and never raise."""

    @property
    def is_writable(self) -> bool:
        """Whether the socket accepts more now.

        When it becomes writable again, the sink calls :meth:`Subscription.on_writable`.
        """
        ...

    def send(self, entry: Entry) -> bool:
        """Write a notification. Return :attr:`is_writable` afterwards."""
        ...

    def send_batched(self, entry: Entry) -> bool:
        """Write a notification in the write batch of this event-loop iteration.

        Returns:
            :attr:`is_writable`, as far as it is known before the flush. If the flush blocks, the
            sink calls :meth:`Subscription.on_write_blocked`.
        """
        ...

    def send_control(self, frame: ControlFrame) -> None:
        """Write a control frame, if the client asked for control frames."""
        ...

    def close(self, code: CloseCode) -> None:
        """Close the connection after the pending writes."""
        ...

    @property
    def can_group(self) -> bool:
        """Whether the sink can join a fan-out group."""
        ...

    def create_group(self) -> FanoutGroup:
        """Return a new fan-out group for sinks of this kind. Requires :attr:`can_group`."""
        ...

    def join_group(self, group: FanoutGroup) -> None:
        """Share the writes of a group while :attr:`is_writable`.

        Before the sink blocks, it calls :meth:`Subscription.on_write_blocked`.
        """
        ...

    def leave_group(self) -> None:
        """Stop sharing the writes of the group."""
        ...


class UnbatchedSink:
    """Base of sinks that never join a fan-out group."""

    can_group = False

    def create_group(self) -> FanoutGroup:
        raise NotImplementedError

    def join_group(self, group: FanoutGroup) -> None:
        raise NotImplementedError

    def leave_group(self) -> None:
        raise NotImplementedError


class NullSink(UnbatchedSink):
    """The sink of a subscription that has not started or has ended."""

    is_writable = False

    def send(self, entry: Entry) -> bool:
        raise NotImplementedError

    send_batched = send

    def send_control(self, frame: ControlFrame) -> None: ...

    def close(self, code: CloseCode) -> None: ...


NULL_SINK = NullSink()


class Backlog:
    """What is not written to one subscriber yet. Created on demand: most subscribers have none."""

    __slots__ = ("bytes", "charged", "closing_frame", "entries", "frames")

    def __init__(self) -> None:
        self.charged = 0  # bytes that are charged to the budget
        self.entries: deque[tuple[Entry, float]] = deque()
        self.bytes = 0
        self.frames: deque[ControlFrame] = deque()
        self.closing_frame: ControlFrame | None = None
