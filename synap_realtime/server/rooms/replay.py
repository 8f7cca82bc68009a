"""Read a room's log after a position, in pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ...protocol.cursor import Cursor, parse_cursor
from ...protocol.rooms import Room, is_request_room
from ..stores.base import Entry, LogStore, Page, Store

_ENTRY_BYTES = 1024  # counted per notification beside its size: the cost of a write

# Entries read in one page. A stalled peer keeps a page in memory, so a page is bounded in bytes.
_PAGE, _FIRST_PAGE, _PAGE_BYTES = 64, 4, 128 * 1024


UNKNOWN_POSITION = "lost"
"""A position that is in no log: replays everything that is retained, with ``recovered: false``."""


class Replay:
    """Reads the log of a room. If the position is no longer in the log, it starts at the oldest.

    Attributes:
        count: the number of entries that were read.
        is_at_end: whether the last page reached the end of the log.
        position: up to which everything was read; never offset 0 after a page at the end.
        recovered: False if an entry after the first position may be missing.
    """

    __slots__ = (
        "_count_read",
        "_page_size",
        "_room",
        "_store",
        "count",
        "is_at_end",
        "position",
        "recovered",
    )  # fmt: skip

    def __init__(
        self,
        store: LogStore,
        room: Room,
        position: Cursor,
        *,
        recovered: bool,
        count_read: Callable[[int], None],
    ) -> None:
        """
        Args:
            position: where to start.
            recovered: False if the client's position is unknown.
            count_read: called with the bytes of each page. Replays count like reads of the history:
                reconnecting in a loop must not get around the read limit.
        """
        self._store = store
        self._room = room
        self.position = position
        self._page_size = _FIRST_PAGE
        self._count_read = count_read
        self.count = 0
        self.is_at_end = False
        self.recovered = recovered

    async def read_page(self) -> Sequence[Entry]:
        """Return the next entries; none if there are none yet.

        Raises:
            StoreUnavailableError: the log cannot be read now.
        """
        page = self._checked(await self._store.read(self._room, self.position, self._page_size))
        if not page.entries and not self.position.offset:
            # The position of an empty room is its head. An entry that was published before the head
            # was read would be skipped, so the log is read once more.
            head = await self._store.head(self._room)
            page = self._checked(await self._store.read(self._room, self.position, self._page_size))
            if not page.entries:
                self.position = head
        entries = page.entries
        self.is_at_end = len(entries) < self._page_size and not page.ends_early
        if entries:
            self.position = entries[-1].cursor
            self.count += len(entries)
            size = sum([entry.size for entry in entries])
            self._count_read(size + len(entries) * _ENTRY_BYTES)
            if not self.is_at_end:
                self._page_size = max(1, min(_PAGE, self._page_size * _PAGE_BYTES // size))
        return entries

    def _checked(self, page: Page) -> Page:
        """Return a page. If a part of the log before it is missing, note that."""
        if not page.recovered:
            self.recovered = False
            self.position = self._store.earliest()
        return page


async def find_start(store: Store, room: Room, device: str | None, after: str | None) -> Cursor:
    """Return where a subscription starts.

    Args:
        device: the user's device that subscribes; each has its own acknowledged position.
        after: a cursor, ``earliest``, ``latest``, :data:`UNKNOWN_POSITION`, or None for the default
            of the room.

    Raises:
        InvalidArgumentError: ``after`` is not a position.
        StoreUnavailableError: the position cannot be read now.
    """
    if after == "latest":
        return await store.head(room)
    if after in ("earliest", UNKNOWN_POSITION):
        return store.earliest()
    if after is not None:
        return parse_cursor(after)
    if is_request_room(room):
        return store.earliest()
    acked = await store.get_ack(room, device)
    return acked or store.earliest()


def slices(page: Sequence[Entry], max_bytes: int) -> Iterator[tuple[int, int]]:
    """Divide a page into slices of at most so many bytes, or of one larger entry.

    Yields:
        The index of the first entry of a slice, and that of the entry after its last one.
    """
    first = size = 0
    for number, entry in enumerate(page):
        size += entry.size
        if size > max_bytes and number > first:
            yield first, number
            first, size = number, entry.size
    if page:
        yield first, len(page)
