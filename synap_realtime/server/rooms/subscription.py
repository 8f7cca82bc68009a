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
    read_action,
)
from ...protocol.cursor import Cursor, parse_cursor
from ...protocol.rooms import Room, is_request_room
from ...tracing import is_on
from ..byte_budget import NOBODY, BacklogBudget, Caller
from ..metrics import Metrics
from ..spans import begin_delivery
from ..stores.base import Entry, Store
from .hub import FanoutGroup, Hub

MAX_WAITING_BYTES = 1024 * 1024
"""More than this unsent, and the subscriber is too slow."""

SEND_TIMEOUT_S = 20.0
"""A subscriber that takes nothing for so long is too slow, however little waits."""

MAX_WAITING_FRAMES = 1000
"""More control frames than this unsent, and the subscriber is too slow, too."""

_CHARGE_BYTES = 16 * 1024

_REPLAY_BYTES = 1024  # to write a notification costs as much as so many of its bytes

LOST = "lost"
"""A position that no log has: everything that is retained, and ``recovered: false``."""

# Entries read at once, which a reader who stalls holds on to: as many as are about so many bytes.
_PAGE, _FIRST_PAGE, _PAGE_BYTES = 16, 4, 128 * 1024


def ignore_token(_: str) -> None:
    """Where nobody asks for tokens."""


class Sink(Protocol):
    """One connection's way out. Nothing here waits, and nothing raises."""

    @property
    def is_writable(self) -> bool:
        """Whether the peer takes more now. When it does again, :meth:`Subscription.writable` is
        called."""
        ...

    def put(self, entry: Entry) -> bool:
        """Hand it over; whether the peer takes more."""
        ...

    def put_soon(self, entry: Entry) -> bool:
        """The same, with what others are told now: whether the peer takes more, as far as is known.
        If it does not after all, :meth:`Subscription.stall` is called."""
        ...

    def say(self, frame: ControlFrame) -> None:
        """Put a control frame, if this client asked for them."""
        ...

    def end(self, code: CloseCode) -> None:
        """Close the connection, behind what was put."""
        ...

    @property
    def can_gather(self) -> bool:
        """Whether it can be written to with others of its kind, in one go."""
        ...

    def new_company(self) -> FanoutGroup:
        """For outlets of its kind; called only if it :attr:`can_gather`."""
        ...

    def enter(self, company: FanoutGroup) -> None:
        """Be written to with the others of it, as long as it :attr:`is_writable`; before it is so
        no more, :meth:`Subscription.stall` is called."""
        ...

    def exit(self) -> None:
        """Be written to alone again."""
        ...


class UnbatchedSink:
    """Of an outlet that is always written to alone."""

    can_gather = False

    def new_company(self) -> FanoutGroup:
        raise NotImplementedError

    def enter(self, company: FanoutGroup) -> None:
        raise NotImplementedError

    def exit(self) -> None:
        raise NotImplementedError


class _NullSink(UnbatchedSink):
    """The outlet of a subscription that has not started."""

    is_writable = False

    def put(self, entry: Entry) -> bool:
        raise NotImplementedError

    put_soon = put

    def say(self, frame: ControlFrame) -> None: ...

    def end(self, code: CloseCode) -> None: ...


_NULL_SINK = _NullSink()


