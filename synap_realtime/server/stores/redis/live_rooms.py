"""The rooms with subscribers at this node: each receives its entries in order, without a gap."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ....protocol.cursor import Cursor
from ....protocol.folding import Fold
from ....protocol.rooms import Room
from ...errors import StoreUnavailableError
from ..base import (
    DeliveryHandler,
    Entry,
    GapHandler,
    LinkStats,
    Page,
    Publication,
    deliver_to_nobody,
    ignore_gap,
    make_entry,
)
from ..folds import parse_live
from .feed import Channels
from .keys import ALL_PARTITIONS, KeySpace
from .scripts import JOIN, ROOMS_OF_NODE
from .tasks import Tasks

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 3.0
"""The longest time until a room is subscribed to."""

_HEAL_PAGE = 100
_LOG_DELAY_S = 1.0  # one line for all rooms of a failover
_HEAL_PAUSE_S = 0.2


@dataclass(slots=True, eq=False)
class _LiveRoom:
    """A room with subscribers at this node.

    Attributes:
        partition: the partition of its keys.
        subscribers: how many.
        stored_subscribers: how many of them are counted in Redis.
        epoch, last: the position up to which entries were delivered; None until it has joined.
        newest: the highest offset that was announced in this epoch.
        must_heal: something was announced that may not be in the page that is being read.
        joining: until it has joined.
        healing: reads entries from the log that did not arrive.
    """

    room: Room
    partition: int
    subscribers: int = 0
    stored_subscribers: int = 0
    epoch: str = ""
    last: int | None = None
    newest: int = 0
    must_heal: bool = False
    joining: asyncio.Task[None] | None = None
    healing: asyncio.Task[None] | None = None


class LiveRooms:
    """Delivers the entries of the rooms that this node has subscribers in.

    Each entry is announced with the offset of the previous one. A node that misses an entry notices
    the gap and reads it from the log.

    Attributes:
        channels: subscribes to the channels of the rooms. Set before the first join.
        on_other: called with the messages of other channels.
        stats: shared with the connections.
        publishing: the calls of PUBLISH that are under way, by their names. Their messages may
            arrive before their replies.
    """

    def __init__(
        self,
        keys: KeySpace,
        node: str,
        call: Callable[..., asyncio.Future[Any]],
        tasks: Tasks,
        read: Callable[[Room, Cursor, int], Awaitable[Page]],
        lifetime_us: Callable[[Room], int],
    ) -> None:
        """
        Args:
            call: calls a script with keys and arguments.
            read: reads the log of a room, as :meth:`~..base.LogStore.read`.
            lifetime_us: how long the positions of a room are kept, in microseconds.
        """
        self.channels: Channels
        self.on_other: Callable[[bytes, bytes], None] = lambda *_: None
        self.publishing: dict[bytes, Sequence[Publication]] = {}
        self._keys = keys
        self._node = node
        self._call = call
        self._tasks = tasks
        self._read = read
        self._lifetime_us = lifetime_us
        self._deliver: DeliveryHandler = deliver_to_nobody
        self._on_gap: GapHandler = ignore_gap
        self._live: dict[Room, _LiveRoom] = {}
        self._by_channel: dict[bytes, _LiveRoom] = {}
        self._replaced = 0  # logs, since the last line of the log
        self.stats = LinkStats()
        self._left: set[Room] = set()  # rooms without subscribers, which Redis does not know yet

    def subscribe(self, handler: DeliveryHandler, on_gap: GapHandler) -> None:
        self._deliver, self._on_gap = handler, on_gap

    async def join(self, room: Room) -> None:
        """Count a subscriber of a room; see :meth:`~..base.Broker.join`."""
        live = self._live.get(room)
        if live is None:
            keys = self._keys.of_room(room)
            live = self._live[room] = _LiveRoom(room, keys.partition)
            self._by_channel[keys.log] = live
        live.subscribers += 1
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                if live.last is None:
                    if live.joining is None:
                        live.joining = self._tasks.spawn(self._join(live))
                    await asyncio.shield(live.joining)
                if live.stored_subscribers != live.subscribers:  # one came during the join
                    await self._set_subscribers(live)
        except TimeoutError:
            self.leave(room)
            raise StoreUnavailableError("Redis does not answer in time") from None
        except BaseException:
            self.leave(room)
            raise

    def leave(self, room: Room) -> None:
        """Count a subscriber as ended."""
        live = self._live[room]
        live.subscribers -= 1
        if live.subscribers == 0:
            del self._live[room]
            channel = self._keys.of_room(room).log
            del self._by_channel[channel]
            self.channels.unsubscribe(channel)
            for task in (live.joining, live.healing):
                if task is not None:
                    task.cancel()
        self._tasks.spawn(self._report_room(room))

    def close(self) -> None:
        """Stop reading logs."""
        for live in self._live.values():
            if live.healing is not None:
                live.healing.cancel()

    def has_published(self, cursor: Cursor, previous: int, publication: Publication) -> None:
        """Deliver an entry that this node has published, if no other one comes before it.

        Otherwise both arrive over the feed.

        Args:
            cursor: its position.
            previous: an upper bound of the previous entry's offset.
            publication: as it is delivered: with the offset of its piece.
        """
        live = self._live.get(publication.room)
        if (
            live is not None
            and live.healing is None
            and live.last is not None
            and live.epoch == cursor.epoch
            and previous <= live.last < cursor.offset
        ):
            text, fold, at = publication.text, publication.fold, publication.published_at
            self._hand_over(live, cursor.offset, text, fold, at)

    def on_message(self, channel: bytes, payload: bytes) -> None:
        """Handle an announcement of PUBLISH, or a message of another channel."""
        live = self._by_channel.get(channel)
        if live is None:
            self.on_other(channel, payload)
            return
        try:
            self._take(live, payload)
        except (LookupError, ValueError):  # another node has published what cannot be parsed
            self._heal(live)

    def _take(self, live: _LiveRoom, announcement: bytes) -> None:
        """Deliver an announced entry, or read it from the log.

        Raises:
            LookupError, ValueError: the announcement is malformed.
        """
        epoch, previous, offset, call, *text = announcement.split(b" ", 4)
        position = int(offset)
        if live.epoch != epoch.decode():  # the log was replaced, or the message is a late one
            self._heal(live)
            return
        live.newest = max(live.newest, position)
        if live.healing is None and live.last is not None and position > live.last:
            if text and int(previous) <= live.last:
                name, number, *marks = call.split(b":")
                published_at = None
                if (own := self.publishing.get(name)) is not None:  # its reply is on the way
                    published_at = own[int(number)].published_at
                content = text[0].decode()
                fold = parse_live(content) if marks else None
                self._hand_over(live, position, content, fold, published_at)
            else:
                self._heal(live)

    def catch_up(self, partitions: Collection[int]) -> Sequence[asyncio.Task[None]]:
        """Start to deliver what was published in some partitions while no messages arrived.

        Call :meth:`report` next, which finds out whether logs were replaced.
        """
        joined = [live for live in self._in(partitions) if live.last is not None]
        for live in joined:
            self._heal(live)
        return [live.healing for live in joined if live.healing is not None]

    async def report(self, partitions: Collection[int]) -> None:
        """Report the subscribers of the rooms in some partitions again.

        Raises:
            StoreUnavailableError: a part was not stored.
        """
        left = {room for room in self._left if self._keys.of_room(room).partition in partitions}
        self._left -= left
        await asyncio.gather(
            *(self._report_room(room) for room in left - self._live.keys()),
            *(self._set_subscribers(live) for live in self._in(partitions)),
        )

    async def remove(self, node: str) -> None:
        """Remove the subscribers of a failed node.

        Raises:
            StoreUnavailableError: a part was not removed.
        """
        found = await asyncio.gather(
            *(
                self._call(ROOMS_OF_NODE, (self._keys.node_rooms_in(number, node),))
                for number in ALL_PARTITIONS
            )
        )
        rooms = [Room(name.decode()) for [names] in found for name in names]
        await asyncio.gather(*(self._report_subscribers(room, node, 0) for room in rooms))

    def _in(self, partitions: Collection[int]) -> list[_LiveRoom]:
        return [live for live in self._live.values() if live.partition in partitions]

    async def _join(self, live: _LiveRoom) -> None:
        try:
            self.channels.start()
            await self.channels.subscribe(self._keys.of_room(live.room).log)
            await self._set_subscribers(live)
        finally:
            live.joining = None

    async def _set_subscribers(self, live: _LiveRoom) -> None:
        subscribers = live.subscribers
        epoch, position = await self._report_subscribers(live.room, self._node, subscribers)
        live.stored_subscribers = subscribers
        if live.last is None:
            live.epoch, live.last = epoch.decode(), int(position)
        elif live.epoch != epoch.decode():
            self._start_epoch(live, epoch.decode(), int(position))
        # Also for a heal that is under way: its read may be older than the subscription.
        live.newest = max(live.newest, int(position))
        if live.healing is None and (live.newest > live.last or live.must_heal):
            self._heal(live)

    async def _report_subscribers(self, room: Room, node: str, count: int) -> tuple[bytes, bytes]:
        """Set how many subscribers of a room a node has. Return the room's epoch and head."""
        keys = self._keys.of_room(room)
        [(epoch, position)] = await self._call(
            JOIN,
            (keys.state, keys.meta, self._keys.node_rooms(room, node)),
            self._lifetime_us(room),
            room,
            count,
        )
        return epoch, position

    async def _report_room(self, room: Room) -> None:
        """Report how many subscribers a room has; if it fails, again at the next connection."""
        try:
            now = self._live.get(room)
            count = 0 if now is None else now.subscribers
            await self._report_subscribers(room, self._node, count)
            if now is not None:
                now.stored_subscribers = count
        except StoreUnavailableError:
            self._left.add(room)

    def _hand_over(
        self,
        live: _LiveRoom,
        offset: int,
        text: str,
        fold: Fold | None,
        published_at: float | None,
    ) -> None:
        live.last = offset
        entry = make_entry(live.room, Cursor(live.epoch, offset), text, fold)
        self._deliver_entry(live, entry, published_at)

    def _deliver_entry(self, live: _LiveRoom, entry: Entry, published_at: float | None) -> None:
        try:
            self._deliver(live.room, entry, published_at)
        except Exception:  # a broken handler must not stop the deliveries of other rooms
            logger.exception("delivery to room %s failed; continuing", live.room)

    def _start_epoch(self, live: _LiveRoom, epoch: str, head: int) -> None:
        """Continue in a new log: entries of the previous one may be lost."""
        live.epoch, live.newest = epoch, head
        # Offsets follow the clock. If it was set back, all entries of the new log come before.
        live.last = min(live.last or 0, head)
        if not self._replaced:
            asyncio.get_running_loop().call_later(_LOG_DELAY_S, self._log_replaced)
        self._replaced += 1
        self._report_gap(live)

    def _log_replaced(self) -> None:
        count, self._replaced = self._replaced, 0
        logger.warning("logs were replaced, and a gap was reported to subscribers; rooms=%d", count)

    def _report_gap(self, live: _LiveRoom) -> None:
        self.stats.gaps += 1
        self._on_gap(live.room, Cursor(live.epoch, live.last or 0))

    def _heal(self, live: _LiveRoom) -> None:
        """Start to deliver from the log what did not arrive; once the room has joined."""
        live.must_heal = True
        if live.healing is None and live.last is not None:
            self.stats.heals += 1
            live.healing = self._tasks.spawn(self._read_missing(live))

    async def _read_missing(self, live: _LiveRoom) -> None:
        """Deliver from the log what did not arrive. If it cannot be read now, try again."""
        try:
            reported_at: Cursor | None = None  # where a gap was reported
            while live.last is not None:
                live.must_heal = False
                position, newest = Cursor(live.epoch, live.last), live.newest
                try:
                    page = await self._read(live.room, position, _HEAL_PAGE)
                    if live.epoch != position.epoch:  # replaced during the read
                        continue
                    if not page.recovered and position != reported_at:
                        await self._set_subscribers(live)
                        if live.epoch == position.epoch:  # entries were deleted; else: replaced
                            self._report_gap(live)
                        reported_at = Cursor(live.epoch, live.last)
                        continue
                except StoreUnavailableError:
                    await asyncio.sleep(_HEAL_PAUSE_S)
                    continue
                for entry in page.entries:
                    live.last = entry.cursor.offset
                    self._deliver_entry(live, entry, None)
                if not page.entries:  # what was announced is deleted already
                    live.last = max(live.last, newest)
                is_at_end = len(page.entries) < _HEAL_PAGE and not page.ends_early
                if is_at_end and live.newest <= live.last and not live.must_heal:
                    return
        finally:
            live.healing = None
