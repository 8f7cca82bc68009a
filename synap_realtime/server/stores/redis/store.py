"""Keep logs in Redis or Valkey, for all nodes that use the same prefix."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ....protocol.cursor import Cursor
from ....protocol.rooms import Room
from ...errors import StoreUnavailableError
from ..base import (
    DEVICE_AGE_S,
    MAX_DEVICES,
    DeliveryHandler,
    Entry,
    GapHandler,
    Page,
    Publication,
    PublishResult,
    Retention,
    StoreStats,
    deliver_to_nobody,
    ignore_gap,
    make_entry,
)
from .address import RedisAddress
from .feed import Feed
from .keys import PARTITIONS, SCHEMA_VERSION, KeySpace
from .link import Link
from .scripts import (
    ACK,
    CHECK,
    GET_ACK,
    HEAD,
    JOIN,
    PROBE,
    PUBLISH,
    READ,
    REMOVE_NODE,
    ROOMS_OF_NODE,
    USAGE,
)
from .topology import Topology

logger = logging.getLogger(__name__)

INLINE_BYTES = 16 * 1024
"""A larger notification is announced without its text and read from the log, so that it cannot fill
the output buffer of a pub/sub connection."""

META_LIFETIME_S = 7 * 86_400.0
"""How long the positions of a room are kept after its last notification has expired. A cursor that
is older is answered with ``recovered: false``."""

JOIN_TIMEOUT_S = 3.0
"""The longest time until a room is subscribed to."""

NODE_LIFETIME_S = 10.0
"""A node that sends no probe for this time has failed. Another one removes its subscribers."""

_ACK_DELAY_S = 0.05
_HEAL_PAGE = 100
_FIRST_ID_KEY = 4  # number of the first key of PUBLISH that belongs to an id


@dataclass(slots=True, eq=False)
class _LiveRoom:
    """A room with subscribers at this node.

    Attributes:
        subscribers: how many.
        stored_subscribers: how many of them are counted in Redis.
        epoch, last: the position up to which entries were delivered; None until it has joined.
        newest: the highest offset that was announced.
        joining: until it has joined.
        healing: reads entries from the log that did not arrive.
    """

    room: Room
    subscribers: int = 0
    stored_subscribers: int = 0
    epoch: str = ""
    last: int | None = None
    newest: int = 0
    joining: asyncio.Task[None] | None = None
    healing: asyncio.Task[None] | None = None


class RedisStore:
    """Keeps logs in Redis. Every node delivers the entries of the rooms that it has subscribers in.

    Each entry is announced with the offset of the previous one. A node that misses an entry notices
    the gap and reads it from the log.
    """

    is_shared = True

    def __init__(
        self,
        address: RedisAddress,
        retention: Retention | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """
        Args:
            clock: returns seconds. What passes by it passes in addition by the clock of Redis, so
                that tests need not wait.
        """
        self._address = address
        self._retention = retention or Retention()
        self._clock = clock
        self._opened_at = 0.0 if clock is None else clock()
        self._keys = KeySpace(address.prefix)
        self._node = secrets.token_hex(8)
        self._topology = Topology(address, self._on_switch)
        self._link = Link(self._topology.connect, self._on_connected)
        self._feed = Feed(
            self._topology.connect,
            self._keys.probe(self._node),
            self._send_probe,
            self._on_message,
            self._catch_up,
        )
        self._deliver: DeliveryHandler = deliver_to_nobody
        self._on_gap: GapHandler = ignore_gap
        self._live: dict[Room, _LiveRoom] = {}
        self._by_channel: dict[bytes, _LiveRoom] = {}
        self._left: set[Room] = set()  # rooms without subscribers, which Redis does not know yet
        self._publishing: dict[bytes, Sequence[Publication]] = {}
        self._acks: dict[Room, dict[tuple[str, str], int]] = {}  # device and epoch to offset
        self._ack_timer: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def description(self) -> str:
        return (
            f"redis store at {self._address.shown}: shared by all nodes; what Redis has not yet "
            "written to its disk or to a replica is lost if its machine fails"
        )

    def subscribe(self, handler: DeliveryHandler, on_gap: GapHandler = ignore_gap) -> None:
        self._deliver, self._on_gap = handler, on_gap

    def earliest(self) -> Cursor:
        return Cursor("0", 0)

    async def head(self, room: Room) -> Cursor:
        keys = self._keys.of_room(room)
        epoch, offset = await self._call(HEAD, (keys.state, keys.meta), self._lifetime_us(room))
        return Cursor(epoch.decode(), int(offset))

    async def publish(self, publications: Sequence[Publication]) -> Sequence[PublishResult]:
        by_room: defaultdict[Room, list[int]] = defaultdict(list)
        for number, publication in enumerate(publications):
            by_room[publication.room].append(number)
        results: list[PublishResult | None] = [None] * len(publications)
        # Not cancelled with this call: what was sent will be stored.
        replies = await asyncio.shield(
            asyncio.gather(
                *(
                    self._publish_to(room, [publications[n] for n in numbers])
                    for room, numbers in by_room.items()
                ),
                return_exceptions=True,
            )
        )
        for reply, numbers in zip(replies, by_room.values(), strict=True):
            if isinstance(reply, BaseException):
                raise reply
            for number, result in zip(numbers, reply, strict=True):
                results[number] = result
        return results  # type: ignore[return-value]  # each was set

    async def _publish_to(
        self, room: Room, publications: Sequence[Publication]
    ) -> list[PublishResult]:
        keys = self._keys.of_room(room)
        contents: list[bytes] = []
        ids: list[bytes] = []
        for publication in publications:
            id = publication.id.encode()
            ids.append(keys.dedupe + id)
            contents += (id, publication.text.encode())
        call = secrets.token_hex(8)
        self._publishing[call.encode()] = publications
        try:
            epoch, *rows = await self._call(
                PUBLISH,
                (keys.state, keys.log, keys.meta, *ids),
                self._retention.count_of(room),
                _us(self._retention.age_s(room)),
                _us(self._retention.dedupe_window_s),
                self._lifetime_us(room),
                call,
                b"PUBLISH",
                keys.channel,
                INLINE_BYTES,
                *contents,
            )
        finally:
            del self._publishing[call.encode()]
        name = epoch.decode()
        results = []
        for number, publication in enumerate(publications):
            offset, previous, count, is_duplicate = rows[4 * number : 4 * number + 4]
            cursor = Cursor(name, int(offset))
            duplicate = is_duplicate == b"1"
            results.append(PublishResult(publication.id, cursor, int(count), duplicate))
            live = self._live.get(room)
            # If another entry comes before it, both arrive over the feed.
            if (
                not duplicate
                and live is not None
                and live.healing is None
                and live.last is not None
                and live.epoch == name
                and int(previous) <= live.last < cursor.offset
            ):
                self._hand_over(live, cursor.offset, publication.text, publication.published_at)
        return results

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        keys = self._keys.of_room(room)
        epoch, recovered, *rows = await self._call(
            READ,
            (keys.state, keys.log, keys.meta),
            after.epoch,
            after.offset,
            limit,
            _us(self._retention.age_s(room)),
            self._lifetime_us(room),
        )
        name = epoch.decode()
        entries = [
            make_entry(room, Cursor(name, int(offset)), text.decode())
            for offset, text in zip(rows[::2], rows[1::2], strict=True)
        ]
        return Page(entries, recovered=recovered == b"1")

    async def get_ack(self, room: Room, device: str | None = None) -> Cursor | None:
        self._send_acks(room)
        keys = self._keys.of_room(room)
        found = await self._call(GET_ACK, (keys.state, keys.acks), device or "", _us(DEVICE_AGE_S))
        if not found:
            return None
        return Cursor(found[0].decode(), int(found[1])) if int(found[1]) else self.earliest()

    def register_device(self, room: Room, device: str, position: Cursor) -> None:
        self._note_ack(room, device, position)

    def ack(self, room: Room, position: Cursor, device: str | None = None) -> None:
        self._note_ack(room, "", position)
        if device is not None:
            self._note_ack(room, device, position)

    async def join(self, room: Room) -> None:
        live = self._live.get(room)
        if live is None:
            live = self._live[room] = _LiveRoom(room)
            channel = self._keys.of_room(room).channel
            self._by_channel[channel] = live
        live.subscribers += 1
        try:
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                if live.last is None:
                    if live.joining is None:
                        live.joining = self._spawn(self._join(live))
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
        self._send_acks(room)  # the client may reconnect to another node
        live = self._live[room]
        live.subscribers -= 1
        if live.subscribers == 0:
            del self._live[room]
            channel = self._keys.of_room(room).channel
            del self._by_channel[channel]
            self._feed.unsubscribe(channel)
            for task in (live.joining, live.healing):
                if task is not None:
                    task.cancel()
        self._spawn(self._report_room(room))

    async def check(self) -> None:
        found = await self._call(CHECK, (self._keys.schema,), SCHEMA_VERSION)
        if int(found) != SCHEMA_VERSION:
            raise StoreUnavailableError(
                f"the keys under the prefix {self._address.prefix} have version {int(found)}, and "
                f"this server uses {SCHEMA_VERSION}: run one version, or choose another prefix"
            )
        self._feed.start()
        if not self._feed.is_current:
            raise StoreUnavailableError("messages of Redis do not arrive; reconnecting")

    async def usage(self) -> StoreStats:
        return StoreStats(int(await self._call(USAGE, ())), None)

    async def close(self) -> None:
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        for room in list(self._acks):
            self._send_acks(room)
        await self._feed.close()
        for task in list(self._tasks):
            if not task.done():
                with contextlib.suppress(asyncio.CancelledError, StoreUnavailableError):
                    await task
        with contextlib.suppress(StoreUnavailableError):
            await self._call(REMOVE_NODE, (self._keys.nodes,), self._node)
        await self._link.close()
        await self._topology.close()

    # The connections

    def _on_switch(self) -> None:
        self._link.restart()
        self._feed.restart()

    def _on_connected(self) -> None:
        self._feed.start()
        if self._feed.is_current:  # it may still be connected to a server that was replaced
            self._feed.restart()

    def _send_probe(self) -> None:
        if self._probing is None or self._probing.done():  # else Redis does not answer
            self._probing = self._spawn(self._probe())

    async def _probe(self) -> None:
        with contextlib.suppress(StoreUnavailableError):
            is_new, failed = await self._call(
                PROBE,
                (self._keys.nodes,),
                self._node,
                self._keys.probe(self._node),
                _us(NODE_LIFETIME_S),
            )
            if is_new:  # others have removed the subscribers of a node that was silent
                await asyncio.gather(*(self._report_room(room) for room in list(self._live)))
            for node in failed:
                await self._remove_node(node.decode())

    async def _remove_node(self, node: str) -> None:
        """Remove the subscribers of a failed node. All nodes may do so at the same time."""
        found = await asyncio.gather(
            *(
                self._call(ROOMS_OF_NODE, (self._keys.node_rooms_in(number, node),))
                for number in range(PARTITIONS)
            )
        )
        rooms = [Room(name.decode()) for names in found for name in names]
        await asyncio.gather(*(self._report_subscribers(room, node, 0) for room in rooms))
        await self._call(REMOVE_NODE, (self._keys.nodes,), node)
        logger.warning("a node has failed; its subscribers were removed; rooms=%d", len(rooms))

    def _call(self, script: Any, keys: Sequence[bytes], *arguments: Any) -> asyncio.Future[Any]:
        shift = 0 if self._clock is None else _us(self._clock() - self._opened_at)
        return self._link.call(script, keys, (secrets.token_hex(6), shift, *arguments))

    def _spawn(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._has_ended)
        return task

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its callers, if there are any left, receive it

    # Live rooms

    async def _join(self, live: _LiveRoom) -> None:
        try:
            self._feed.start()
            await self._feed.subscribe(self._keys.of_room(live.room).channel)
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
        if live.newest > live.last:
            self._heal(live)

    async def _report_subscribers(self, room: Room, node: str, count: int) -> tuple[bytes, bytes]:
        """Set how many subscribers of a room a node has. Return the room's epoch and head."""
        keys = self._keys.of_room(room)
        epoch, position = await self._call(
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

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        live = self._by_channel.get(channel)
        if live is None:
            return
        epoch, previous, offset, call, *text = payload.split(b" ", 4)
        position = int(offset)
        live.newest = max(live.newest, position)
        if live.last is None or live.healing is not None:
            return
        if live.epoch != epoch.decode():
            self._start_epoch(live, epoch.decode(), position)
        elif position > live.last:
            if text and int(previous) <= live.last:
                name, _, number = call.partition(b":")
                published_at = None
                if (own := self._publishing.get(name)) is not None:  # its reply is on the way
                    published_at = own[int(number) - _FIRST_ID_KEY].published_at
                self._hand_over(live, position, text[0].decode(), published_at)
            else:
                self._heal(live)

    def _hand_over(
        self, live: _LiveRoom, offset: int, text: str, published_at: float | None
    ) -> None:
        live.last = offset
        entry = make_entry(live.room, Cursor(live.epoch, offset), text)
        self._deliver_entry(live, entry, published_at)

    def _deliver_entry(self, live: _LiveRoom, entry: Entry, published_at: float | None) -> None:
        try:
            self._deliver(live.room, entry, published_at)
        except Exception:  # a broken handler must not stop the deliveries of other rooms
            logger.exception("delivery to room %s failed; continuing", live.room)

    def _start_epoch(self, live: _LiveRoom, epoch: str, position: int) -> None:
        """Continue in a new log: entries of the previous one may be lost."""
        live.epoch, live.last, live.newest = epoch, position, position
        logger.warning("the log of a room was replaced; its subscribers resume; room=%s", live.room)
        self._on_gap(live.room)

    def _heal(self, live: _LiveRoom) -> None:
        if live.healing is None:
            live.healing = self._spawn(self._read_missing(live))

    async def _read_missing(self, live: _LiveRoom) -> None:
        """Deliver from the log what did not arrive."""
        try:
            while live.last is not None:
                page = await self.read(live.room, Cursor(live.epoch, live.last), _HEAL_PAGE)
                epoch = page.entries[0].cursor.epoch if page.entries else live.epoch
                if not page.recovered or epoch != live.epoch:
                    newest = page.entries[-1].cursor.offset if page.entries else live.newest
                    self._start_epoch(live, epoch, max(newest, live.last))
                    return
                for entry in page.entries:
                    live.last = entry.cursor.offset
                    self._deliver_entry(live, entry, None)
                if len(page.entries) < _HEAL_PAGE and live.newest <= live.last:
                    return
                if not page.entries:  # announced, and deleted already
                    live.last = live.newest
        except StoreUnavailableError:
            pass  # the next connection of the feed catches up
        finally:
            live.healing = None

    async def _catch_up(self) -> None:
        """Deliver what was published while no messages arrived. Report the subscribers again."""
        for live in list(self._live.values()):
            if live.last is not None:
                self._heal(live)
        rooms = list(self._live.values())
        left, self._left = self._left - self._live.keys(), set()
        await asyncio.gather(
            *(self._report_room(room) for room in left),
            *(self._set_subscribers(live) for live in rooms),
            *(live.healing for live in rooms if live.healing is not None),
        )

    # Acknowledged cursors

    def _note_ack(self, room: Room, name: str, position: Cursor) -> None:
        noted = self._acks.setdefault(room, {})
        known = noted.pop((name, position.epoch), 0)
        noted[name, position.epoch] = max(known, position.offset)
        if self._ack_timer is None:
            loop = asyncio.get_running_loop()
            self._ack_timer = loop.call_later(_ACK_DELAY_S, self._send_all_acks)

    def _send_all_acks(self) -> None:
        self._ack_timer = None
        for room in list(self._acks):
            self._send_acks(room)

    def _send_acks(self, room: Room) -> None:
        noted = self._acks.pop(room, None)
        if noted is None:
            return
        keys = self._keys.of_room(room)
        rows: list[Any] = []
        for (name, epoch), offset in noted.items():
            rows += (name, epoch, offset)
        reply = self._call(ACK, (keys.state, keys.acks), MAX_DEVICES, _us(DEVICE_AGE_S), *rows)
        self._spawn(self._repeat_failed_acks(reply, room, noted))

    async def _repeat_failed_acks(
        self, reply: asyncio.Future[Any], room: Room, noted: dict[tuple[str, str], int]
    ) -> None:
        try:
            await reply
        except StoreUnavailableError:
            for (name, epoch), offset in noted.items():
                self._note_ack(room, name, Cursor(epoch, offset))

    def _lifetime_us(self, room: Room) -> int:
        return _us(self._retention.age_s(room) + META_LIFETIME_S)


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
