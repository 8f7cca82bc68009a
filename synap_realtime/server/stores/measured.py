"""A store whose calls are timed."""

from __future__ import annotations

from collections.abc import Sequence

from ...protocol.cursor import Cursor
from ...protocol.rooms import Room
from ..metrics import Metrics
from .base import Deliver, Page, Publication, Receipt, Store, Usage


class MeasuredStore:
    """Another store; what it does is counted."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store = store
        self._operation = metrics.store_operation
        # What never waits is not timed.
        self.earliest = store.earliest
        self.start_device = store.start_device
        self.advance_received_mark = store.advance_received_mark
        self.close = store.close

    @property
    def promise(self) -> str:
        return self._store.promise

    async def publish(
        self, publications: Sequence[Publication], deliver: Deliver
    ) -> Sequence[Receipt]:
        with self._operation("publish"):
            return await self._store.publish(publications, deliver)

    async def head(self, room: Room) -> Cursor:
        return await self._store.head(room)

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        with self._operation("read"):
            return await self._store.read(room, after, limit)

    async def received_mark(self, room: Room, device: str | None = None) -> Cursor | None:
        with self._operation("received_mark"):
            return await self._store.received_mark(room, device)

    async def check(self) -> None:
        with self._operation("check"):
            await self._store.check()

    async def usage(self) -> Usage:
        return await self._store.usage()
