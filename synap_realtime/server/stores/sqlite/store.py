"""The store in one SQLite file. Published notifications survive a crash and a power failure.

One thread writes and one reads. Queued writes share a transaction (group commit), so that many
publishers share one flush of the disk. The SQL is in ``writer.py`` and
``reader.py``.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from ....protocol.cursor import Cursor
from ....protocol.rooms import Room
from ..base import (
    DeliveryHandler,
    Page,
    Publication,
    PublishResult,
    Retention,
    StoreStats,
    StoreUnavailableError,
    make_entry,
)
from ..clock import RunningClock
from .database import Database
from .errors import UNUSABLE
from .reader import LogReader
from .writer import InsertResult, LogWriter

logger = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""Publishes are rejected while more than this is queued for writing."""

CHECK_TIMEOUT_S = 2.0
"""Time for a readiness check to write and read."""

TRIAL_BYTES = 512 * 1024
"""A trial write of this size shows that the file is writable: room for the largest notification."""

MAINTENANCE_INTERVAL_S = 1.0
"""How often acknowledged cursors and counts are written, and how often expired entries are deleted
while nothing is published."""

_REST_S = 0.25
"""After this time without a publication, the write-ahead log is moved into the database file."""

_GROUP_BYTES = 4 * 1024 * 1024
_SWEEP, _IDLE_SWEEP = 64, 2000  # expired entries deleted per transaction
_YIELD_BYTES = 16 * 1024  # delivered in a row, before the event loop runs other callbacks

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _WriteRequest:
    """The publications of one call. Without publications, it asks for a trial write."""

    publications: Sequence[Publication]
    deliver: DeliveryHandler
    answer: asyncio.Future[Sequence[PublishResult]]
    size: int


_Outcome = Sequence[Sequence[InsertResult]] | StoreUnavailableError


@dataclass(slots=True, eq=False)
class _WriteResult:
    """The result of a transaction: its requests, and the acks and counts that are in the file."""

    jobs: Sequence[_WriteRequest]
    outcome: _Outcome
    acks: dict[tuple[Room, str | None], int]
    counts: dict[int, int]
    stopping: bool


class _Health:
    """Logs once that an operation fails, and once that it has recovered."""

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self.problem: str | None = None

    def report(self, problem: str | None) -> None:
        if problem is None and self.problem is not None:
            logger.warning("store recovered: %s succeeded", self._operation)
        elif problem is not None and self.problem is None:
            logger.error(
                "store unavailable: %s failed: %s; answering 503 until it recovers",
                self._operation,
                problem,
            )
        self.problem = problem


