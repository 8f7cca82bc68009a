"""The state machine of one subscription, without I/O: replay the log, then deliver live.

Every notification is delivered once, without a gap.

See PROTOCOL.md, "Subscribing".
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence

from ...errors import InvalidArgumentError
from ...protocol.control import (
    CLOSING,
    MAX_CLIENT_TEXT_BYTES,
    PING,
    PONG,
    SUBSCRIBED,
    Ack,
    Authenticate,
    CloseCode,
    ControlFrame,
    parse_action,
)
from ...protocol.cursor import Cursor, parse_cursor
from ...protocol.rooms import Room, is_request_room
from ...tracing import is_enabled
from ..metrics import Metrics
from ..resources.byte_budget import NO_CALLER, BacklogBudget, Caller
from ..stores.base import Entry, Store
from ..tracing import start_delivery_span
from .backlog import (
    CHARGE_BYTES,
    MAX_BACKLOG_BYTES,
    MAX_BACKLOG_FRAMES,
    NULL_SINK,
    SLOW_CONSUMER_TIMEOUT_S,
    Backlog,
    Sink,
)
from .hub import FanoutGroup, Hub

_REPLAY_BYTES = 1024  # charged per replayed notification beside its size: the cost of a write

UNKNOWN_POSITION = "lost"
"""A position that is in no log: replays everything that is retained, with ``recovered: false``."""

# Rate limits identify a subscription by a number. Its id() is reused after it has ended, and the
# next client would be closed for messages of the previous one.
_numbers = itertools.count()

# Entries read in one page. A stalled peer keeps a page in memory, so a page is bounded in bytes.
_PAGE, _FIRST_PAGE, _PAGE_BYTES = 16, 4, 128 * 1024


def ignore_token(_: str) -> None:
    """Ignore a token that a client sends. The default of :attr:`Subscription.on_token`."""


class Subscription:
    """A connection's subscription to one room.

    It subscribes to the hub before it reads the log, so that no entry is missed in between. During
    the replay, live entries are not buffered: they are in the log, and the replay continues until
    it has reached the end. After the replay no task runs for the subscription: the publisher writes
    each entry directly, and only a peer that does not read has a backlog. In a large room, the
    subscriptions without a backlog share one write, as a fan-out group.

    Attributes:
        acknowledges: the client acknowledges what it has received.
        reason: why it was closed, as readable text; empty while it is open.
        ignored: the number of client messages that were neither valid nor an error.
        on_token: called with each token that the client sends.
    """

    __slots__ = (
        "_allow_message",
        "_backlog",
        "_budget",
        "_caller",
        "_can_write",
        "_closing",
        "_count_read",
        "_device",
        "_draining",
        "_ended",
        "_group",
        "_hub",
        "_is_following",
        "_last_seen",
        "_live",
        "_metrics",
        "_number",
        "_room",
        "_sent_offset",
        "_sink",
        "_slow_timer",
        "_store",
        "_unacked",
        "_writable_event",
        "acknowledges",
        "ignored",
        "on_token",
        "reason",
    )  # fmt: skip

    def __init__(
        self,
        store: Store,
        hub: Hub,
        room: Room,
        metrics: Metrics,
        *,
        device: str | None = None,
        acknowledges: bool = False,
        allow_message: Callable[[int], bool] = lambda _: True,
        budget: BacklogBudget | None = None,
        caller: Caller = NO_CALLER,
        count_read: Callable[[int], None] = lambda _: None,
    ) -> None:
        """
        Args:
            device: the user's device that subscribes: each device has its own position.
            acknowledges: the client acknowledges what it has received (``synap.v1``). Otherwise
                a notification is acknowledged when it is written.
            allow_message: called with the number of the subscription; returns whether its client
                is within its rate limit.
            budget: bounds the backlogs of all subscribers; default: unbounded.
            caller: charged for the backlog of this subscription.
            count_read: called with the bytes of each page that is replayed.
        """
        self.ignored = 0
        self.reason = ""
        self.on_token: Callable[[str], None] = ignore_token
        self._allow_message = allow_message
        self._number = next(_numbers)
        self._budget = budget or BacklogBudget(0, 0)
        self._caller = caller
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
        self._sent_offset = 0  # the highest offset that was written outside of a fan-out group
        self._unacked: Cursor | None = None  # written, but still in a send buffer
        self._live = False  # live entries go to the backlog
        self._is_following = False  # the replay is complete: the backlog is written
        self._can_write = False  # a live entry can be written immediately
        self._group: FanoutGroup | None = None
        self._draining = False
        self._closing: CloseCode | None = None
        self._writable_event: asyncio.Event | None = None  # during the replay
        self._ended: asyncio.Event | None = None  # during wait_closed()
        self._slow_timer: asyncio.TimerHandle | None = None  # while the socket is blocked

    @property
    def closing(self) -> CloseCode | None:
        """The code that it was closed with; None while it is open."""
        return self._closing

    @property
    def last_offset(self) -> int:
        """The highest offset that was written to the client."""
        group = self._group
        return self._sent_offset if group is None else max(self._sent_offset, group.last_offset)

    def deliver(self, entry: Entry, published_at: float) -> bool:
        """See :class:`hub.Subscriber`."""
        if self._can_write:
            offset = entry.cursor.offset
            if offset <= self._sent_offset:
                return True
            if not self.acknowledges or is_enabled():
                is_writable = self._send(entry)
            else:
                self._sent_offset = offset
                is_writable = self._sink.send_batched(entry)
            if not is_writable:
                self._flush_backlog()
            return True
        if self._closing is not None or self._draining:
            return False
        self._last_seen = entry.cursor.offset
        if self._live:
            backlog = self._ensure_backlog()
            backlog.entries.append((entry, published_at))
            backlog.bytes += entry.size
            self._budget.add(entry)
            if backlog.bytes > MAX_BACKLOG_BYTES:
                self.close(CloseCode.SLOW_CONSUMER)
                return False
            if backlog.bytes > backlog.charged:
                # Charge in steps: most backlogs are written within one or two loop iterations.
                backlog.charged = backlog.bytes + CHARGE_BYTES
                self._budget.charge(self, self._caller, backlog.charged)
                return self._closing is None
        return True

    def join_group(self) -> None:
        """See :class:`hub.Subscriber`.

        A subscription without acknowledgements that has a device stays ungrouped: its own position
        has to be stored for each entry.
        """
        if (
            self._can_write
            and self._group is None
            and self._sink.can_group
            and (self.acknowledges or self._device is None)
            and not is_enabled()
        ):
            group = self._hub.join_group(self._room, self, self._sink.create_group)
            if group is not None:
                self._sink.join_group(group)
                self._group = group

    def leave_group(self) -> None:
        """Leave the fan-out group, if the subscription is in one."""
        if self._group is not None:
            self._sent_offset = self.last_offset
            self._group = None
            self._sink.leave_group()
            self._hub.leave_group(self._room, self)

    def on_write_blocked(self) -> None:
        """Stop writing: the socket is blocked or closed."""
        if self._can_write:
            self._can_write = False
            self.leave_group()
            self._arm_slow_timer()

    def on_partial_write(self, entry: Entry) -> None:
        """Note that the fan-out group wrote only a part of an entry; the rest is buffered."""
        if not self.acknowledges:
            self._unacked = entry.cursor
            if self._can_write:
                self._ack_pending()

    def over_budget(self) -> None:
        """See :class:`~.byte_budget.Holder`."""
        self.close(CloseCode.SLOW_CONSUMER)

    def ack(self, position: Cursor) -> None:
        """Store that the client has received everything up to a position."""
        self._store.ack(self._room, position, self._device)

    def on_client_message(self, message: str | bytes) -> str | None:
        """Handle a message from the client. Return the reply, if there is one.

        Valid messages are ``ping`` and the actions; other texts are ignored. A binary message, one
        over 4 KiB or one over the rate limit closes the subscription.
        """
        if isinstance(message, bytes) or len(message.encode()) > MAX_CLIENT_TEXT_BYTES:
            self.close(CloseCode.PROTOCOL_VIOLATION)
        elif not self._allow_message(self._number):
            self.close(CloseCode.RATE_LIMITED)
        elif message == PING:
            return PONG
        elif not (self.acknowledges and self._act(message)):
            self.ignored += 1
        return None

    def send_control(self, frame: ControlFrame) -> None:
        """Send a control frame as soon as the socket is writable, between notifications."""
        if self._closing is None:
            frames = self._ensure_backlog().frames
            frames.append(frame)
            if len(frames) > MAX_BACKLOG_FRAMES:
                self.close(CloseCode.SLOW_CONSUMER)
            else:
                self._resume()

    def drain(self, reconnect_after_ms: int) -> None:
        """Accept no new entries, send a closing frame and the backlog, then close.

        Args:
            reconnect_after_ms: when the client should reconnect, in milliseconds.
        """
        if self._closing is None and not self._draining:
            self._draining = True
            self._can_write = False
            self.leave_group()
            self._ensure_backlog().closing_frame = ControlFrame(
                CLOSING,
                {"code": int(CloseCode.DRAINING), "reconnectAfterMs": reconnect_after_ms},
            )
            self._resume()

    def close(self, code: CloseCode, reason: str | None = None) -> None:
        """Close the subscription. The first code wins; pending writes are still sent.

        Args:
            code: the close code.
            reason: sent to the client and logged; default: the code's own. It must not contain a
                secret.
        """
        if self._closing is None:
            self._closing = code
            self.reason = reason or code.reason
            self._can_write = False
            self.leave_group()
            self._drop_backlog()
            self._cancel_slow_timer()
            if self._writable_event is not None:
                self._writable_event.set()
            if self._ended is not None:
                self._ended.set()
            self._sink.close(code)

    async def wait_closed(self) -> CloseCode:
        """Wait until the subscription is closed. Return its close code."""
        if self._ended is None:
            self._ended = asyncio.Event()
        while self._closing is None:
            await self._ended.wait()
        return self._closing

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
        if self._closing is not None:  # revoked while the authorizer ran
            sink.close(self._closing)
            return
        self._sink = sink
        self._hub.subscribe(self._room, self)
        self._writable_event = asyncio.Event()
        position = await self._start(after)
        if self._device is not None:
            head = await self._store.head(self._room)
            # A position beyond the log is unknown: the room is replayed from the start.
            known = position if position.offset <= head.offset else self._store.earliest()
            self._store.register_device(self._room, self._device, known)
        await self._replay(position, after == UNKNOWN_POSITION)
        self._writable_event = None
        if self._closing is None:
            self._is_following = True
            self._flush_backlog()

    def on_writable(self) -> None:
        """Continue writing: the peer has read what was written."""
        self._ack_pending()
        self._cancel_slow_timer()
        self._resume()

    def detach(self) -> None:
        """Unsubscribe and write nothing more. The connection has ended."""
        self._can_write = self._is_following = self._live = False
        self.leave_group()
        self._cancel_slow_timer()
        self._drop_backlog()
        self._hub.unsubscribe(self._room, self)
        self._sink = NULL_SINK

    def _resume(self) -> None:
        if self._writable_event is not None:
            self._writable_event.set()
        elif self._is_following:
            self._flush_backlog()

    async def _start(self, after: str | None) -> Cursor:
        if after == "latest":
            return await self._store.head(self._room)
        if after in ("earliest", UNKNOWN_POSITION):
            return self._store.earliest()
        if after is not None:
            return parse_cursor(after)
        if is_request_room(self._room):
            return self._store.earliest()
        acked = await self._store.get_ack(self._room, self._device)
        return acked or self._store.earliest()

    async def _replay(self, position: Cursor, lost: bool) -> None:
        replayed = 0
        page_size = _FIRST_PAGE
        while self._closing is None:
            newest = self._last_seen
            head = await self._store.head(self._room)
            page = await self._store.read(self._room, position, page_size)
            if not page.recovered:
                lost = True
                position = self._store.earliest()
            # Count replays like reads of the history: reconnecting in a loop must not get around
            # the read limit.
            self._count_read(sum(entry.size + _REPLAY_BYTES for entry in page.entries))
            for number, entry in enumerate(page.entries):
                if not await self._is_ready(page.entries, number):
                    return
                self._send(entry)
                self._metrics.replayed.inc()
                position = entry.cursor
                replayed += 1
            if not await self._is_ready():
                return
            if len(page.entries) == page_size:
                size = sum(entry.size for entry in page.entries)
                page_size = max(1, min(_PAGE, page_size * _PAGE_BYTES // max(1, size)))
                await asyncio.sleep(0)  # a long replay must not block the event loop
                continue
            # From here on live entries go to the backlog. Entries that were published since the
            # page was read are in the log: one more page suffices, however busy the room is.
            was_live, self._live = self._live, True
            if not was_live and newest != self._last_seen:
                continue
            # Everything up to the head was read. The head is also the position of an empty room.
            position = max(position, head, key=lambda cursor: cursor.offset)
            self._sent_offset = position.offset
            self._metrics.replay_finished(recovered=not lost)
            self._sink.send_control(
                ControlFrame(
                    SUBSCRIBED,
                    {
                        "room": self._room,
                        "cursor": str(position),
                        "replayed": replayed,
                        "recovered": not lost,
                    },
                )
            )
            return

    async def _is_ready(self, page: Sequence[Entry] = (), first: int = 0) -> bool:
        """Send pending control frames and wait until the socket is writable.

        Args:
            page: the page that is being replayed.
            first: index of the first entry of the page that is not written yet. From there on the
                entries are charged to the budget during the wait.

        Returns:
            False if the subscription was closed.
        """
        assert self._writable_event is not None  # noqa: S101 - set during the replay
        while self._closing is None:
            self._flush_control()
            if self._sink.is_writable:
                return True
            self._writable_event.clear()
            self._arm_slow_timer()
            held = page[first:]
            for entry in held:
                self._budget.add(entry)
            try:
                self._charge(sum(entry.size for entry in held))
                await self._writable_event.wait()
            finally:
                for entry in held:
                    self._budget.remove(entry)
                self._charge(0)
        return False

    def _flush_backlog(self) -> None:
        """Write the backlog until it is empty or the socket blocks."""
        while self._closing is None:
            self._flush_control()
            if not self._sink.is_writable:
                break
            backlog = self._backlog
            if backlog is not None and backlog.entries:
                entry, published_at = backlog.entries.popleft()
                backlog.bytes -= entry.size
                self._budget.remove(entry)
                if entry.cursor.offset > self._sent_offset:
                    self._send(entry)
                    self._metrics.delivered_from_backlog(published_at)
            elif self._draining:
                self.close(CloseCode.DRAINING)
            else:
                self._drop_backlog()
                break
        self._can_write = is_clear = (
            self._sink.is_writable and self._closing is None and not self._draining
        )
        if is_clear:
            self.join_group()
        else:
            self.leave_group()
            if self._closing is None:
                self._arm_slow_timer()

    def _flush_control(self) -> None:
        backlog = self._backlog
        while backlog is not None and self._sink.is_writable:
            if backlog.frames:
                self._sink.send_control(backlog.frames.popleft())
            elif backlog.closing_frame is not None:
                frame, backlog.closing_frame = backlog.closing_frame, None
                self._sink.send_control(frame)
            else:
                break

    def _send(self, entry: Entry) -> bool:
        """Write an entry. Return whether the socket is still writable."""
        if is_enabled():
            span = start_delivery_span(self._room, entry)
            is_writable = self._sink.send(entry)
            span.end()
        else:
            is_writable = self._sink.send(entry)
        self._sent_offset = entry.cursor.offset
        if not self.acknowledges:
            self._unacked = entry.cursor
            if is_writable:
                self._ack_pending()
        return is_writable

    def _ack_pending(self) -> None:
        if self._unacked is not None:
            self.ack(self._unacked)
            self._unacked = None

    def _ensure_backlog(self) -> Backlog:
        if self._backlog is None:
            self._backlog = Backlog()
        return self._backlog

    def _drop_backlog(self) -> None:
        backlog, self._backlog = self._backlog, None
        if backlog is not None:
            for entry, _ in backlog.entries:
                self._budget.remove(entry)
            if backlog.charged:
                self._budget.charge(self, self._caller, 0)

    def _charge(self, held_bytes: int) -> None:
        """Charge the bytes that are held besides the backlog."""
        charged = 0 if self._backlog is None else self._backlog.charged
        self._budget.charge(self, self._caller, held_bytes + charged)

    def _arm_slow_timer(self) -> None:
        if self._slow_timer is None:
            loop = asyncio.get_running_loop()
            self._slow_timer = loop.call_later(
                SLOW_CONSUMER_TIMEOUT_S, self.close, CloseCode.SLOW_CONSUMER
            )

    def _cancel_slow_timer(self) -> None:
        if self._slow_timer is not None:
            self._slow_timer.cancel()
            self._slow_timer = None

    def _act(self, text: str) -> bool:
        match parse_action(text):
            case Ack(cursor):
                return self._acknowledge(cursor)
            case Authenticate(token):
                self.on_token(token)
                return True
        return False

    def _acknowledge(self, text: str) -> bool:
        try:
            cursor = parse_cursor(text)
        except InvalidArgumentError:
            return False
        if cursor.epoch != self._store.earliest().epoch or cursor.offset > self.last_offset:
            return False
        self.ack(cursor)
        return True