class _Backlog:
    """What waits for one subscriber: most have nothing, and so none of these."""

    __slots__ = ("bytes", "charged", "entries", "farewell", "frames")

    def __init__(self) -> None:
        self.charged = 0  # bytes that the budget knows of
        self.entries: deque[tuple[Entry, float | None]] = deque()
        self.bytes = 0
        self.frames: deque[ControlFrame] = deque()
        self.farewell: ControlFrame | None = None


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
        "_backlog", "_budget", "_caller", "_closing", "_company", "_count_read", "_device",
        "_ended", "_handed", "_hub", "_is_clear", "_is_following", "_letting_go", "_live",
        "_metrics", "_newest", "_outlet", "_resumed", "_room", "_slow", "_store",
        "_takes_message", "_untaken", "acknowledges", "ignored", "on_token", "reason",
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
        takes_message: Callable[[int], bool] = lambda _: True,
        budget: BacklogBudget | None = None,
        caller: Caller = NOBODY,
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
        self._takes_message = takes_message
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
        self._outlet: Sink = _NULL_SINK
        self._backlog: _Backlog | None = None
        self._newest = 0
        self._handed = 0  # the furthest offset that the client was handed, but by its company
        self._untaken: Cursor | None = None  # handed, but the peer has not taken it yet
        self._live = False  # what is offered waits
        self._is_following = False  # and is written: the log was read to its end
        self._is_clear = False  # what is offered can be written at once
        self._company: FanoutGroup | None = None
        self._letting_go = False
        self._closing: CloseCode | None = None
        self._resumed: asyncio.Event | None = None  # while the log is read
        self._ended: asyncio.Event | None = None  # while somebody waits for it
        self._slow: asyncio.TimerHandle | None = None  # while the peer takes nothing

    @property
    def closing(self) -> CloseCode | None:
        """Why it was closed; None while it was not."""
        return self._closing

    @property
    def handed(self) -> int:
        """The furthest offset that the client was handed."""
        company = self._company
        return self._handed if company is None else max(self._handed, company.handed)

    def offer(self, entry: Entry, began_at: float | None) -> bool:
        """See :class:`Listener`."""
        if self._is_clear:
            offset = entry.cursor.offset
            if offset <= self._handed:
                return True
            if not self.acknowledges or is_on():
                takes_more = self._hand_over(entry)
            else:
                self._handed = offset
                takes_more = self._outlet.put_soon(entry)
            if not takes_more:
                self._settle()
            return True
        if self._closing is not None or self._letting_go:
            return False
        self._newest = entry.cursor.offset
        if self._live:
            backlog = self._waiting()
            backlog.entries.append((entry, began_at))
            backlog.bytes += entry.size
            self._budget.add(entry)
            if backlog.bytes > MAX_WAITING_BYTES:
                self.close(CloseCode.SLOW_CONSUMER)
                return False
            if backlog.bytes > backlog.charged:
                # In steps: most of what waits goes on within a turn of the loop or two.
                backlog.charged = backlog.bytes + _CHARGE_BYTES
                self._budget.charge(self, self._caller, backlog.charged)
                return self._closing is None
        return True

    def gather(self) -> None:
        """See :class:`Listener`. Who has a mark of its own needs something done for each entry."""
        if (
            self._is_clear
            and self._company is None
            and self._outlet.can_gather
            and (self.acknowledges or self._device is None)
            and not is_on()
        ):
            company = self._hub.gather(self._room, self, self._outlet.new_company)
            if company is not None:
                self._outlet.enter(company)
                self._company = company

    def scatter(self) -> None:
        """Leave the company, if there is one."""
        if self._company is not None:
            self._handed = self.handed
            self._company = None
            self._outlet.exit()
            self._hub.scatter(self._room, self)

    def stall(self) -> None:
        """The peer takes no more for now, or never again."""
        if self._is_clear:
            self._is_clear = False
            self.scatter()
            self._wait_for_peer()

    def was_handed(self, entry: Entry) -> None:
        """By its company, which could not write it whole at once."""
        if not self.acknowledges:
            self._untaken = entry.cursor
            if self._is_clear:
                self._took()

    def over_budget(self) -> None:
        """See :class:`byte_budget.Holder`."""
        self.close(CloseCode.SLOW_CONSUMER)

    def received(self, position: Cursor) -> None:
        """The client was handed all up to there, and has taken it."""
        self._store.ack(self._room, position, self._device)

    def hear(self, message: str | bytes) -> str | None:
        """Take what the client said; returns the answer, if there is one.

        ``ping``, an action, or nothing; binary, over 4 KiB or too often ends the subscription.
        """
        if isinstance(message, bytes) or len(message.encode()) > MAX_CLIENT_TEXT_BYTES:
            self.close(CloseCode.PROTOCOL_VIOLATION)
        elif not self._takes_message(id(self)):
            self.close(CloseCode.RATE_LIMITED)
        elif message == PING:
            return PONG
        elif not (self.acknowledges and self._act(message)):
            self.ignored += 1
        return None

    def say(self, frame: ControlFrame) -> None:
        """Send a control frame soon, between notifications."""
        if self._closing is None:
            frames = self._waiting().frames
            frames.append(frame)
            if len(frames) > MAX_WAITING_FRAMES:
                self.close(CloseCode.SLOW_CONSUMER)
            else:
                self._go_on()

    def let_go(self, reconnect_after_ms: int) -> None:
        """Drain: take nothing new, say when to come back, send what is there, then close."""
        if self._closing is None and not self._letting_go:
            self._letting_go = True
            self._is_clear = False
            self.scatter()
            self._waiting().farewell = ControlFrame(
                CLOSING,
                {"code": int(CloseCode.DRAINING), "reconnectAfterMs": reconnect_after_ms},
            )
            self._go_on()

    def close(self, code: CloseCode, reason: str | None = None) -> None:
        """End the subscription; the first code counts. What was put is not taken back.

        Args:
            reason: for the client and the log; default: the code's own. It names the cause and
                nothing secret.
        """
        if self._closing is None:
            self._closing = code
            self.reason = reason or code.reason
            self._is_clear = False
            self.scatter()
            self._drop_backlog()
            self._stop_waiting()
            if self._resumed is not None:
                self._resumed.set()
            if self._ended is not None:
                self._ended.set()
            self._outlet.end(code)

    async def closed(self) -> CloseCode:
        """Wait until someone closes the subscription; returns why."""
        if self._ended is None:
            self._ended = asyncio.Event()
        while self._closing is None:
            await self._ended.wait()
        return self._closing

    async def start(self, after: str | None, outlet: Sink) -> None:
        """Put the log from where ``after`` says, and what comes live from then on.

        Returns when the log was read to its end, or the subscription was closed meanwhile; call
        :meth:`leave` when the connection has ended. A position that the log no longer has means the
        whole of what is retained.

        Args:
            after: a cursor, ``earliest``, ``latest``, :data:`LOST`, or None for the room's own
                default.

        Raises:
            InvalidArgumentError: ``after`` is no position.
            StoreUnavailableError: the log cannot be read now.
        """
        if self._closing is not None:  # its token was revoked while a rule was asked
            outlet.end(self._closing)
            return
        self._outlet = outlet
        self._hub.join(self._room, self)
        self._resumed = asyncio.Event()
        position = await self._start(after)
        if self._device is not None:
            head = await self._store.head(self._room)
            # A position that nobody has reached yet is none: this one will be read from the start.
            known = position if position.offset <= head.offset else self._store.earliest()
            self._store.register_device(self._room, self._device, known)
        await self._replay(position, after == LOST)
        self._resumed = None
        if self._closing is None:
            self._is_following = True
            self._settle()

    def writable(self) -> None:
        """The peer has taken what was put: it can have more."""
        self._took()
        self._stop_waiting()
        self._go_on()

    def leave(self) -> None:
        """The connection has gone: nothing is put any more."""
        self._is_clear = self._is_following = self._live = False
        self.scatter()
        self._stop_waiting()
        self._drop_backlog()
        self._hub.leave(self._room, self)
        self._outlet = _NULL_SINK

    def _go_on(self) -> None:
        if self._resumed is not None:
            self._resumed.set()
        elif self._is_following:
            self._settle()

    async def _start(self, after: str | None) -> Cursor:
        if after == "latest":
            return await self._store.head(self._room)
        if after in ("earliest", LOST):
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
            newest = self._newest
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
                self._hand_over(entry)
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
            if not was_live and newest != self._newest:
                continue
            # All of the room up to the head was read; an empty room has a position, too.
            position = max(position, head, key=lambda cursor: cursor.offset)
            self._handed = position.offset
            self._metrics.caught_up(recovered=not lost)
            self._outlet.say(
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
        assert self._resumed is not None  # noqa: S101 - while the log is read
        while self._closing is None:
            self._say_frames()
            if self._outlet.is_writable:
                return True
            self._resumed.clear()
            self._wait_for_peer()
            held = page[first:]
            for entry in held:
                self._budget.add(entry)
            try:
                self._charge(sum(entry.size for entry in held))
                await self._resumed.wait()
            finally:
                for entry in held:
                    self._budget.remove(entry)
                self._charge(0)
        return False

    def _settle(self) -> None:
        """Put what waits, as far as the peer takes it."""
        while self._closing is None:
            self._say_frames()
            if not self._outlet.is_writable:
                break
            backlog = self._backlog
            if backlog is not None and backlog.entries:
                entry, began_at = backlog.entries.popleft()
                backlog.bytes -= entry.size
                self._budget.remove(entry)
                if entry.cursor.offset > self._handed:
                    self._hand_over(entry)
                    self._metrics.delivered_late(began_at)
            elif self._letting_go:
                self.close(CloseCode.DRAINING)
            else:
                self._drop_backlog()
                break
        self._is_clear = is_clear = (
            self._outlet.is_writable and self._closing is None and not self._letting_go
        )
        if is_clear:
            self.gather()
        else:
            self.scatter()
            if self._closing is None:
                self._wait_for_peer()

    def _say_frames(self) -> None:
        backlog = self._backlog
        while backlog is not None and self._outlet.is_writable:
            if backlog.frames:
                self._outlet.say(backlog.frames.popleft())
            elif backlog.farewell is not None:
                frame, backlog.farewell = backlog.farewell, None
                self._outlet.say(frame)
            else:
                break

    def _hand_over(self, entry: Entry) -> bool:
        """Put it; whether the peer takes more."""
        if is_on():
            span = begin_delivery(self._room, entry)
            takes_more = self._outlet.put(entry)
            span.end()
        else:
            takes_more = self._outlet.put(entry)
        self._handed = entry.cursor.offset
        if not self.acknowledges:
            self._untaken = entry.cursor
            if takes_more:
                self._took()
        return takes_more

    def _took(self) -> None:
        if self._untaken is not None:
            self.received(self._untaken)
            self._untaken = None

    def _waiting(self) -> _Backlog:
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

    def _wait_for_peer(self) -> None:
        if self._slow is None:
            loop = asyncio.get_running_loop()
            self._slow = loop.call_later(SEND_TIMEOUT_S, self.close, CloseCode.SLOW_CONSUMER)

    def _stop_waiting(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _act(self, text: str) -> bool:
        match read_action(text):
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
        if cursor.epoch != self._store.earliest().epoch or cursor.offset > self.handed:
            return False
        self.received(cursor)
        return True
