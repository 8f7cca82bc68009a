"""A store that coalesces equal reads, and records the duration and the failures of operations."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from time import perf_counter
from typing import TypeVar

from ...protocol.cursor import Cursor
from ...protocol.rooms import Room
from ..metrics import Metrics
from .base import (
    JobPage,
    JobQuery,
    JobSnapshot,
    JobStore,
    Page,
    Publication,
    PublishResult,
    Store,
    StoreStats,
    reads_immediately,
)
from .coalesced import Coalesced

_T = TypeVar("_T")


class InstrumentedStore:
    """Wraps a store, coalesces equal reads that wait, and records what may block.

    It reads jobs only if the store is a :class:`~.base.JobStore`.
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._publishing = metrics.store_operation("publish")
        self._reading = metrics.store_operation("read")
        if isinstance(store, JobStore):
            self._jobs = store
        self.head, self.read = store.head, self._read
        if not reads_immediately(store):
            self.head, self.read = Coalesced(store.head), Coalesced(self._read)
        self.subscribe = store.subscribe
        self.join = store.join
        self.leave = store.leave
        self.earliest = store.earliest
        self.register_device = store.register_device
        self.ack = store.ack
        self.close = store.close

    @property
    def description(self) -> str:
        return self._store.description

    async def publish(self, publications: Sequence[Publication]) -> Sequence[PublishResult]:
        began_at = perf_counter()
        try:
            return await self._store.publish(publications)
        except Exception:
            self._metrics.store_failed("publish")
            raise
        finally:
            self._publishing.observe(perf_counter() - began_at)

    async def _read(self, room: Room, after: Cursor, limit: int) -> Page:
        began_at = perf_counter()
        try:
            return await self._store.read(room, after, limit)
        except Exception:
            self._metrics.store_failed("read")
            raise
        finally:
            self._reading.observe(perf_counter() - began_at)

    async def get_job(self, room: Room, job_id: str) -> JobSnapshot:
        return await self._timed("get_job", self._jobs.get_job(room, job_id))

    async def list_jobs(self, room: Room, query: JobQuery) -> JobPage:
        return await self._timed("list_jobs", self._jobs.list_jobs(room, query))

    async def get_ack(self, room: Room, device: str | None = None) -> Cursor | None:
        return await self._timed("get_ack", self._store.get_ack(room, device))

    async def check(self) -> None:
        await self._timed("check", self._store.check())

    async def _timed(self, name: str, call: Awaitable[_T]) -> _T:
        began_at = perf_counter()
        try:
            return await call
        except Exception:
            self._metrics.store_failed(name)
            raise
        finally:
            self._metrics.store_operation(name).observe(perf_counter() - began_at)

    async def usage(self) -> StoreStats:
        return await self._store.usage()
