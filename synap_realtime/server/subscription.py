"""One subscriber's life, without sockets: the log first, then live, no gap and no double.

See PROTOCOL.md, "Subscribing".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from time import perf_counter

from ..errors import InvalidArgumentError
from ..protocol.control import (
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
from ..protocol.cursor import Cursor, parse_cursor
from ..protocol.rooms import Room, is_request_room
from .hub import Hub
from .metrics import Metrics
from .spans import begin_delivery
from .stores.base import Entry, Store

MAX_WAITING_BYTES = 1024 * 1024
"""More than this unsent, and the subscriber is too slow."""

SEND_TIMEOUT_S = 20.0
"""A subscriber that takes nothing for so long is too slow, however little waits."""

MAX_WAITING_FRAMES = 1000
"""More control frames than this unsent, and the subscriber is too slow, too."""

LOST = "lost"
"""A position that no log has: everything that is retained, and ``recovered: false``."""

_PAGE = 16  # entries read at once: at most 4 MiB that a reader who stalls can hold on to

Send = Callable[[Entry | ControlFrame], Awaitable[None]]


def ignore_token(_: str) -> None:
    """Where nobody asks for tokens."""


class Subscription:
    """A listener to one room.

    It listens before it reads the log, so nothing falls between. While it reads, live entries need
    no place to wait: they are in the log, and the reading goes on until it has caught up.

    Attributes:
        ignored: texts from the client that meant nothing.
        on_token: called with a token that the client hands in.
    """

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
    ) -> None:
        """
        Args:
            device: which of the user's devices listens: each has its own position.
            acknowledges: the client says itself what it has received (``synap.v1``); otherwise what
                it was handed counts.
            takes_message: whether this subscription, by its ``id()``, may say one thing more now.
        """
        self.ignored = 0
        self.on_token: Callable[[str], None] = ignore_token
        self._takes_message = takes_message
        self._store = store
        self._hub = hub
        self._room = room
        self._metrics = metrics
        # Every listener to a request's room starts at its beginning: there is nothing to remember.
        self._device = None if is_request_room(room) else device
        self._acknowledges = acknowledges
        self._waiting: deque[tuple[Entry, float | None]] = deque()
        self._waiting_bytes = 0
        self._newest = 0
        self._handed = 0  # the furthest offset that the client was handed
        self._live = False
        self._wake = asyncio.Event()
        self._letting_go = False
        self._frames: deque[ControlFrame] = deque()
        self._farewell: ControlFrame | None = None  # until it is said
        self._closing: CloseCode | None = None
        self._ended = asyncio.Event()

    @property
    def closing(self) -> CloseCode | None:
        """Why it was closed; None while it was not."""
        return self._closing

    def offer(self, entry: Entry, began_at: float | None) -> bool:
        """See :class:`Listener`."""
        if self._closing is not None or self._letting_go:
            return False
        self._newest = entry.cursor.offset
        if self._live:
            self._waiting.append((entry, began_at))
            self._waiting_bytes += entry.size
            if self._waiting_bytes > MAX_WAITING_BYTES:
                self.close(CloseCode.TOO_SLOW)
                return False
            self._wake.set()
        return True

    def hear(self, message: str | bytes) -> str | None:
        """Take what the client said; returns the answer, if there is one.

        ``ping``, an action, or nothing; binary, over 4 KiB or too often ends the subscription.
        """
        if isinstance(message, bytes) or len(message.encode()) > MAX_CLIENT_TEXT_BYTES:
            self.close(CloseCode.CONTRACT_BROKEN)
        elif not self._takes_message(id(self)):
            self.close(CloseCode.TOO_MANY_MESSAGES)
        elif message == PING:
            return PONG
        elif not (self._acknowledges and self._act(message)):
            self.ignored += 1
        return None

    def say(self, frame: ControlFrame) -> None:
        """Send a control frame soon, between notifications."""
        if self._closing is None:
            self._frames.append(frame)
            if len(self._frames) > MAX_WAITING_FRAMES:
                self.close(CloseCode.TOO_SLOW)
            self._wake.set()

    def let_go(self, reconnect_after_ms: int) -> None:
        """Drain: take nothing new, say when to come back, send what is there, then close."""
        if self._closing is None and not self._letting_go:
            self._letting_go = True
            self._farewell = ControlFrame(
                CLOSING,
                {"code": int(CloseCode.DRAINING), "reconnectAfterMs": reconnect_after_ms},
            )
            self._wake.set()

    def close(self, code: CloseCode) -> None:
        """End the subscription; the first code counts. A send that is under way is not stopped."""
        if self._closing is None:
            self._closing = code
            self._waiting.clear()
            self._frames.clear()
            self._wake.set()
            self._ended.set()

    async def closed(self) -> CloseCode:
        """Wait until someone closes the subscription; returns why."""
        await self._ended.wait()
        assert self._closing is not None  # noqa: S101 - set together with the event
        return self._closing

    async def run(self, after: str | None, send: Send) -> None:
        """Send the log from where ``after`` says, then what comes live, until closed.

        A position that the log no longer has means the whole of what is retained.

        Args:
            after: a cursor, ``earliest``, ``latest``, :data:`LOST`, or None for the room's own
                default.
            send: puts one entry or control frame on the wire; what it raises ends the subscription.

        Raises:
            InvalidArgumentError: ``after`` is no position.
            StoreUnavailableError: the log cannot be read now.
        """
        self._hub.join(self._room, self)
        try:
            position = await self._start(after)
            if self._device is not None:
                self._store.start_device(self._room, self._device, position)
            position = await self._replay(position, after == LOST, send)
            await self._follow(position, send)
        finally:
            self._hub.leave(self._room, self)

    async def _start(self, after: str | None) -> Cursor:
        if after == "latest":
            return await self._store.head(self._room)
        if after in ("earliest", LOST):
            return self._store.earliest()
        if after is not None:
            return parse_cursor(after)
        if is_request_room(self._room):
            return self._store.earliest()
        mark = await self._store.received_mark(self._room, self._device)
        return mark or self._store.earliest()

    async def _replay(self, position: Cursor, lost: bool, send: Send) -> Cursor:
        replayed = 0
        while self._closing is None:
            await self._say_frames(send)
            newest = self._newest
            head = await self._store.head(self._room)
            page = await self._store.read(self._room, position, _PAGE)
            if not page.recovered:
                lost = True
                position = self._store.earliest()
            for entry in page.entries:
                if self._ended.is_set():
                    return position
                if await self._hand_over(entry, send):
                    self._metrics.replayed.inc()
                position = entry.cursor
                replayed += 1
            if len(page.entries) < _PAGE:
                # From here on what is offered waits. What was offered since the page was read is
                # in the log: it takes one more look, however much goes on in the room.
                was_live, self._live = self._live, True
                if not was_live and newest != self._newest:
                    continue
                # All of the room up to the head was read; an empty room has a position, too.
                position = max(position, head, key=lambda cursor: cursor.offset)
                self._handed = position.offset
                self._metrics.caught_up(recovered=not lost)
                frame = ControlFrame(
                    SUBSCRIBED,
                    {
                        "room": self._room,
                        "cursor": str(position),
                        "replayed": replayed,
                        "recovered": not lost,
                    },
                )
                await self._send(frame, send)
                break
        return position

    async def _follow(self, position: Cursor, send: Send) -> None:
        while not self._ended.is_set():
            await self._say_frames(send)
            while self._waiting:
                entry, began_at = self._waiting.popleft()
                self._waiting_bytes -= entry.size
                if entry.cursor.offset > position.offset and await self._hand_over(entry, send):
                    self._metrics.live.inc()
                    if began_at is not None:
                        self._metrics.publish_to_write.observe(perf_counter() - began_at)
            if self._letting_go and self._farewell is None:
                self.close(CloseCode.DRAINING)
            elif not (self._farewell or self._frames or self._ended.is_set()):
                self._wake.clear()
                await self._wake.wait()

    async def _say_frames(self, send: Send) -> None:
        while self._frames:
            await self._send(self._frames.popleft(), send)
        if self._farewell is not None:
            frame, self._farewell = self._farewell, None
            await self._send(frame, send)

    async def _hand_over(self, entry: Entry, send: Send) -> bool:
        span = begin_delivery(self._room, entry)
        sent = await self._send(entry, send)
        span.end(None if sent else "the client takes nothing")
        if not sent:
            return False
        self._handed = entry.cursor.offset
        if not self._acknowledges:
            self._store.advance_received_mark(self._room, entry.cursor, self._device)
        return True

    async def _send(self, message: Entry | ControlFrame, send: Send) -> bool:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(message)
        except TimeoutError:
            self.close(CloseCode.TOO_SLOW)
            return False
        return True

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
        if cursor.epoch != self._store.earliest().epoch or cursor.offset > self._handed:
            return False
        self._store.advance_received_mark(self._room, cursor, self._device)
        return True