class SqliteStore:
    """Keeps the logs in one file, for one server at a time.

    Acknowledged cursors and broadcast counts are written once a second. After a crash, a cursor may
    be a second old, and a repeated publish may return a count of 0.
    """

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
            self._writer = LogWriter(self._file, retention or Retention())
            self._reader = LogReader(self._file)
        except UNUSABLE as error:
            self._file.close()
            raise self._file.to_config_error(error) from error
        self._epoch = self._writer.epoch
        self._writes = _Health(f"writing {self._file.path}")
        self._reads = _Health(f"reading {self._file.path}")
        self._jobs: queue.SimpleQueue[_WriteRequest | None] = queue.SimpleQueue()
        self._trial_bytes = TRIAL_BYTES
        self._next_trial_at = 0.0
        self._waiting_bytes = 0
        # Not yet in the file. Changed by the event loop only; the writing thread copies them.
        self._acks: dict[tuple[Room, str | None], int] = {}
        self._counts: dict[int, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._done: deque[_WriteResult] = deque()
        self._arrived = asyncio.Event()
        self._finishing: asyncio.Task[None] | None = None
        self._writing = threading.Thread(target=self._write, name="synap-write", daemon=True)
        self._reading = ThreadPoolExecutor(1, "synap-read")

    @property
    def description(self) -> str:
        return (
            f"sqlite store in {self._file.path}: notifications answered with 200 survive a crash; "
            "one server at a time"
        )

    def earliest(self) -> Cursor:
        return Cursor(self._epoch, 0)

    async def head(self, room: Room) -> Cursor:
        # Read the checkpoint first: what is committed later comes after it.
        checkpoint = self._writer.checkpoint
        return Cursor(self._epoch, await self._read(self._reader.head, room, checkpoint))

    async def publish(
        self, publications: Sequence[Publication], deliver: DeliveryHandler
    ) -> Sequence[PublishResult]:
        loop = self._started()
        size = sum(len(publication.text) for publication in publications)
        if self._waiting_bytes and self._waiting_bytes + size > MAX_QUEUED_BYTES:
            raise StoreUnavailableError("write queue full")
        self._waiting_bytes += size
        job = _WriteRequest(publications, deliver, loop.create_future(), size)
        self._jobs.put(job)
        return await job.answer

    async def check(self) -> None:
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                await self.publish((), lambda _room, _entry: 0)
                await self._read(self._reader.last_offset)
        except TimeoutError:
            raise StoreUnavailableError("writing the file timed out") from None
        if (problem := self._writes.problem) is not None:
            raise StoreUnavailableError(f"writing the file failed: {problem}")

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        foreign = after.epoch != self._epoch
        start = 0 if foreign else after.offset
        checkpoint = self._writer.checkpoint
        rows = await self._read(self._reader.page, room, start, limit, checkpoint)
        return Page(
            [make_entry(room, Cursor(self._epoch, offset), text) for offset, text in rows.entries],
            recovered=rows.recovered and not foreign,
        )

    async def get_ack(self, room: Room, device: str | None = None) -> Cursor | None:
        if device is not None and (acked := await self._device_ack(room, device)) is not None:
            return Cursor(self._epoch, acked)
        before = self._acks.get((room, None), 0)  # may move into the file during the read
        kept = await self._read(self._reader.ack, room)
        acked = max(before, kept, self._acks.get((room, None), 0))
        return Cursor(self._epoch, acked) if acked else None

    async def _device_ack(self, room: Room, device: str) -> int | None:
        before = self._acks.get((room, device))
        kept = await self._read(self._reader.device_ack, room, device)
        found = (before, kept, self._acks.get((room, device)))
        return max((acked for acked in found if acked is not None), default=None)

    def register_device(self, room: Room, device: str, position: Cursor) -> None:
        if position.epoch == self._epoch:
            self._started()
            # Move it to the end: the devices that connected first are the first to be removed.
            acked = self._acks.pop((room, device), 0)
            self._acks[room, device] = max(position.offset, acked)

    def ack(self, room: Room, position: Cursor, device: str | None = None) -> None:
        if position.epoch != self._epoch:
            return
        for key in {(room, None), (room, device)}:
            if position.offset > self._acks.get(key, 0):
                self._acks.pop(key, None)
                self._acks[key] = position.offset

    async def usage(self) -> StoreStats:
        return await self._read(self._reader.usage)

    async def close(self) -> None:
        if self._finishing is not None:
            self._jobs.put(None)
            await self._finishing
            await asyncio.to_thread(self._writing.join)
        self._reading.shutdown()
        self._reader.close()
        self._writer.close()
        self._file.close()

    async def _read(self, query: Callable[P, T], *arguments: P.args, **_: P.kwargs) -> T:
        try:
            result = await self._started().run_in_executor(
                self._reading, lambda: self._reader.run(query, *arguments, **_)
            )
        except sqlite3.Error as error:
            self._reads.report(str(error))
            raise StoreUnavailableError(f"reading the file failed: {error}") from error
        self._reads.report(None)
        return result

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._finishing = self._loop.create_task(self._completion_loop())
            self._writing.start()
        return self._loop

    # --- the writing thread ---------------------------------------------------------------------

    def _write(self) -> None:
        assert self._loop is not None  # noqa: S101 - set before the thread starts
        stopping = False
        maintenance_at = 0.0
        while not stopping:
            jobs, stopping = self._next_group()
            due = stopping or time.monotonic() >= maintenance_at
            acks = self._acks.copy() if due else {}
            counts = self._counts.copy() if due else {}
            sweep = 2 * sum(len(job.publications) for job in jobs) + _SWEEP if jobs else _IDLE_SWEEP
            size = sum(job.size for job in jobs)
            outcome: _Outcome = [()] * len(jobs)
            try:
                if size or acks or counts or stopping or self._writer.is_maintenance_due():
                    calls = [job.publications for job in jobs]
                    outcome = self._writer.write(calls, acks, counts, sweep)
                if not size:
                    self._writer.idle()
                is_requested = any(not job.publications for job in jobs)
                self._try_writing(size, is_requested=is_requested)
                if due:
                    maintenance_at = time.monotonic() + MAINTENANCE_INTERVAL_S
            except sqlite3.Error as error:
                self._writes.report(str(error))
                self._trial_bytes = max(self._trial_bytes, min(2 * size, _GROUP_BYTES))
                outcome = StoreUnavailableError(f"writing the file failed: {error}")
                acks, counts = {}, {}
            except Exception as error:
                logger.exception("unhandled error in the store's writing thread; answering 503")
                outcome = StoreUnavailableError(f"the store failed: {type(error).__name__}")
                acks, counts = {}, {}
            if jobs or acks or counts or stopping:
                done = _WriteResult(jobs, outcome, acks, counts, stopping)
                try:
                    self._loop.call_soon_threadsafe(self._on_written, done)
                except RuntimeError:  # the event loop is closed
                    return

    def _try_writing(self, written: int, *, is_requested: bool) -> None:
        """Check with a trial write that the file is writable, after a failure or on request.

        A full disk may still accept a few bytes, so a failure ends only once as much was written as
        had failed. Without a failure, nothing is written while the disk has space.

        Args:
            written: bytes of publications that were just written.
            is_requested: a readiness check asks for it.
        """
        failed = self._writes.problem is not None
        if not (failed or is_requested):
            return
        if not (failed and written >= self._trial_bytes):
            now = time.monotonic()
            if now < self._next_trial_at:
                return
            self._next_trial_at = now + MAINTENANCE_INTERVAL_S
            try:
                self._writer.try_writing(self._trial_bytes, only_if_nearly_full=not failed)
            except sqlite3.Error as error:
                self._writes.report(str(error))
                return
        self._writes.report(None)
        self._trial_bytes = TRIAL_BYTES

    def _next_group(self) -> tuple[list[_WriteRequest], bool]:
        """Return the queued requests for one transaction, and whether the store is closing."""
        jobs: list[_WriteRequest] = []
        size = 0
        try:
            job = self._jobs.get(
                timeout=_REST_S if self._file.log_bytes else MAINTENANCE_INTERVAL_S
            )
            while job is not None:
                jobs.append(job)
                size += job.size
                if size >= _GROUP_BYTES:
                    return jobs, False
                job = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, False
        return jobs, True

    # --- the event loop -------------------------------------------------------------------------

    def _on_written(self, done: _WriteResult) -> None:
        self._done.append(done)
        self._arrived.set()

    async def _completion_loop(self) -> None:
        """Deliver written publications and answer their publishers, in the order of the file."""
        stopping = False
        while not stopping:
            while not self._done:
                self._arrived.clear()
                await self._arrived.wait()
            done = self._done.popleft()
            for key, acked in done.acks.items():
                if self._acks.get(key) == acked:
                    del self._acks[key]
            for number, job in enumerate(done.jobs):
                self._waiting_bytes -= job.size
                if isinstance(done.outcome, StoreUnavailableError):
                    if not job.answer.done():
                        job.answer.set_exception(done.outcome)
                else:
                    receipts = await self._deliver(job, done.outcome[number])
                    if not job.answer.done():
                        job.answer.set_result(receipts)
            # Only now: a duplicate in these requests was read before its count was written.
            for offset, count in done.counts.items():
                if self._counts.get(offset) == count:
                    del self._counts[offset]
            stopping = done.stopping

    async def _deliver(
        self, job: _WriteRequest, kept: Sequence[InsertResult]
    ) -> Sequence[PublishResult]:
        receipts = []
        unread = 0
        for publication, place in zip(job.publications, kept, strict=True):
            cursor = Cursor(self._epoch, place.offset)
            if place.duplicate:
                count = self._counts.get(place.offset, place.count)
            else:
                entry = make_entry(publication.room, cursor, publication.text)
                try:
                    count = job.deliver(publication.room, entry)
                except Exception:  # a broken handler must not stop the completion loop
                    logger.exception("delivery to room %s failed; continuing", publication.room)
                    count = 0
                if count:
                    self._counts[place.offset] = count
                unread += entry.size
                if unread > _YIELD_BYTES:
                    unread = 0
                    await asyncio.sleep(0)
            receipts.append(PublishResult(publication.id, cursor, count, place.duplicate))
        return receipts
