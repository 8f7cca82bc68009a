"""Keep logs in Redis or Valkey, for all nodes that use the same prefix."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ....protocol.cursor import Cursor
from ....protocol.rooms import Room
from ...errors import StoreUnavailableError
from ..base import (
    DeliveryHandler,
    GapHandler,
    LinkStats,
    Page,
    RateDemand,
    RateGrant,
    Retention,
    StoreStats,
    Survey,
    SurveyHandler,
    ignore_gap,
    make_entry,
)
from .acks import AcknowledgedCursors
from .address import RedisAddress
from .durability import PROMISES
from .folded import read_entry
from .jobs import JobReader
from .keys import ALL_PARTITIONS, SCHEMA_VERSION, KeySpace, describe_other_version
from .live_rooms import LiveRooms
from .log_scripts import HEAD, READ
from .membership import Membership
from .presence import SharedPresence
from .publisher import Publisher
from .rates import take_rates
from .script import Script, us
from .scripts import CHECK, CLAIM, RENEW, SEND, USAGE
from .shards import Shards
from .survey import RedisSurveys
from .tasks import Tasks
from .user_connections import UserConnections

logger = logging.getLogger(__name__)

META_LIFETIME_S = 7 * 86_400.0
"""How long the positions of a room are kept after its last notification has expired. A cursor that
is older is answered with ``recovered: false``."""


class RedisStore:
    """Keeps logs in Redis. Every node delivers the entries of the rooms that it has subscribers in.

    See :class:`~.live_rooms.LiveRooms` for the deliveries, and :class:`~.membership.Membership` for
    the list of nodes.
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
        self._tasks = Tasks()
        self._membership = Membership(self._keys, self._node, self._call, self._tasks)
        self._rooms = LiveRooms(
            self._keys, self._node, self._call, self._tasks, self.read, self._lifetime_us
        )
        self._membership.register(self._rooms.report, self._rooms.remove)
        self._presence = SharedPresence(self._keys, self._node, self._call, self._tasks)
        self._membership.register(self._presence.report_again, self._presence.remove)
        self._connections = UserConnections(self._keys, self._node, self._call)
        self._membership.register(self._connections.report_again, self._connections.remove)
        self._surveys = RedisSurveys(self._keys, self._node, self._call, self._membership.list_live)
        self._rooms.on_other = self._on_other_message
        self._shards = self._rooms.channels = self._presence.channels = Shards(
            address,
            stats=self._rooms.stats,
            channels=(*self._surveys.channels, self._keys.replaced),
            probe_channel=lambda partition: self._keys.probe(partition, self._node),
            send_probe=self._membership.send_probe,
            on_message=self._rooms.on_message,
            catch_up=self._catch_up,
            clock_shift_us=self._clock_shift_us,
        )
        self.publisher = Publisher(
            *(self._keys, self._shards.call, self._tasks, self._rooms),
            *(self._retention, self._lifetime_us),
            is_cluster=address.is_cluster,
        )
        self.publish = self.publisher.publish
        self._acks = AcknowledgedCursors(self._keys, self._call, self._tasks)
        self.get_ack = self._acks.get
        self.register_device = self._acks.register
        self.ack = self._acks.ack
        reader = JobReader(self._keys, self._call, self._retention, self._lifetime_us)
        self.get_job = reader.get
        self.list_jobs = reader.list
        self.report_presence = self._presence.report
        self.end_presence = self._presence.end
        self.read_presence = self._presence.read
        self.watch_presence = self._presence.watch
        self.unwatch_presence = self._presence.unwatch
        self.acquire_connection = self._connections.acquire
        self.release_connection = self._connections.release
        self._must_announce = False  # that epochs were renewed

    @property
    def description(self) -> str:
        return (
            f"redis store at {self._address.shown}: shared by all nodes; "
            f"durability={self._address.durability.value}: {PROMISES[self._address.durability]}"
        )

    def subscribe(self, handler: DeliveryHandler, on_gap: GapHandler = ignore_gap) -> None:
        self._rooms.subscribe(handler, on_gap)

    def earliest(self) -> Cursor:
        return Cursor("0", 0)

    async def head(self, room: Room) -> Cursor:
        keys = self._keys.of_room(room)
        [(epoch, offset)] = await self._call(HEAD, (keys.state, keys.meta), self._lifetime_us(room))
        return Cursor(epoch.decode(), int(offset))

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        keys = self._keys.of_room(room)
        [(epoch, status, *rows)] = await self._call(
            READ,
            (keys.state, keys.log, keys.meta, keys.folds),
            after.epoch,
            after.offset,
            limit,
            us(self._retention.age_s(room)),
            self._lifetime_us(room),
        )
        name = epoch.decode()
        if status & 2:  # the room has folded something
            wholes = rows[2::3]
            entries = [
                read_entry(room, Cursor(name, int(offset)), text.decode(), whole)
                for offset, text, whole in zip(rows[::3], rows[1::3], wholes, strict=True)
            ]
        else:
            entries = [
                make_entry(room, Cursor(name, int(offset)), text.decode())
                for offset, text in zip(rows[::2], rows[1::2], strict=True)
            ]
        return Page(entries, recovered=bool(status & 1), ends_early=bool(status & 4))

    async def join(self, room: Room) -> None:
        await self._rooms.join(room)

    def leave(self, room: Room) -> None:
        self._acks.send(room)  # the client may reconnect to another node
        self._rooms.leave(room)

    def answer_surveys(self, handler: SurveyHandler) -> None:
        self._surveys.answer_by(handler)

    async def survey(self, question: str, arguments: Mapping[str, Any]) -> Survey:
        return await self._surveys.ask(question, arguments)

    async def take_rates(self, caller: str, demands: Sequence[RateDemand]) -> RateGrant:
        return await take_rates(self._keys, self._call, caller, demands)

    async def check(self) -> None:
        self._shards.start()
        found = await self._call_each(CHECK, SCHEMA_VERSION)
        for version in map(int, found):
            if version != SCHEMA_VERSION:
                raise StoreUnavailableError(describe_other_version(self._address.prefix, version))
        if not self._shards.is_current:
            raise StoreUnavailableError("messages of Redis do not arrive; reconnecting")

    def link_stats(self) -> LinkStats:
        return self._shards.stats()

    async def usage(self) -> StoreStats:
        return StoreStats(sum(map(int, await self._call_each(USAGE))), None)

    async def close(self) -> None:
        self._acks.close()
        self._presence.end(0.0)
        await self._shards.close_feeds()
        self._rooms.close()
        await self._tasks.wait()
        with contextlib.suppress(StoreUnavailableError):  # others remove it after its lifetime
            await self._connections.close()
            await self._membership.leave(self._presence.stays_s)
        await self._shards.close()

    def _on_other_message(self, channel: bytes, payload: bytes) -> None:
        handle = self._surveys.channels.get(channel)
        if handle is not None:
            handle(payload)
        elif channel == self._keys.replaced:
            if payload.decode() != self._node:
                self._rooms.catch_up(ALL_PARTITIONS)
        else:
            self._presence.on_message(channel, payload)

    async def _catch_up(self, partitions: Collection[int]) -> None:
        """Make up for the time in which no messages of some partitions arrived."""
        await self._renew_epochs(partitions)
        healing = self._rooms.catch_up(partitions)
        claims = [self._call(CLAIM, (self._keys.state(number),)) for number in partitions]
        await asyncio.gather(self._membership.report(partitions), *claims)
        await asyncio.gather(*healing, return_exceptions=True)  # cancelled, if a room was left

    async def _renew_epochs(self, partitions: Collection[int]) -> None:
        """Report what a former primary has acknowledged after it was replaced.

        The subscribers of the other nodes were informed of a gap before that. Now all nodes have to
        inform theirs again.
        """
        former = self._shards.former_acknowledged_at
        if former is None:
            return
        ago = us(asyncio.get_running_loop().time() - former)
        renewed = await asyncio.gather(
            *(self._call(RENEW, (self._keys.state(number),), ago) for number in partitions),
            return_exceptions=True,
        )
        self._must_announce = self._must_announce or 1 in renewed
        for each in renewed:
            if isinstance(each, BaseException):
                raise each
        if self._must_announce:
            await self._call(SEND, (self._keys.replaced,), self._node)
            logger.warning(
                "Redis: the former primary has acknowledged publishes after it was replaced, which "
                "are lost; all nodes report a gap to their subscribers"
            )
            self._must_announce = False
        self._shards.forget_former()

    def _call(self, script: Script, keys: Sequence[bytes], *arguments: Any) -> asyncio.Future[Any]:
        return self._shards.call(script, keys, arguments)

    def _clock_shift_us(self) -> int:
        return 0 if self._clock is None else us(self._clock() - self._opened_at)

    async def _call_each(self, script: Script, *arguments: Any) -> Sequence[Any]:
        """Call a script at each primary, with the key of the version."""
        return await asyncio.gather(
            *(
                self._call(script, (self._keys.schema(partition),), *arguments)
                for partition in self._shards.representatives
            )
        )

    def _lifetime_us(self, room: Room) -> int:
        return us(self._retention.age_s(room) + META_LIFETIME_S)
