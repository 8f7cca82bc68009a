"""One subscriber's life, without sockets: the log first, then live, no gap and no double.

See PROTOCOL.md, "Subscribing".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

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
from ..byte_budget import NO_CALLER, BacklogBudget, Caller
from ..metrics import Metrics
from ..spans import start_delivery_span
from ..stores.base import Entry, Store
from .hub import FanoutGroup, Hub

MAX_BACKLOG_BYTES = 1024 * 1024
"""More than this unsent, and the subscriber is too slow."""

SLOW_CONSUMER_TIMEOUT_S = 20.0
"""A subscriber that takes nothing for so long is too slow, however little waits."""

MAX_BACKLOG_FRAMES = 1000
"""More control frames than this unsent, and the subscriber is too slow, too."""

_CHARGE_BYTES = 16 * 1024

_REPLAY_BYTES = 1024  # to write a notification costs as much as so many of its bytes

UNKNOWN_POSITION = "lost"
"""A position that no log has: everything that is retained, and ``recovered: false``."""

# Entries read at once, which a reader who stalls holds on to: as many as are about so many bytes.
_PAGE, _FIRST_PAGE, _PAGE_BYTES = 16, 4, 128 * 1024


def ignore_token(_: str) -> None:
    """Where nobody asks for tokens."""


class Sink(Protocol):
    """One connection's way out. Nothing here waits, and nothing raises."""

    @property
    def is_writable(self) -> bool:
        """Whether the peer takes more now. When it does again, :meth:`Subscription.on_writable` is
        called."""
        ...

    def send(self, entry: Entry) -> bool:
        """Hand it over; whether the peer takes more."""
        ...

    def send_batched(self, entry: Entry) -> bool:
        """The same, with what others are told now: whether the peer takes more, as far as is known.
        If it does not after all, :meth:`Subscription.on_write_blocked` is called."""
        ...

    def send_control(self, frame: ControlFrame) -> None:
        """Put a control frame, if this client asked for them."""
        ...

    def close(self, code: CloseCode) -> None:
        """Close the connection, behind what was put."""
        ...

    @property
    def can_group(self) -> bool:
        """Whether it can be written to with others of its kind, in one go."""
        ...

    def create_group(self) -> FanoutGroup:
        """For outlets of its kind; called only if it :attr:`can_group`."""
        ...

    def join_group(self, group: FanoutGroup) -> None:
        """Be written to with the others of it, as long as it :attr:`is_writable`; before it is so
        no more, :meth:`Subscription.on_write_blocked` is called."""
        ...

    def leave_group(self) -> None:
        """Be written to alone again."""
        ...


class UnbatchedSink:
    """Of an outlet that is always written to alone."""

    can_group = False

    def create_group(self) -> FanoutGroup:
        raise NotImplementedError

    def join_group(self, group: FanoutGroup) -> None:
        raise NotImplementedError

    def leave_group(self) -> None:
        raise NotImplementedError


class _NullSink(UnbatchedSink):
    """The outlet of a subscription that has not started."""

    is_writable = False

    def send(self, entry: Entry) -> bool:
        raise NotImplementedError

    send_batched = send

    def send_control(self, frame: ControlFrame) -> None: ...

    def close(self, code: CloseCode) -> None: ...


_NULL_SINK = _NullSink()


class _Backlog:
    """What waits for one subscriber: most have nothing, and so none of these."""

    __slots__ = ("bytes", "charged", "closing_frame", "entries", "frames")

    def __init__(self) -> None:
        self.charged = 0  # bytes that the budget knows of
        self.entries: deque[tuple[Entry, float | None]] = deque()
        self.bytes = 0
        self.frames: deque[ControlFrame] = deque()
        self.closing_frame: ControlFrame | None = None


