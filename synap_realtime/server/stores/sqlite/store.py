"""The store in one SQLite file. Published notifications survive a crash and a power failure.

One thread writes and one reads; ``write_queue.py`` has the writing one. The SQL is in
``writer.py`` and ``reader.py``.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from ....protocol.cursor import Cursor
from ....protocol.rooms import Room
from ...errors import StoreUnavailableError
from ..base import (
    DeliveryHandler,
    GapHandler,
    JobPage,
    JobQuery,
    JobSnapshot,
    Page,
    Publication,
    PublishResult,
    Retention,
    StoreStats,
    deliver_to_nobody,
    ignore_gap,
    make_entry,
)
from ..clock import RunningClock
from ..folds import with_offset
from .database import DATABASE_ERRORS, Database
from .pending import AckKey, PendingValues
from .reader import DatabaseReader
from .write_queue import Health, WriteQueue, WriteRequest
from .writer import DatabaseWriter, InsertResult

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 2.0
"""Time for a readiness check to write and read."""

_YIELD_BYTES = 16 * 1024  # delivered in a row, before the event loop runs other callbacks

P = ParamSpec("P")
T = TypeVar("T")


class SqliteStore:
    """Keeps the logs in one file, for one server at a time.

    Acknowledged cursors and broadcast counts are written once a second. After a crash, a cursor may
    be a second old, and a repeated publish may return a count of 0.
    """

    runs_without_task = True

    def __init__(
        self,
        path: str | Path,
        retention: Retention | None = None,
        *,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Open the file, or create it.

        Args:
            path: the database file.
            retention: how long notifications are kept.
            clock: seconds from any origin, which determine the age of entries; default: running
                time.

        Raises:
            ConfigurationError: the file cannot be used. The message names the cause and the fix.
        """
        self._file = Database(Path(path), clock or RunningClock())
        try:
            self._writer = DatabaseWriter(self._file, retention or Retention())
            self._reader = DatabaseReader(self._file)
        except DATABASE_ERRORS as error:
            self._file.close()
            raise self._file.to_config_error(error) from error
        self._epoch = self._writer.epoch
        self._acks: PendingValues[AckKey] = PendingValues()
        self._counts: PendingValues[int] = PendingValues()
        self._queue = WriteQueue(self._file, self._writer, self._acks, self._counts)
        self._reads = Health(f"reading {self._file.path}")
        self._handler: DeliveryHandler = deliver_to_nobody
        self._loop: asyncio.AbstractEventLoop | None = None
        self._completing: asyncio.Task[None] | None = None
        self._executor = ThreadPoolExecutor(1, "synap-read")

    @property
    def description(self) -> str:
        return (
            f"sqlite store in {self._file.path}: notifications answered with 200 survive a crash; "
            "one server at a time"
        )

    def subscribe(self, handler: DeliveryHandler, on_gap: GapHandler = ignore_gap) -> None:  # noqa: ARG002 - it loses nothing
        self._handler = handler

    async def join(self, room: Room) -> None:
        pass  # the entries of all rooms are delivered

    def leave(self, room: Room) -> None:
        pass

    def earliest(self) -> Cursor:
        return Cursor(self._epoch, 0)

    async def head(self, room: Room) -> Cursor:
        # Read this first: what is committed later comes after it.
        idle_head = self._writer.idle_head
        return Cursor(self._epoch, await self._read(self._reader.head, room, idle_head))

    async def publish(self, publications: Sequence[Publication]) -> Sequence[PublishResult]:
        loop = self._ensure_started()
        size = sum(len(publication.text) for publication in publications)
        request = WriteRequest(publications, loop.create_future(), size)
        self._queue.put(request)
        return await request.result

    async def check(self) -> None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self.publish(())
                await self._read(self._reader.last_offset)
        except TimeoutError:
            raise StoreUnavailableError("writing the file timed out") from None
        if (problem := self._queue.health.problem) is not None:
            raise StoreUnavailableError(f"writing the file failed: {problem}")

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        foreign = after.epoch != self._epoch
        start = 0 if foreign else after.offset
        idle_head = self._writer.idle_head
        rows = await self._read(self._reader.page, room, start, limit, idle_head)
        return Page(
            [
                make_entry(room, Cursor(self._epoch, offset), text, fold)
                for offset, text, fold in rows.entries
            ],
            recovered=rows.recovered and not foreign,
            ends_early=rows.ends_early,
        )

    async def get_ack(self, room: Room, device: str | None = None) -> Cursor | None:
        if device is not None and (acked := await self._device_ack(room, device)) is not None:
            return Cursor(self._epoch, acked)
        before = self._acks.get((room, None)) or 0  # may move into the file during the read
        stored = await self._read(self._reader.ack, room)
        acked = max(before, stored, self._acks.get((room, None)) or 0)
        return Cursor(self._epoch, acked) if acked else None

    async def _device_ack(self, room: Room, device: str) -> int | None:
        before = self._acks.get((room, device))
        stored = await self._read(self._reader.device_ack, room, device)
        found = (before, stored, self._acks.get((room, device)))
        return max((acked for acked in found if acked is not None), default=None)

    def register_device(self, room: Room, device: str, position: Cursor) -> None:
        if position.epoch == self._epoch:
            self._ensure_started()
            # Even if unchanged: the devices that connected first are the first to be removed.
            acked = self._acks.get((room, device)) or 0
            self._acks.set((room, device), max(position.offset, acked))

    def ack(self, room: Room, position: Cursor, device: str | None = None) -> None:
        if position.epoch != self._epoch:
            return
        for key in {(room, None), (room, device)}:
            if position.offset > (self._acks.get(key) or 0):
                self._acks.set(key, position.offset)

    async def get_job(self, room: Room, job_id: str) -> JobSnapshot:
        idle_head = self._writer.idle_head
        record, head = await self._read(self._reader.job, room, job_id, idle_head)
        return JobSnapshot(record, Cursor(self._epoch, head))

    async def list_jobs(self, room: Room, query: JobQuery) -> JobPage:
        idle_head = self._writer.idle_head
        records, more, head = await self._read(self._reader.jobs, room, query, idle_head)
        return JobPage(records, Cursor(self._epoch, head), more)

    async def usage(self) -> StoreStats:
        return await self._read(self._reader.usage)

    async def close(self) -> None:
        if self._completing is not None:
            self._queue.stop()
            await self._completing
            await self._queue.wait_stopped()
        self._executor.shutdown()
        self._reader.close()
        self._writer.close()
        self._file.close()

    async def _read(self, query: Callable[P, T], *arguments: P.args, **_: P.kwargs) -> T:
        try:
            result = await self._ensure_started().run_in_executor(
                self._executor, lambda: self._reader.run(query, *arguments, **_)
            )
        except sqlite3.Error as error:
            self._reads.report(str(error))
            raise StoreUnavailableError(f"reading the file failed: {error}") from error
        self._reads.report(None)
        return result

    def _ensure_started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._completing = self._loop.create_task(self._completion_loop())
            self._queue.start(self._loop)
        return self._loop

    async def _completion_loop(self) -> None:
        """Deliver written publications and answer their publishers, in the order of the file."""
        stopping = False
        while not stopping:
            result = await self._queue.next_result()
            self._acks.discard(result.acks)
            for number, request in enumerate(result.requests):
                if isinstance(result.outcome, StoreUnavailableError):
                    if not request.result.done():
                        request.result.set_exception(result.outcome)
                else:
                    results = await self._deliver(request, result.outcome[number])
                    if not request.result.done():
                        request.result.set_result(results)
            # Only now: a duplicate in these requests was read before its count was written.
            self._counts.discard(result.counts)
            stopping = result.stopping

    async def _deliver(
        self, request: WriteRequest, stored: Sequence[InsertResult]
    ) -> Sequence[PublishResult]:
        results = []
        bytes_since_yield = 0
        for publication, row in zip(request.publications, stored, strict=True):
            cursor = Cursor(self._epoch, row.offset)
            if row.duplicate or row.conflict is not None:
                pending = self._counts.get(row.offset)
                count = row.count if pending is None else pending
            else:
                text, fold = publication.text, row.fold
                if fold is not None:
                    text = with_offset(text, fold)
                entry = make_entry(publication.room, cursor, text, fold)
                try:
                    count = self._handler(publication.room, entry, publication.published_at)
                except Exception:  # a broken handler must not stop the completion loop
                    logger.exception("delivery to room %s failed; continuing", publication.room)
                    count = 0
                if count:
                    self._counts.set(row.offset, count)
                bytes_since_yield += entry.size
                if bytes_since_yield > _YIELD_BYTES:
                    bytes_since_yield = 0
                    await asyncio.sleep(0)
            results.append(
                PublishResult(publication.id, cursor, count, row.duplicate, row.conflict)
            )
        return results
