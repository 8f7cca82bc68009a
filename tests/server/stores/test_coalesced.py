"""Equal reads of one iteration of the event loop are one call of the store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.metrics import Metrics
from synap_realtime.server.stores.base import Page, Publication
from synap_realtime.server.stores.coalesced import Coalesced
from synap_realtime.server.stores.instrumented import InstrumentedStore
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.support.timeouts import TIMEOUT_S

ROOM, OTHER = Room("workspace_1"), Room("workspace_2")


class Call:
    """A call that waits until the test ends it.

    Attributes:
        begun: the arguments of each.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.may_end = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, name: str) -> int:
        self.begun.append(name)
        number = len(self.begun)
        await self.may_end.wait()
        if self.error is not None:
            raise self.error
        return number


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_equal_calls_of_an_iteration_are_one() -> None:
    call = Call()
    shared = Coalesced(call)
    waiting = [asyncio.create_task(shared(name)) for name in ("a", "b", "a", "a")]
    await settle()
    assert call.begun == ["a", "b"]
    call.may_end.set()
    assert [await each for each in waiting] == [1, 2, 1, 1]


async def test_a_call_that_has_begun_is_not_shared() -> None:
    """Its result may lack what was published since."""
    call = Call()
    shared = Coalesced(call)
    first = asyncio.create_task(shared("a"))
    await settle()
    second = asyncio.create_task(shared("a"))
    await settle()
    call.may_end.set()
    assert [await first, await second] == [1, 2]


async def test_cancelling_one_does_not_cancel_the_others() -> None:
    call = Call()
    shared = Coalesced(call)
    gone, here = (asyncio.create_task(shared("a")) for _ in range(2))
    await settle()
    gone.cancel()
    await settle()
    call.may_end.set()
    assert await here == 1
    assert gone.cancelled()


async def test_an_error_reaches_all() -> None:
    call = Call()
    call.error = ValueError("broken")
    call.may_end.set()
    results = await asyncio.gather(*map(Coalesced(call), ["a", "a"]), return_exceptions=True)
    assert results == [call.error, call.error]
    assert call.begun == ["a"]


class CountingSqliteStore(SqliteStore):
    """Counts its reads."""

    reads = 0

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        self.reads += 1
        return await super().read(room, after, limit)


async def test_one_read_of_the_log_serves_all_who_come_back_to_a_room(tmp_path: Path) -> None:
    inner = CountingSqliteStore(tmp_path / "log.db")
    store = InstrumentedStore(inner, Metrics("test", 0))
    await store.publish([Publication(room, f"n{room}", '{"id":"n"}') for room in (ROOM, OTHER)])
    async with asyncio.timeout(TIMEOUT_S):
        pages: Sequence[Page] = await asyncio.gather(
            *[store.read(room, store.earliest(), 10) for room in (ROOM, OTHER) * 20]
        )
    assert inner.reads == 2
    assert [page.entries[0].cursor.offset > 0 for page in pages] == [True] * 40
    await store.close()


@pytest.mark.parametrize("name", ["head", "read"])
async def test_a_store_that_does_not_wait_is_read_directly(name: str) -> None:
    store = InstrumentedStore(MemoryStore(), Metrics("test", 0))
    assert not isinstance(getattr(store, name), Coalesced)
    await store.close()
