"""What is not written to a subscriber yet, and the writing side of its connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from ...protocol.control import CloseCode, ControlFrame
from ..resources.byte_budget import BacklogBudget, Caller, Holder
from ..stores.base import Entry
from .hub import FanoutGroup
from .pieces import Queued, cut, fold_queue

MAX_BACKLOG_BYTES = 1024 * 1024
"""A subscriber with a larger backlog is closed as a slow consumer."""

SLOW_CONSUMER_TIMEOUT_S = 20.0
"""A subscriber whose socket stays blocked for this time is closed as a slow consumer, however
small its backlog is."""

MAX_BACKLOG_FRAMES = 1000
"""A subscriber with more unsent control frames is closed as a slow consumer."""

MAX_JOINED_BYTES = 16 * 1024
"""The notifications of a replay that are joined into one write, in bytes."""

_CHARGE_BYTES = 16 * 1024
_FOLD_BYTES = 64 * 1024  # a smaller backlog is folded only when it is written


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

    max_joined_bytes: int
    """How many bytes of notifications :meth:`send_joined` accepts; 0: only one notification.

    A peer that does not read pins a copy of them, which no budget counts.
    """

    def send_joined(self, entries: Sequence[Entry]) -> bool:
        """Write several notifications by one write. Return :attr:`is_writable` afterwards."""
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

    def join_group(self, group: FanoutGroup | None) -> FanoutGroup | None:
        """Share the writes of a room's fan-out group while :attr:`is_writable`.

        Before the sink blocks, it calls :meth:`Subscription.on_write_blocked`.

        Args:
            group: the group of the room; None: the sink creates one.

        Returns:
            The group that was joined; None if this connection cannot share writes.
        """
        ...

    def leave_group(self) -> None:
        """Stop sharing the writes of the group."""
        ...


class UnbatchedSink:
    """Base of sinks that write each notification alone, and never join a fan-out group."""

    max_joined_bytes = 0

    def send_joined(self, entries: Sequence[Entry]) -> bool:
        raise NotImplementedError

    def join_group(self, group: FanoutGroup | None) -> FanoutGroup | None:  # noqa: ARG002 - see above
        return None

    def leave_group(self) -> None:
        raise NotImplementedError

    def join_room_group(self, group: FanoutGroup | None, subscription: object) -> None:
        """See :class:`room_delivery.ConnectionSink`."""


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
    """What is not written to one subscriber yet, within bounds of bytes, frames and time.

    At a bound it calls :meth:`Holder.over_budget`, which closes a slow consumer. It is created on
    demand: most subscribers have none.

    Attributes:
        bytes: the size of the queued entries.
        closing_frame: the last control frame, sent after all others.
        is_after_replay: whether the subscriber has received everything before these entries.
    """

    __slots__ = (
        "_budget",
        "_caller",
        "_can_fold",
        "_charged",
        "_entries",
        "_fold_above",
        "_frames",
        "_has_timer",
        "_held_bytes",
        "_holder",
        "_timer",
        "bytes",
        "closing_frame",
        "is_after_replay",
    )  # fmt: skip

    def __init__(
        self,
        holder: Holder,
        budget: BacklogBudget,
        caller: Caller,
        *,
        is_after_replay: bool = False,
        has_timer: bool = True,
    ) -> None:
        """
        Args:
            holder: the subscriber.
            budget: bounds the backlogs of all subscribers.
            caller: charged for this one.
            has_timer: whether the backlog limits the time for which the socket stays blocked.
            is_after_replay: see above. Otherwise call :meth:`finish_replay` when that is so.
        """
        self._holder = holder
        self._budget = budget
        self._caller = caller
        self._entries: deque[tuple[Entry, float]] = deque()
        self.bytes = 0
        self._charged = 0  # bytes of the entries that are charged to the budget
        self._fold_above = _FOLD_BYTES
        self.is_after_replay = is_after_replay
        self._can_fold = False  # something with fold was added since the last time
        self._held_bytes = 0  # the same for a page that is being replayed
        self._frames: deque[ControlFrame] = deque()
        self._has_timer = has_timer
        self._timer: asyncio.TimerHandle | None = None  # while the socket is blocked
        self.closing_frame: ControlFrame | None = None

    def add(self, entry: Entry, published_at: float) -> None:
        """Queue an entry."""
        self._entries.append((entry, published_at))
        self.bytes += entry.held_bytes
        self._budget.add(entry)
        if entry.fold is not None:
            self._can_fold = True
            if self.bytes > self._fold_above:
                self.fold()
        if self.bytes > MAX_BACKLOG_BYTES:
            self._holder.over_budget()
        elif self.bytes > self._charged:
            # Charge in steps: most backlogs are written within one or two loop iterations.
            self._charged = self.bytes + _CHARGE_BYTES
            self._charge()

    def pop(self) -> tuple[Entry, float] | None:
        """Remove the oldest entry. Return it and the time of its publish; None if there is none.

        Pieces of a text that follow each other are removed together, as one entry.
        """
        if not self._entries:
            return None
        self.fold()
        entry, published_at = self._entries.popleft()
        self.bytes -= entry.held_bytes
        self._budget.remove(entry)
        return entry, published_at

    def finish_replay(self, offset: int) -> None:
        """Drop what was replayed: everything up to an offset. What is added later is after it."""
        self.is_after_replay = True
        rest = [
            (cut(entry, offset), at) for entry, at in self._entries if entry.cursor.offset > offset
        ]
        self._replace_entries(rest)

    def fold(self) -> None:
        """Join the pieces of texts, and drop what a later entry replaces.

        :meth:`add` does so whenever the backlog has doubled, so that a character is copied a few
        times only.
        """
        if not self._can_fold:
            return
        folded = fold_queue(self._entries, keeps_parts=not self.is_after_replay)
        if len(folded) < len(self._entries):
            self._replace_entries(folded)
        self._can_fold = False
        self._fold_above = min(max(_FOLD_BYTES, 2 * self.bytes), MAX_BACKLOG_BYTES)

    def _replace_entries(self, entries: Sequence[Queued]) -> None:
        for entry, _ in self._entries:
            self._budget.remove(entry)
        for entry, _ in entries:
            self._budget.add(entry)
        self._entries = deque(entries)
        self.bytes = sum([entry.held_bytes for entry, _ in entries])

    def add_frame(self, frame: ControlFrame) -> None:
        """Queue a control frame. Frames are sent before entries."""
        self._frames.append(frame)
        if len(self._frames) > MAX_BACKLOG_FRAMES:
            self._holder.over_budget()

    def write_frames(self, sink: Sink) -> None:
        """Write control frames until all are written or the socket blocks."""
        while sink.is_writable:
            if self._frames:
                sink.send_control(self._frames.popleft())
            elif self.closing_frame is not None:
                frame, self.closing_frame = self.closing_frame, None
                sink.send_control(frame)
            else:
                break

    @contextlib.contextmanager
    def holding(self, entries: Sequence[Entry]) -> Iterator[None]:
        """Charge entries of a page that is being replayed while its reader waits."""
        for entry in entries:
            self._budget.hold(entry)
        self._held_bytes = sum(entry.held_bytes for entry in entries)
        try:
            self._charge()
            yield
        finally:
            for entry in entries:
                self._budget.release(entry)
            self._held_bytes = 0
            self._charge()

    def start_timer(self) -> None:
        """Limit the time for which the socket stays blocked from now on."""
        if self._timer is None and self._has_timer:
            self._timer = asyncio.get_running_loop().call_later(
                SLOW_CONSUMER_TIMEOUT_S, self._holder.over_budget
            )

    def stop_timer(self) -> None:
        """Stop the timer: the peer has read something."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def clear(self) -> None:
        """Drop everything, and stop the timer."""
        self.stop_timer()
        for entry, _ in self._entries:
            self._budget.remove(entry)
        self._entries.clear()
        self._frames.clear()
        self.closing_frame = None
        if self._charged:
            self._charged = 0
            self._charge()

    def _charge(self) -> None:
        self._budget.charge(self._holder, self._caller, self._charged + self._held_bytes)
