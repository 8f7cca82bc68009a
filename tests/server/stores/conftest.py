"""Fixtures that run each test that takes ``stores`` on every store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from synap_realtime.server.stores.base import Retention, Store
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.server.stores.sqlite.store import SqliteStore

OpenStore = Callable[..., Store]


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
async def open_store(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[OpenStore]:
    """Make an empty store with the test's clock; it is closed at the end."""
    opened: list[Store] = []

    def opener(**retention: float) -> Store:
        kept = Retention(**retention)  # type: ignore[arg-type]
        store: Store = (
            MemoryStore(kept, clock=clock)
            if request.param == "memory"
            else SqliteStore(tmp_path / f"{len(opened)}.db", kept, clock=clock)
        )
        opened.append(store)
        return store

    yield opener
    for store in opened:
        await store.close()
