"""Stores for tests, and publishing to a store and reading it."""

from __future__ import annotations

import json

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import (
    DeliveryHandler,
    Entry,
    GapHandler,
    Publication,
    PublishResult,
    Retention,
    Store,
    ignore_gap,
)
from synap_realtime.server.stores.memory import MemoryStore

USER = Room("user_1")


def publication(id: str, room: Room = USER, size: int = 0) -> Publication:
    return Publication(room, id, json.dumps({"type": "a", "id": id, "data": {"x": "x" * size}}))


async def publish(
    store: Store, id: str, room: Room = USER, *, size: int = 0, count: int | None = None
) -> PublishResult:
    """Publish one notification.

    Args:
        count: how many subscribers it reaches; by default the store's own delivery handler says it.
    """
    if count is not None:
        store.subscribe(lambda _room, _entry, _published_at: count)
    (result,) = await store.publish([publication(id, room, size)])
    return result


async def ids(store: Store, room: Room = USER, after: Cursor | None = None) -> list[str]:
    """Return the ids of a room's log after a cursor, or of all of it."""
    page = await store.read(room, after or store.earliest(), 10_000)
    return [json.loads(entry.text)["id"] for entry in page.entries]


class LateStore(MemoryStore):
    """A store that delivers a while after the entry can be read, as one on disk may."""

    def __init__(self, retention: Retention | None = None) -> None:
        super().__init__(retention)
        self.late: list[tuple[Room, Entry]] = []
        self.handler: DeliveryHandler

    def subscribe(self, handler: DeliveryHandler, on_gap: GapHandler = ignore_gap) -> None:
        self.handler = handler
        super().subscribe(self._later, on_gap)

    def _later(self, room: Room, entry: Entry, published_at: float | None) -> int:
        self.late.append((room, entry))
        return 1

    def release(self) -> None:
        late, self.late = self.late, []
        for room, entry in late:
            self.handler(room, entry, None)
