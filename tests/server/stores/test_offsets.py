"""Cursors of one room disclose nothing about another."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Store
from synap_realtime.server.stores.sqlite import writer
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.support.stores import ids, publication, publish

from .conftest import OpenStore

MINE, QUIET = Room("user_mine"), Room("user_quiet")


async def publish_elsewhere(store: Store, count: int) -> None:
    """Publish to a separate room each time, as a busy server does."""
    for n in range(count):
        await publish(store, f"n{n}", Room(f"user_other{n}"))


async def test_cursors_do_not_count_the_publishes_of_other_rooms(open_store: OpenStore) -> None:
    store = open_store()
    first = await publish(store, "a", MINE)
    await publish_elsewhere(store, 3)
    await asyncio.sleep(0.05)
    second = await publish(store, "b", MINE)
    assert second.cursor.offset - first.cursor.offset >= 50_000  # microseconds, not publishes


async def test_the_head_of_a_quiet_room_does_not_count_the_publishes_of_other_rooms(
    open_store: OpenStore,
) -> None:
    store = open_store()
    before = await store.head(QUIET)
    await publish_elsewhere(store, 3)
    await asyncio.sleep(0.05)
    after = await store.head(QUIET)
    assert after == before or after.offset - before.offset >= 50_000


async def test_guessed_cursor_does_not_reveal_publishes_of_other_rooms(
    open_store: OpenStore,
) -> None:
    store = open_store()
    guess = (await store.head(QUIET)).offset + 1
    guessed = Cursor(store.earliest().epoch, guess)
    await asyncio.sleep(0.001)
    before = await store.read(QUIET, guessed, 1)
    await publish_elsewhere(store, 3)
    assert await store.read(QUIET, guessed, 1) == before


async def test_busy_room_does_not_advance_the_head_of_another(open_store: OpenStore) -> None:
    store = open_store()
    mine = (await publish(store, "a", MINE)).cursor
    await publish_elsewhere(store, 3)
    assert await store.head(MINE) == mine


@pytest.mark.parametrize("interval_us", [0, 10_000_000])
async def test_the_head_of_an_empty_room_resumes_completely(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interval_us: int
) -> None:
    """Also over restarts: what was issued before is never taken for another log's."""
    monkeypatch.setattr(writer, "_IDLE_HEAD_INTERVAL_US", interval_us)
    latest: list[tuple[Room, Cursor]] = []
    for life in range(3):
        store = SqliteStore(tmp_path / "rooms.db")
        for n in range(10):
            room = Room(f"user_{life}-{n}")
            latest.append((room, await store.head(room)))
            await publish(store, f"{life}.{n}")
        for room, _ in latest[-10:]:
            await publish(store, "first", room)
        for room, head in latest:
            page = await store.read(room, head, 10)
            assert page.recovered
            assert len(page.entries) == 1
        await store.close()


async def test_head_precedes_uncommitted_entries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_IDLE_HEAD_INTERVAL_US", 0)
    store = SqliteStore(tmp_path / "rooms.db")
    for n in range(50):
        room = Room(f"user_{n}")
        publishing = asyncio.ensure_future(store.publish([publication("n", room)]))
        await asyncio.sleep(0)
        head = await store.head(room)
        (receipt,) = await publishing
        missed = await ids(store, room, head)
        assert missed == ["n"] or head == receipt.cursor
    await store.close()
