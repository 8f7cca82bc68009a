"""The queue of writes, and the thread that commits them.

Queued writes share a transaction (group commit), so that many publishers share one flush of the
disk.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import StoreUnavailableError
from ..base import Publication, PublishResult
from .database import Database
from .pending import AckKey, Pending, PendingValues
from .writer import DatabaseWriter, InsertResult

logger = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 64 * 1024 * 1024
"""Publishes are rejected while more than this is queued for writing."""

TRIAL_BYTES = 512 * 1024
"""A trial write of this size shows that the file is writable: room for the largest notification."""

MAINTENANCE_INTERVAL_S = 1.0
"""How often acknowledged cursors and counts are written, and how often expired entries are deleted
while nothing is published."""

_REST_S = 0.25
"""After this time without a publication, the write-ahead log is moved into the database file."""

_GROUP_BYTES = 4 * 1024 * 1024
_SWEEP, _IDLE_SWEEP = 64, 2000  # expired entries deleted per transaction


@dataclass(slots=True, eq=False)
class WriteRequest:
    """The publications of one call. Without publications, it asks for a trial write."""

    publications: Sequence[Publication]
    result: asyncio.Future[Sequence[PublishResult]]
    size: int


_Outcome = Sequence[Sequence[InsertResult]] | StoreUnavailableError


@dataclass(slots=True, eq=False)
class WriteResult:
    """The result of a transaction: its requests, and the acks and counts that are in the file."""

    requests: Sequence[WriteRequest]
    outcome: _Outcome
    acks: Mapping[AckKey, Pending]
    counts: Mapping[int, Pending]
    stopping: bool


class Health:
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


class WriteQueue:
    """Commits queued writes in one thread, and returns their results to the event loop in order.

    Attributes:
        health: whether writing works.
    """

    def __init__(
        self,
        file: Database,
        writer: DatabaseWriter,
        acks: PendingValues[AckKey],
        counts: PendingValues[int],
    ) -> None:
        """
        Args:
            file: the database.
            writer: used by the thread only, until it has ended.
            acks: acknowledged offsets, which are written once a second.
            counts: the same for broadcast counts by offset.
        """
        self._file = file
        self._writer = writer
        self._acks = acks
        self._counts = counts
        self.health = Health(f"writing {file.path}")
        self._requests: queue.SimpleQueue[WriteRequest | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._trial_bytes = TRIAL_BYTES
        self._next_trial_at = 0.0
        self._results: deque[WriteResult] = deque()
        self._arrived = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="synap-write", daemon=True)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the thread, which returns its results to this event loop."""
        self._loop = loop
        self._thread.start()

    def put(self, request: WriteRequest) -> None:
        """Queue a write.

        Raises:
            StoreUnavailableError: too much is queued.
        """
        if self._queued_bytes and self._queued_bytes + request.size > MAX_QUEUED_BYTES:
            raise StoreUnavailableError("write queue full")
        self._queued_bytes += request.size
        self._requests.put(request)

    async def next_result(self) -> WriteResult:
        """Wait for the next transaction, in the order of the file."""
        while not self._results:
            self._arrived.clear()
            await self._arrived.wait()
        result = self._results.popleft()
        self._queued_bytes -= sum(request.size for request in result.requests)
        return result

    def stop(self) -> None:
        """End the thread once all queued writes were committed."""
        self._requests.put(None)

    async def wait_stopped(self) -> None:
        """Wait until the thread has ended."""
        await asyncio.to_thread(self._thread.join)

    def _on_written(self, result: WriteResult) -> None:
        self._results.append(result)
        self._arrived.set()

    def _run(self) -> None:
        assert self._loop is not None  # noqa: S101 - set before the thread starts
        stopping = False
        maintenance_at = 0.0
        while not stopping:
            requests, stopping = self._next_group()
            due = stopping or time.monotonic() >= maintenance_at
            acks = self._acks.snapshot() if due else {}
            counts = self._counts.snapshot() if due else {}
            sweep = (
                2 * sum(len(request.publications) for request in requests) + _SWEEP
                if requests
                else _IDLE_SWEEP
            )
            size = sum(request.size for request in requests)
            outcome: _Outcome = [()] * len(requests)
            try:
                if size or acks or counts or stopping or self._writer.is_maintenance_due():
                    calls = [request.publications for request in requests]
                    outcome = self._writer.write(calls, acks, counts, sweep)
                if not size:
                    self._writer.idle()
                is_requested = any(not request.publications for request in requests)
                self._try_writing(size, is_requested=is_requested)
                if due:
                    maintenance_at = time.monotonic() + MAINTENANCE_INTERVAL_S
            except sqlite3.Error as error:
                self.health.report(str(error))
                self._trial_bytes = max(self._trial_bytes, min(2 * size, _GROUP_BYTES))
                outcome = StoreUnavailableError(f"writing the file failed: {error}")
                acks, counts = {}, {}
            except Exception as error:
                logger.exception("unhandled error in the store's writing thread; answering 503")
                outcome = StoreUnavailableError(f"the store failed: {type(error).__name__}")
                acks, counts = {}, {}
            if requests or acks or counts or stopping:
                result = WriteResult(requests, outcome, acks, counts, stopping)
                try:
                    self._loop.call_soon_threadsafe(self._on_written, result)
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
        failed = self.health.problem is not None
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
                self.health.report(str(error))
                return
        self.health.report(None)
        self._trial_bytes = TRIAL_BYTES

    def _next_group(self) -> tuple[list[WriteRequest], bool]:
        """Return the queued requests for one transaction, and whether the store is closing."""
        requests: list[WriteRequest] = []
        size = 0
        try:
            request = self._requests.get(
                timeout=_REST_S if self._file.wal_bytes else MAINTENANCE_INTERVAL_S
            )
            while request is not None:
                requests.append(request)
                size += request.size
                if size >= _GROUP_BYTES:
                    return requests, False
                request = self._requests.get_nowait()
        except queue.Empty:
            return requests, False
        return requests, True
