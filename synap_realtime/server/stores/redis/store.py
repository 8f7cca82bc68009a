"""Keep logs in Redis or Valkey, for all nodes that use the same prefix."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ....protocol.cursor import Cursor
from ....protocol.rooms import Room, is_control_room
from ...errors import StoreUnavailableError
from ..base import (
    DEVICE_AGE_S,
    MAX_DEVICES,
    DeliveryHandler,
    GapHandler,
    LinkStats,
    Page,
    Publication,
    PublishResult,
    RateDemand,
    RateGrant,
    Retention,
    StoreStats,
    Survey,
    SurveyHandler,
    ignore_gap,
    make_entry,
)
from ..folds import with_offset
from .address import RedisAddress
from .durability import PROMISES
from .folded import fold_arguments, parse_conflict, read_entry
from .jobs import MAX_ATTEMPTS, JobChanges, JobReader
from .keys import ALL_PARTITIONS, SCHEMA_VERSION, KeySpace, describe_other_version
from .live_rooms import LiveRooms
from .log_scripts import HEAD, READ
from .membership import Membership
from .presence import SharedPresence
from .publish_script import PUBLISH
from .rates import take_rates
from .script import Script, us
from .scripts import ACK, CHECK, CLAIM, GET_ACK, RENEW, SEND, USAGE
from .shards import Shards
from .survey import RedisSurveys
from .tasks import Tasks
from .user_connections import UserConnections

logger = logging.getLogger(__name__)

META_LIFETIME_S = 7 * 86_400.0
"""How long the positions of a room are kept after its last notification has expired. A cursor that
is older is answered with ``recovered: false``."""

_ACK_DELAY_S = 0.05


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
        self._call_prefix = secrets.token_hex(6).encode()
        self._call_numbers = itertools.count()
        self._publish_options = lru_cache(16_384)(self._get_publish_options)
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
        self._jobs = JobChanges(self._retention)
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
        self._acks: dict[Room, dict[tuple[str, str], int]] = {}  # device and epoch to offset
        self._ack_timer: asyncio.TimerHandle | None = None

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

    def publish(
        self, publications: Sequence[Publication]
    ) -> Coroutine[Any, Any, Sequence[PublishResult]]:
        results: list[Any] = [None] * len(publications)
        for each in publications:
            if each.job is not None:
                return self._publish_jobs(publications, results)
        return self._publish_once(publications, range(len(publications)), results, [])

    async def _publish_jobs(
        self, publications: Sequence[Publication], results: list[Any]
    ) -> Sequence[PublishResult]:
        # What was refused is stored also if this is cancelled.
        await asyncio.shield(self._tasks.spawn(self._publish_again(publications, results)))
        return results

    async def _publish_again(self, publications: Sequence[Publication], results: list[Any]) -> None:
        """Publish, and publish again what was refused because a record has changed."""
        jobs = [(each.room, each.job) for each in publications if each.job is not None]
        waiting: Sequence[int] = range(len(publications))
        try:
            attempts = MAX_ATTEMPTS
            while attempts:
                refused: list[int] = []
                await self._publish_once(publications, waiting, results, refused)
                if not refused:
                    return
                # A conflict ends an attempt, too: the next events were folded into its record.
                attempts = MAX_ATTEMPTS if len(refused) < len(waiting) else attempts - 1
                waiting = refused
            raise StoreUnavailableError("other nodes change the record of a job at the same time")
        except StoreUnavailableError:
            for room, job in jobs:
                self._jobs.forget(room, job)
            raise
        finally:
            for room, job in jobs:
                self._jobs.settle(room, job)

    async def _publish_once(
        self,
        publications: Sequence[Publication],
        numbers: Sequence[int],
        results: list[Any],
        refused: list[int],
    ) -> Sequence[PublishResult]:
        """Publish some publications.

        Args:
            numbers: which.
            results: gets their results, and is returned.
            refused: gets the numbers of those that were refused, and have no result.
        """
        name = b"%b%x" % (self._call_prefix, next(self._call_numbers))
        self._rooms.publishing[name] = publications
        # All are called before one is awaited. If this is cancelled, they are stored nevertheless.
        calls = [
            (together, self._send(name, publications, together))
            for together in self._groups(publications, numbers)
        ]
        problem: StoreUnavailableError | None = None
        try:
            for together, reply in calls:
                try:
                    rows = await reply
                except StoreUnavailableError as error:
                    problem = error
                    continue
                for number, row in zip(together, rows, strict=True):
                    results[number] = self._has_published(publications[number], row)
                    if results[number] is None:
                        refused.append(number)
        finally:
            del self._rooms.publishing[name]
            for _, reply in calls:
                reply.cancel()  # nobody waits for it, if this was cancelled
        if problem is not None:
            raise problem
        return results

    def _groups(
        self, publications: Sequence[Publication], numbers: Sequence[int]
    ) -> Collection[Sequence[int]]:
        """Return the numbers of those that share a call: in a cluster, of one partition."""
        if not self._address.is_cluster:
            return [numbers]
        by_partition: defaultdict[int, list[int]] = defaultdict(list)
        for number in numbers:
            by_partition[self._keys.of_room(publications[number].room).partition].append(number)
        return by_partition.values()

    def _send(
        self, name: bytes, publications: Sequence[Publication], numbers: Iterable[int]
    ) -> asyncio.Future[Any]:
        """Call PUBLISH for some publications."""
        keys: list[bytes] = []
        arguments: list[bytes] = []
        unit_starts: list[int] = []  # empty while all are as long
        for number in numbers:
            room, id, text, _, fold, job = publications[number]
            room_keys = self._keys.of_room(room)
            if job is not None and is_control_room(room):
                job = None
            is_plain = fold is None and job is None
            if unit_starts or not is_plain:
                if not unit_starts:
                    unit_starts.extend(range(0, len(keys), PUBLISH.unit_keys))
                unit_starts.append(len(keys))
            call = b"%b:%d" % (name, number)
            keys += (room_keys.state, room_keys.log, room_keys.meta, room_keys.dedupe + id.encode())
            if is_plain:
                arguments += (*self._publish_options(room), call, text.encode())
                continue
            arguments += (b"fold" if job is None else b"job", *self._publish_options(room))
            arguments += (call, text.encode(), *fold_arguments(text, fold))
            keys += (room_keys.folds, room_keys.jobs)
            if job is not None:
                keys += (room_keys.job_index, room_keys.job_times)
                arguments += self._jobs.arguments(room, job, call)
        return self._shards.call(PUBLISH, keys, arguments, unit_starts)

    def _has_published(self, publication: Publication, row: bytes) -> PublishResult | None:
        """Return the result of a publication; None if it was refused."""
        if publication.fold is not None or row[:1] == b"~":
            return self._has_folded(publication, row)
        offset, previous, count, is_duplicate, epoch = row.split()
        cursor = Cursor(epoch.decode(), int(offset))
        duplicate = is_duplicate == b"1"
        if not duplicate:
            self._rooms.has_published(cursor, int(previous), publication)
        return PublishResult(publication.id, cursor, int(count), duplicate)

    def _has_folded(self, publication: Publication, row: bytes) -> PublishResult | None:
        fold = publication.fold
        if row.startswith(b"~"):
            if publication.job is not None:
                self._jobs.correct(publication.room, publication.job, row)
            return None
        assert fold is not None  # noqa: S101 - nothing else is different
        if row.startswith(b"!"):
            conflict = parse_conflict(fold, row)
            return PublishResult(publication.id, self.earliest(), 0, False, conflict)
        offset, previous, count, is_duplicate, epoch, *piece_offset = row.split()
        cursor = Cursor(epoch.decode(), int(offset))
        if piece_offset:
            placed = fold.placed_at(int(piece_offset[0]))
            text = with_offset(publication.text, placed)
            live = publication._replace(text=text, fold=placed)
            self._rooms.has_published(cursor, int(previous), live)
        return PublishResult(publication.id, cursor, int(count), is_duplicate == b"1")

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

    async def get_ack(self, room: Room, device: str | None = None) -> Cursor | None:
        self._send_acks(room)
        keys = self._keys.of_room(room)
        [found] = await self._call(GET_ACK, (keys.acks,), device or "", us(DEVICE_AGE_S))
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
        await self._rooms.join(room)

    def leave(self, room: Room) -> None:
        self._send_acks(room)  # the client may reconnect to another node
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
        if self._ack_timer is not None:
            self._ack_timer.cancel()
        for room in list(self._acks):
            self._send_acks(room)
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
        reply = self._call(ACK, (keys.state, keys.acks), MAX_DEVICES, us(DEVICE_AGE_S), *rows)
        self._tasks.spawn(self._repeat_failed_acks(reply, room, noted))

    async def _repeat_failed_acks(
        self, reply: asyncio.Future[Any], room: Room, noted: dict[tuple[str, str], int]
    ) -> None:
        try:
            await reply
        except StoreUnavailableError:
            for (name, epoch), offset in noted.items():
                self._note_ack(room, name, Cursor(epoch, offset))

    def _get_publish_options(self, room: Room) -> tuple[bytes, bytes, bytes]:
        retention = self._retention
        return (
            b"%d" % retention.count_of(room),
            b"%d" % (us(retention.dedupe_window_s) // 1000),
            b"%d %d" % (us(retention.age_s(room)) // 1000, self._lifetime_us(room) // 1000),
        )

    def _lifetime_us(self, room: Room) -> int:
        return us(self._retention.age_s(room) + META_LIFETIME_S)
