"""Publishing: which calls of PUBLISH store some publications, and what their replies mean."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from functools import lru_cache
from typing import Any

from ....protocol.cursor import Cursor
from ....protocol.rooms import Room, is_control_room
from ...errors import StoreUnavailableError
from ..base import Publication, PublishResult, Retention
from ..folds import with_offset
from .folded import fold_arguments, parse_conflict
from .jobs import MAX_ATTEMPTS, JobChanges
from .keys import KeySpace
from .live_rooms import LiveRooms
from .publish_script import PUBLISH
from .script import us
from .tasks import Tasks

_NOT_STORED = Cursor("0", 0)


class Publisher:
    """Stores publications, and hands those of live rooms over."""

    def __init__(
        self,
        keys: KeySpace,
        call: Callable[..., asyncio.Future[Any]],
        tasks: Tasks,
        rooms: LiveRooms,
        retention: Retention,
        lifetime_us: Callable[[Room], int],
        *,
        is_cluster: bool,
    ) -> None:
        """
        Args:
            call: calls a script with keys, arguments, and where units begin.
            lifetime_us: how long the positions of a room are kept, in microseconds.
        """
        self._keys = keys
        self._call = call
        self._tasks = tasks
        self._rooms = rooms
        self._retention = retention
        self._lifetime_us = lifetime_us
        self._is_cluster = is_cluster
        self._call_prefix = secrets.token_hex(6).encode()
        self._call_numbers = itertools.count()
        self._options = lru_cache(16_384)(self._get_options)
        self._jobs = JobChanges(retention)

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
            (together, self.send(name, publications, together))
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
                    results[number] = self.result_of(publications[number], row)
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
        if not self._is_cluster:
            return [numbers]
        by_partition: defaultdict[int, list[int]] = defaultdict(list)
        for number in numbers:
            by_partition[self._keys.of_room(publications[number].room).partition].append(number)
        return by_partition.values()

    def send(
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
                arguments += (*self._options(room), call, text.encode())
                continue
            arguments += (b"fold" if job is None else b"job", *self._options(room))
            arguments += (call, text.encode(), *fold_arguments(text, fold))
            keys += (room_keys.folds, room_keys.jobs)
            if job is not None:
                keys += (room_keys.job_index, room_keys.job_times)
                arguments += self._jobs.arguments(room, job, call)
        return self._call(PUBLISH, keys, arguments, unit_starts)

    def result_of(self, publication: Publication, row: bytes) -> PublishResult | None:
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
            return PublishResult(publication.id, _NOT_STORED, 0, False, conflict)
        offset, previous, count, is_duplicate, epoch, *piece_offset = row.split()
        cursor = Cursor(epoch.decode(), int(offset))
        if piece_offset:
            placed = fold.placed_at(int(piece_offset[0]))
            text = with_offset(publication.text, placed)
            live = publication._replace(text=text, fold=placed)
            self._rooms.has_published(cursor, int(previous), live)
        return PublishResult(publication.id, cursor, int(count), is_duplicate == b"1")

    def _get_options(self, room: Room) -> tuple[bytes, bytes, bytes]:
        retention = self._retention
        return (
            b"%d" % retention.count_of(room),
            b"%d" % (us(retention.dedupe_window_s) // 1000),
            b"%d %d" % (us(retention.age_s(room)) // 1000, self._lifetime_us(room) // 1000),
        )
