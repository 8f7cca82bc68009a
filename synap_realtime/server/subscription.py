"""One subscriber's life, without sockets: the log first, then live, no gap and no double.

See PROTOCOL.md, "Subscribing".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from ..protocol.control import CloseCode
from ..protocol.cursor import Cursor, parse_cursor
from ..protocol.rooms import Room, is_request_room
from .hub import Hub
from .stores.base import Entry, Store

MAX_WAITING_BYTES = 1024 * 1024
"""More than this unsent, and the subscriber is too slow."""

SEND_TIMEOUT_S = 20.0
"""A subscriber that takes nothing for so long is too slow, however little waits."""

_PAGE = 16  # entries read at once: at most 4 MiB that a reader who stalls can hold on to

Send = Callable[[str], Awaitable[None]]


class Subscription:
    """A listener to one room.

    It listens before it reads the log, so nothing falls between. While it reads, live entries need
    no place to wait: they are in the log, and the reading goes on until it has caught up.
    """

    def __init__(self, store: Store, hub: Hub, room: Room) -> None:
        self._store = store
        self._hub = hub
        self._room = room
        self._waiting: deque[Entry] = deque()
        self._waiting_bytes = 0
        self._newest = 0
        self._live = False
        self._wake = asyncio.Event()
        self._closing: CloseCode | None = None
        self._ended = asyncio.Event()

    def offer(self, entry: Entry) -> bool:
        """See :class:`Listener`."""
        if self._closing is not None:
            return False
        self._newest = entry.offset
        if self._live:
            self._waiting.append(entry)
            self._waiting_bytes += entry.size
            if self._waiting_bytes > MAX_WAITING_BYTES:
                self.close(CloseCode.TOO_SLOW)
                return False
            self._wake.set()
        return True

    def close(self, code: CloseCode) -> None:
        """End the subscription; the first code counts. A send that is under way is not stopped."""
        if self._closing is None:
            self._closing = code
            self._waiting.clear()
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
            after: a cursor, ``earliest``, ``latest``, or None for the room's own default.
            send: puts one text on the wire; what it raises ends the subscription.

        Raises:
            InvalidArgumentError: ``after`` is no position.
            StoreUnavailableError: the log cannot be read now.
        """
        self._hub.join(self._room, self)
        try:
            position = await self._start(after)
            position = await self._replay(position, send)
            await self._follow(position, send)
        finally:
            self._hub.leave(self._room, self)

    async def _start(self, after: str | None) -> Cursor:
        if after == "latest":
            return self._store.head()
        if after == "earliest":
            return self._store.earliest()
        if after is not None:
            return parse_cursor(after)
        if is_request_room(self._room):
            return self._store.earliest()
        return await self._store.received_mark(self._room) or self._store.earliest()

    async def _replay(self, position: Cursor, send: Send) -> Cursor:
        while self._closing is None:
            newest = self._newest
            page = await self._store.read(self._room, position, _PAGE)
            if not page.recovered:
                position = self._store.earliest()
            for entry in page.entries:
                if self._ended.is_set():
                    return position
                await self._hand_over(entry, send)
                position = Cursor(self._store.earliest().epoch, entry.offset)
            # Nothing was offered since the empty page was read: from here on, live.
            if not page.entries and newest == self._newest:
                self._live = True
                break
        return position

    async def _follow(self, position: Cursor, send: Send) -> None:
        while self._closing is None:
            while self._waiting:
                entry = self._waiting.popleft()
                self._waiting_bytes -= entry.size
                if entry.offset > position.offset:
                    await self._hand_over(entry, send)
            self._wake.clear()
            if not self._waiting and self._closing is None:
                await self._wake.wait()

    async def _hand_over(self, entry: Entry, send: Send) -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send(entry.text)
        except TimeoutError:
            self.close(CloseCode.TOO_SLOW)
            return
        mark = Cursor(self._store.earliest().epoch, entry.offset)
        await self._store.set_received_mark(self._room, mark)
