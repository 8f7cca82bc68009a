"""The state machine of one subscription, without I/O: replay the log, then deliver live.

Every notification is delivered once, without a gap.

See PROTOCOL.md, "Subscribing".
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import ClassVar

from ...protocol.control import CLOSING, SUBSCRIBED, CloseCode, ControlFrame
from ...protocol.cursor import Cursor
from ...protocol.rooms import Room, is_request_room
from ...tracing import is_enabled
from ..auth.claims import Claims
from ..metrics import Metrics
from ..resources.byte_budget import BacklogBudget, caller_of
from ..stores.base import Entry, Store
from ..tracing import start_delivery_span
from .backlog import NULL_SINK, Backlog, Sink
from .delivery_state import NEXT_STATES, DeliveryState
from .hub import FanoutGroup, Hub
from .pieces import PieceNumbers, cut
from .replay import UNKNOWN_POSITION, Replay, find_start, slices

_MIN_RESUME_MS, _RESUME_SPREAD_MS = 50, 1000
"""When the subscribers of a room resume after a gap, so that they do not all return at once."""

CountRead = Callable[[Claims | None, str | None, int], object]
"""Counts bytes that a client reads: its claims, its address, and the bytes."""

# Global names are faster than attributes, at each delivery.
_JOINING, _REPLAYING, _CATCHING_UP, _LIVE, _BLOCKED, _DRAINING, _CLOSED = DeliveryState


class Subscription:
    """A connection's subscription to one room.

    It subscribes to the hub before it reads the log, so that no entry is missed in between. During
    the replay, live entries are not buffered: they are in the log, and the replay continues until
    it has reached the end. After the replay no task runs for the subscription: the publisher writes
    each entry directly, and only a peer that does not read has a backlog. In a large room, the
    subscriptions without a backlog share one write, as a fan-out group.

    Attributes:
        acknowledges: the client acknowledges what it has received.
        claims: of the client; None: its backlog is charged to its address.
        state: changed by the methods of this class only.
        close_code: why it was closed; None while it is open, and if the client has ended it.
        reason: the same as readable text; else empty.
    """

    __slots__ = (
        "_address",
        "_backlog",
        "_budget",
        "_count_read",
        "_device",
        "_ended",
        "_epoch",
        "_group",
        "_has_joined",
        "_hub",
        "_is_replaying",
        "_last_seen",
        "_metrics",
        "_numbers",
        "_replay_wakeup",
        "_room",
        "_sent_offset",
        "_sink",
        "_store",
        "_unacked",
        "acknowledges",
        "claims",
        "close_code",
        "reason",
        "state",
    )  # fmt: skip

    has_timer: ClassVar[bool] = True
    """Whether the subscription limits the time for which its socket stays blocked."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        room: Room,
        metrics: Metrics,
        *,
        device: str | None = None,
        acknowledges: bool = False,
        budget: BacklogBudget | None = None,
        claims: Claims | None = None,
        address: str | None = None,
        count_read: CountRead = lambda *_: None,
    ) -> None:
        """
        Args:
            device: the user's device that subscribes: each device has its own position.
            acknowledges: the client acknowledges what it has received (``synap.v1``). Otherwise
                a notification is acknowledged when it is written.
            budget: bounds the backlogs of all subscribers; default: unbounded.
            claims, address: of the client, who is charged for the backlog of this subscription.
            count_read: called with them and with the bytes of each page that is replayed.
        """
        self.state = _JOINING
        self.close_code: CloseCode | None = None
        self.reason = ""
        self._budget = budget or BacklogBudget(0, 0)
        self.claims = claims
        self._address = address
        self._count_read = count_read
        self._store = store
        self._hub = hub
        self._room = room
        self._metrics = metrics
        # Every subscriber of a request's room starts at the beginning, so no position is stored.
        self._device = None if is_request_room(room) else device
        self.acknowledges = acknowledges
        self._sink: Sink = NULL_SINK
        self._backlog: Backlog | None = None
        self._last_seen = 0
        self._epoch = ""  # of what was written
        self._sent_offset = 0  # the highest offset that was written outside of a fan-out group
        self._unacked: Cursor | None = None  # written, but still in a send buffer
        self._numbers: PieceNumbers | None = None  # once a text was replayed
        self._group: FanoutGroup | None = None
        self._is_replaying = True  # until the replay is complete
        self._replay_wakeup: asyncio.Event | None = None  # while the replay waits for the socket
        self._ended: asyncio.Event | None = None  # during wait_closed()
        self._has_joined = False  # it counts as a subscriber in the store

    @property
    def last_offset(self) -> int:
        """The highest offset that was written to the client."""
        group = self._group
        return self._sent_offset if group is None else max(self._sent_offset, group.last_offset)

    @property
    def backlog_bytes(self) -> int:
        """The bytes of the live notifications that are not written yet."""
        return 0 if self._backlog is None else self._backlog.bytes

    def fold_backlog(self) -> None:
        """Join the pieces of texts that are not written yet."""
        if self._backlog is not None:
            self._backlog.fold()

    def deliver(self, entry: Entry, published_at: float) -> bool:
        """See :class:`hub.Subscriber`."""
        if self.state is _LIVE:
            offset = entry.cursor.offset
            if offset <= self._sent_offset:
                return True
            if entry.fold is not None:
                entry = self._number(cut(entry, self._sent_offset))
            if not self.acknowledges or is_enabled():
                is_writable = self._send(entry)
            else:
                self._sent_offset = offset
                is_writable = self._sink.send_batched(entry)
            if not is_writable:
                self._flush_backlog()
            return True
        if self.state is _DRAINING or self.state is _CLOSED:
            return False
        self._last_seen = entry.cursor.offset
        if self.state is _BLOCKED or self.state is _CATCHING_UP:
            if not self._is_replaying:
                if entry.cursor.offset <= self._sent_offset:  # it was replayed
                    return True
                entry = cut(entry, self._sent_offset)
            self._ensure_backlog().add(entry, published_at)
            return self.state is not _CLOSED  # its backlog may be too large
        return True

    def join_group(self) -> None:
        """See :class:`hub.Subscriber`.

        A subscription that numbers pieces stays ungrouped. So does one without acknowledgements
        that has a device: its own position has to be stored for each entry.
        """
        if (
            self.state is _LIVE
            and self._group is None
            and not self._numbers
            and (self.acknowledges or self._device is None)
            and not is_enabled()
        ):
            self._group = self._hub.join_group(self._room, self, self._sink.join_group)

    def leave_group(self) -> None:
        """Leave the fan-out group, if the subscription is in one."""
        if self._group is not None:
            self._sent_offset = self.last_offset
            self._group = None
            self._sink.leave_group()
            self._hub.leave_group(self._room, self)

    def on_write_blocked(self) -> None:
        """Stop writing: the socket is blocked or closed."""
        if self.state is _LIVE:
            self._block()

    def on_partial_write(self, entry: Entry) -> None:
        """Note that the fan-out group wrote only a part of an entry; the rest is buffered."""
        if not self.acknowledges:
            self._unacked = entry.cursor
            if self.state is _LIVE:
                self._store_pending_ack()

    def over_budget(self) -> None:
        """See :class:`byte_budget.Holder`. A bound of the backlog is exceeded."""
        self.close(CloseCode.SLOW_CONSUMER)

    def store_ack(self, position: Cursor) -> None:
        """Store that the client has received everything up to a position."""
        self._store.ack(self._room, position, self._device)

    def acknowledge(self, cursor: Cursor) -> bool:
        """Store a cursor that the client has acknowledged.

        Returns:
            False, if nothing up to this cursor was written to the client.
        """
        if cursor.epoch != self._epoch or cursor.offset > self.last_offset:
            return False
        self.store_ack(cursor)
        return True

    def send_control(self, frame: ControlFrame) -> None:
        """Send a control frame as soon as the socket is writable, between notifications."""
        if self.state is not _CLOSED:
            self._ensure_backlog().add_frame(frame)
            self._resume()

    def drain(self, reconnect_after_ms: int) -> None:
        """Accept no new entries, send a closing frame and the backlog, then close.

        Args:
            reconnect_after_ms: when the client should reconnect, in milliseconds.
        """
        if self.state is not _DRAINING and self.state is not _CLOSED:
            self._enter(_DRAINING)
            self._ensure_backlog().closing_frame = ControlFrame(
                CLOSING,
                {"code": int(CloseCode.DRAINING), "reconnectAfterMs": reconnect_after_ms},
            )
            self._resume()

    def on_gap(self, position: Cursor) -> None:
        """See :class:`hub.Subscriber`.

        A client that has received everything so far continues at the position. Another one
        reconnects, because a part of the previous log is still on the way to it.
        """
        if self.state is not _LIVE:
            self.drain(_MIN_RESUME_MS + secrets.randbelow(_RESUME_SPREAD_MS))
            return
        self.leave_group()
        self._epoch, self._sent_offset = position.epoch, position.offset
        if not self.acknowledges:
            self._unacked = position
        self._metrics.replay_finished(recovered=False)
        self.send_control(self._subscribed_frame(position, replayed=0, recovered=False))
        if self.state is _LIVE:
            self._store_pending_ack()

    def close(self, code: CloseCode, reason: str | None = None) -> None:
        """Close the subscription. The first code wins; pending writes are still sent.

        Args:
            code: the close code.
            reason: sent to the client and logged; default: the code's own. It must not contain a
                secret.
        """
        if self.state is not _CLOSED:
            self._enter(_CLOSED)
            self.close_code = code
            self.reason = reason or code.reason
            self._drop_backlog()
            if self._replay_wakeup is not None:
                self._replay_wakeup.set()
            if self._ended is not None:
                self._ended.set()
            self._sink.close(code)

    async def wait_closed(self) -> CloseCode:
        """Wait until the subscription is closed. Return its close code."""
        if self._ended is None:
            self._ended = asyncio.Event()
        while self.close_code is None:
            await self._ended.wait()
        return self.close_code

    async def run(self, after: str | None, sink: Sink) -> None:
        """Replay the log after a position, then deliver live.

        Returns when the replay is complete or the subscription was closed. Call :meth:`detach`
        when the connection has ended. If the position is no longer in the log, everything that is
        retained is replayed.

        Args:
            after: a cursor, ``earliest``, ``latest``, :data:`UNKNOWN_POSITION`, or None for the
                default of the room.
            sink: receives the notifications and control frames.

        Raises:
            InvalidArgumentError: ``after`` is not a position.
            StoreUnavailableError: the log cannot be read now.
        """
        if self.state is _CLOSED:  # revoked while the authorizer ran
            if self.close_code is not None:
                sink.close(self.close_code)
            return
        self._sink = sink
        await self._store.join(self._room)
        if self.state is _CLOSED:
            self._store.leave(self._room)
            return
        self._has_joined = True
        # After the store, so that a publish counts each subscriber that the room reports.
        self._hub.subscribe(self._room, self)
        if self.state is _JOINING:  # else it drains already
            self._enter(_REPLAYING)
        position = await find_start(self._store, self._room, self._device, after)
        if self._device is not None:
            head = await self._store.head(self._room)
            # A position beyond the log is unknown: the room is replayed from the start.
            known = position if position.offset <= head.offset else self._store.earliest()
            self._store.register_device(self._room, self._device, known)
        replay = Replay(
            self._store,
            self._room,
            position,
            recovered=after != UNKNOWN_POSITION,
            count_read=self._count_page,
        )
        await self._replay(replay)
        self._is_replaying = False
        self._replay_wakeup = None
        if self._backlog is not None:
            self._backlog.finish_replay(self._sent_offset)
        self._flush_backlog()

    def on_writable(self) -> None:
        """Continue writing: the peer has read what was written."""
        self._store_pending_ack()
        if self._backlog is not None:
            self._backlog.stop_timer()
        self._resume()

    def detach(self) -> None:
        """Unsubscribe and write nothing more. The connection has ended."""
        if self.state is not _CLOSED:
            self._enter(_CLOSED)
        self._drop_backlog()
        self._hub.unsubscribe(self._room, self)
        if self._has_joined:
            self._has_joined = False
            self._store.leave(self._room)
        self._sink = NULL_SINK

    def _enter(self, state: DeliveryState) -> None:
        """Change the state. A subscription that is not live is in no fan-out group.

        Raises:
            RuntimeError: the state cannot follow the present one.
        """
        if state not in NEXT_STATES[self.state]:
            raise RuntimeError(f"a subscription cannot become {state.name} from {self.state.name}")
        self.state = state
        if self._group is not None:  # it was live until now
            self.leave_group()

    def _resume(self) -> None:
        if not self._is_replaying:
            self._flush_backlog()
        elif self._replay_wakeup is not None:
            self._replay_wakeup.set()

    async def _replay(self, replay: Replay) -> None:
        """Write the log until live entries can follow it, or until closed."""
        is_catching_up = False
        while self.state is not _CLOSED:
            newest = self._last_seen
            page = await replay.read_page()
            if page:
                self._epoch = page[0].cursor.epoch
            for first, end in slices(page, self._sink.max_joined_bytes):
                if not await self._is_ready(page, first):
                    return
                self._send_replayed(page[first:end])
            if not await self._is_ready():
                return
            if not replay.is_at_end:
                await asyncio.sleep(0)  # a long replay must not block the event loop
                continue
            # From here on live entries go to the backlog. Entries that were published since the
            # page was read are in the log: one more page suffices, however busy the room is.
            if not is_catching_up:
                is_catching_up = True
                if self.state is _REPLAYING:
                    self._enter(_CATCHING_UP)
                if newest != self._last_seen:
                    continue
            position = replay.position
            self._epoch, self._sent_offset = position.epoch, position.offset
            self._metrics.replay_finished(recovered=replay.recovered)
            self._sink.send_control(
                self._subscribed_frame(position, replay.count, recovered=replay.recovered)
            )
            return

    def _subscribed_frame(
        self, position: Cursor, replayed: int, *, recovered: bool
    ) -> ControlFrame:
        data = {
            "room": self._room, "cursor": str(position), "replayed": replayed,
            "recovered": recovered,
        }  # fmt: skip
        return ControlFrame(SUBSCRIBED, data)

    def _count_page(self, size: int) -> None:
        self._count_read(self.claims, self._address, size)

    async def _is_ready(self, page: Sequence[Entry] = (), first: int = 0) -> bool:
        """Send pending control frames and wait until the socket is writable.

        Args:
            page: the page that is being replayed.
            first: index of the first entry of the page that is not written yet. From there on the
                entries are charged to the budget during the wait.

        Returns:
            False if the subscription was closed.
        """
        while self.state is not _CLOSED:
            if self._backlog is not None:
                self._backlog.write_frames(self._sink)
            if self._sink.is_writable:
                return True
            self._replay_wakeup = asyncio.Event()
            backlog = self._ensure_backlog()
            backlog.start_timer()
            with backlog.holding(page[first:]):
                await self._replay_wakeup.wait()
        return False

    def _flush_backlog(self) -> None:
        """Write the backlog until it is empty or the socket blocks."""
        while self.state is not _CLOSED:
            if self._backlog is not None:
                self._backlog.write_frames(self._sink)
            if not self._sink.is_writable:
                self._block()
                return
            queued = None if self._backlog is None else self._backlog.pop()
            if queued is not None:
                entry, published_at = queued
                if entry.fold is not None:
                    entry = self._number(entry)
                    if entry.parts:  # joined in this backlog, perhaps
                        self._count_from(entry)
                self._send(entry)
                self._metrics.delivered_from_backlog(published_at)
            elif self.state is _DRAINING:
                self.close(CloseCode.DRAINING)
            else:
                self._drop_backlog()
                if self.state is not _LIVE:
                    self._enter(_LIVE)
                self.join_group()
                return

    def _block(self) -> None:
        """Wait until the peer reads, for a limited time."""
        if self.state is not _BLOCKED and self.state is not _DRAINING:
            self._enter(_BLOCKED)
        self._ensure_backlog().start_timer()

    def _send(self, entry: Entry) -> bool:
        """Write an entry. Return whether the socket is still writable."""
        if is_enabled():
            span = start_delivery_span(self._room, entry)
            is_writable = self._sink.send(entry)
            span.end()
        else:
            is_writable = self._sink.send(entry)
        self._on_sent(entry, is_writable=is_writable)
        return is_writable

    def _send_replayed(self, entries: Sequence[Entry]) -> None:
        """Write entries of the log by one write; with tracing, each alone in a span of its own."""
        for entry in entries:
            if entry.fold is not None:
                self._count_from(entry)
        if is_enabled() or len(entries) == 1:
            for entry in entries:
                self._send(entry)
        else:
            self._on_sent(entries[-1], is_writable=self._sink.send_joined(entries))
        self._metrics.replayed(len(entries))

    def _number(self, entry: Entry) -> Entry:
        """See :meth:`PieceNumbers.number`."""
        return entry if self._numbers is None else self._numbers.number(entry)

    def _count_from(self, entry: Entry) -> None:
        """See :meth:`PieceNumbers.count_from`."""
        if self._numbers is None:
            self._numbers = PieceNumbers()
        self._numbers.count_from(entry)

    def _on_sent(self, entry: Entry, *, is_writable: bool) -> None:
        """Note that everything up to an entry was written."""
        self._sent_offset = entry.cursor.offset
        if not self.acknowledges:
            self._unacked = entry.cursor
            if is_writable:
                self._store_pending_ack()

    def _store_pending_ack(self) -> None:
        if self._unacked is not None:
            self.store_ack(self._unacked)
            self._unacked = None

    def _ensure_backlog(self) -> Backlog:
        if self._backlog is None:
            caller = caller_of(self.claims, self._address)
            self._backlog = Backlog(
                self, self._budget, caller,
                is_after_replay=not self._is_replaying, has_timer=self.has_timer,
            )  # fmt: skip
        return self._backlog

    def _drop_backlog(self) -> None:
        backlog, self._backlog = self._backlog, None
        if backlog is not None:
            backlog.clear()