class Subscription:
    """A listener to one room.

    It listens before it reads the log, so nothing falls between. While it reads, live entries need
    no place to wait: they are in the log, and the reading goes on until it has caught up. From then
    on no task runs for it: what is published is written at once by whoever publishes it, and waits
    only for a peer who does not read. Where there are many in a room, all for whom nothing waits
    are told in one go: its company.

    Attributes:
        acknowledges: the client says itself what it has received.
        reason: why it was closed, in words; empty while it was not.
        ignored: texts from the client that meant nothing.
        on_token: called with a token that the client hands in.
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
            device: which of the user's devices listens: each has its own position.
            acknowledges: the client says itself what it has received (``synap.v1``); otherwise what
                it was handed counts.
            takes_message: whether this subscription, by its ``id()``, may say one thing more now.
            budget: bounds the backlogs of all subscribers; default: there is no bound.
            caller: who is charged for this one's.
            count_read: called with the bytes of each page that is replayed.
        """
        self.ignored = 0
        self.reason = ""
        self.on_token: Callable[[str], None] = ignore_token
        self._allow_message = allow_message
        self._budget = budget or BacklogBudget(0, 0)
        self._caller = caller
        self._count_read = count_read
        self._store = store
        self._hub = hub
        self._room = room
        self._metrics = metrics
        # Every listener to a request's room starts at its beginning: there is nothing to remember.
        self._device = None if is_request_room(room) else device
        self.acknowledges = acknowledges
        self._sink: Sink = _NULL_SINK
        self._backlog: _Backlog | None = None
        self._last_seen = 0
        self._sent_offset = 0  # the furthest offset that the client was handed, but by its company
        self._unacked: Cursor | None = None  # handed, but the peer has not taken it yet
        self._live = False  # what is offered waits
        self._is_following = False  # and is written: the log was read to its end
        self._can_write = False  # what is offered can be written at once
        self._group: FanoutGroup | None = None
        self._draining = False
        self._closing: CloseCode | None = None
        self._writable_event: asyncio.Event | None = None  # while the log is read
        self._ended: asyncio.Event | None = None  # while somebody waits for it
        self._slow_timer: asyncio.TimerHandle | None = None  # while the peer takes nothing

    @property
    def closing(self) -> CloseCode | None:
        """Why it was closed; None while it was not."""
        return self._closing

    @property
    def last_offset(self) -> int:
        """The furthest offset that the client was handed."""
        group = self._group
        return self._sent_offset if group is None else max(self._sent_offset, group.last_offset)

    def deliver(self, entry: Entry, published_at: float | None) -> bool:
        """See :class:`Listener`."""
        if self._can_write:
            offset = entry.cursor.offset
            if offset <= self._sent_offset:
                return True
            if not self.acknowledges or is_enabled():
                takes_more = self._send(entry)
            else:
                self._sent_offset = offset
                takes_more = self._sink.send_batched(entry)
            if not takes_more:
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
                # In steps: most of what waits goes on within a turn of the loop or two.
                backlog.charged = backlog.bytes + _CHARGE_BYTES
                self._budget.charge(self, self._caller, backlog.charged)
                return self._closing is None
        return True

    def join_group(self) -> None:
        """See :class:`Listener`. Who has a mark of its own needs something done for each entry."""
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
        """Leave the company, if there is one."""
        if self._group is not None:
            self._sent_offset = self.last_offset
            self._group = None
            self._sink.leave_group()
            self._hub.leave_group(self._room, self)

    def on_write_blocked(self) -> None:
        """The peer takes no more for now, or never again."""
        if self._can_write:
            self._can_write = False
            self.leave_group()
            self._arm_slow_timer()

    def on_partial_write(self, entry: Entry) -> None:
        """By its company, which could not write it whole at once."""
        if not self.acknowledges:
            self._unacked = entry.cursor
            if self._can_write:
                self._ack_pending()

    def over_budget(self) -> None:
        """See :class:`byte_budget.Holder`."""
        self.close(CloseCode.SLOW_CONSUMER)

    def ack(self, position: Cursor) -> None:
        """The client was handed all up to there, and has taken it."""
        self._store.ack(self._room, position, self._device)

    def on_client_message(self, message: str | bytes) -> str | None:
        """Take what the client said; returns the answer, if there is one.

        ``ping``, an action, or nothing; binary, over 4 KiB or too often ends the subscription.
        """
        if isinstance(message, bytes) or len(message.encode()) > MAX_CLIENT_TEXT_BYTES:
            self.close(CloseCode.PROTOCOL_VIOLATION)
        elif not self._allow_message(id(self)):
            self.close(CloseCode.RATE_LIMITED)
        elif message == PING:
            return PONG
        elif not (self.acknowledges and self._act(message)):
            self.ignored += 1
        return None

    def send_control(self, frame: ControlFrame) -> None:
        """Send a control frame soon, between notifications."""
        if self._closing is None:
            frames = self._ensure_backlog().frames
            frames.append(frame)
            if len(frames) > MAX_BACKLOG_FRAMES:
                self.close(CloseCode.SLOW_CONSUMER)
            else:
                self._resume()

    def drain(self, reconnect_after_ms: int) -> None:
        """Drain: take nothing new, say when to come back, send what is there, then close."""
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
        """End the subscription; the first code counts. What was put is not taken back.

        Args:
            reason: for the client and the log; default: the code's own. It names the cause and
                nothing secret.
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
        """Wait until someone closes the subscription; returns why."""
        if self._ended is None:
            self._ended = asyncio.Event()
        while self._closing is None:
            await self._ended.wait()
        return self._closing

    async def run(self, after: str | None, outlet: Sink) -> None:
        """Put the log from where ``after`` says, and what comes live from then on.

        Returns when the log was read to its end, or the subscription was closed meanwhile; call
        :meth:`detach` when the connection has ended. A position that the log no longer has means
        the whole of what is retained.

        Args:
            after: a cursor, ``earliest``, ``latest``, :data:`UNKNOWN_POSITION`, or None for the
                room's own default.

        Raises:
            InvalidArgumentError: ``after`` is no position.
            StoreUnavailableError: the log cannot be read now.
        """
        if self._closing is not None:  # its token was revoked while a rule was asked
            outlet.close(self._closing)
            return
        self._sink = outlet
        self._hub.subscribe(self._room, self)
        self._writable_event = asyncio.Event()
        position = await self._start(after)
        if self._device is not None:
            head = await self._store.head(self._room)
            # A position that nobody has reached yet is none: this one will be read from the start.
            known = position if position.offset <= head.offset else self._store.earliest()
            self._store.register_device(self._room, self._device, known)
        await self._replay(position, after == UNKNOWN_POSITION)
        self._writable_event = None
        if self._closing is None:
            self._is_following = True
            self._flush_backlog()

    def on_writable(self) -> None:
        """The peer has taken what was put: it can have more."""
        self._ack_pending()
        self._cancel_slow_timer()
        self._resume()

    def detach(self) -> None:
        """The connection has gone: nothing is put any more."""
        self._can_write = self._is_following = self._live = False
        self.leave_group()
        self._cancel_slow_timer()
        self._drop_backlog()
        self._hub.unsubscribe(self._room, self)
        self._sink = _NULL_SINK

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
        mark = await self._store.get_ack(self._room, self._device)
        return mark or self._store.earliest()

    async def _replay(self, position: Cursor, lost: bool) -> None:
        replayed = 0
        asked = _FIRST_PAGE
        while self._closing is None:
            newest = self._last_seen
            head = await self._store.head(self._room)
            page = await self._store.read(self._room, position, asked)
            if not page.recovered:
                lost = True
                position = self._store.earliest()
            # A client that reconnects again and again must not read more than histories allow.
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
            if len(page.entries) == asked:
                size = sum(entry.size for entry in page.entries)
                asked = max(1, min(_PAGE, asked * _PAGE_BYTES // max(1, size)))
                await asyncio.sleep(0)  # a long log keeps nobody else waiting
                continue
            # From here on what is offered waits. What was offered since the page was read is in the
            # log: it takes one more look, however much goes on in the room.
            was_live, self._live = self._live, True
            if not was_live and newest != self._last_seen:
                continue
            # All of the room up to the head was read; an empty room has a position, too.
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
        """Wait until the peer takes more, and say what is to be said; False: it was closed.

        Args:
            page: what was read in the log; from ``first`` on it is held meanwhile.
        """
        assert self._writable_event is not None  # noqa: S101 - while the log is read
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
        """Put what waits, as far as the peer takes it."""
        while self._closing is None:
            self._flush_control()
            if not self._sink.is_writable:
                break
            backlog = self._backlog
            if backlog is not None and backlog.entries:
                entry, began_at = backlog.entries.popleft()
                backlog.bytes -= entry.size
                self._budget.remove(entry)
                if entry.cursor.offset > self._sent_offset:
                    self._send(entry)
                    self._metrics.delivered_from_backlog(began_at)
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
        """Put it; whether the peer takes more."""
        if is_enabled():
            span = start_delivery_span(self._room, entry)
            takes_more = self._sink.send(entry)
            span.end()
        else:
            takes_more = self._sink.send(entry)
        self._sent_offset = entry.cursor.offset
        if not self.acknowledges:
            self._unacked = entry.cursor
            if takes_more:
                self._ack_pending()
        return takes_more

    def _ack_pending(self) -> None:
        if self._unacked is not None:
            self.ack(self._unacked)
            self._unacked = None

    def _ensure_backlog(self) -> _Backlog:
        if self._backlog is None:
            self._backlog = _Backlog()
        return self._backlog

    def _drop_backlog(self) -> None:
        backlog, self._backlog = self._backlog, None
        if backlog is not None:
            for entry, _ in backlog.entries:
                self._budget.remove(entry)
            if backlog.charged:
                self._budget.charge(self, self._caller, 0)

    def _charge(self, held_bytes: int) -> None:
        """Charge what is held beside the backlog."""
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
