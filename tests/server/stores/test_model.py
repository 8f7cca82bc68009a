"""The stores against a plain model: a list for each room."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Entry, Publication, Retention, Store
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.server.stores.sqlite.store import SqliteStore

from .conftest import Clock

ROOMS = [Room("user_1"), Room("request_1"), Room("request_2")]
RETENTION = Retention(count=4, max_age_s=100, request_max_age_s=40, dedupe_window_s=10)

Open = Callable[[Path, Clock], Store]


class Model:
    """What each room holds, by the words of the contract."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.published: dict[Room, list[tuple[float, Cursor, str]]] = {room: [] for room in ROOMS}
        self.first: dict[tuple[Room, str], tuple[float, Cursor]] = {}
        self.marks: dict[Room, Cursor] = {}

    def is_duplicate(self, room: Room, id: str) -> bool:
        seen = self.first.get((room, id))
        return seen is not None and self.clock.now - seen[0] < RETENTION.dedupe_window_s

    def publish(self, room: Room, id: str, cursor: Cursor) -> None:
        self.published[room].append((self.clock.now, cursor, id))
        self.first[room, id] = (self.clock.now, cursor)

    def retained(self, room: Room) -> list[tuple[Cursor, str]]:
        youngest = self.clock.now - RETENTION.age_s(room)
        kept = self.published[room][-RETENTION.count :]
        return [(cursor, id) for at, cursor, id in kept if at > youngest]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("publish"),
            st.lists(
                st.tuples(st.sampled_from(ROOMS), st.sampled_from("abcdef")),
                min_size=1,
                max_size=6,
            ),
        ),
        st.tuples(st.just("wait"), st.sampled_from([1, 9, 11, 41, 101])),
        st.tuples(st.just("read"), st.sampled_from(ROOMS)),
        st.tuples(st.just("mark"), st.sampled_from(ROOMS)),
    ),
    max_size=40,
)


@pytest.mark.parametrize(
    "opened",
    [
        lambda _, clock: MemoryStore(RETENTION, clock=clock),
        lambda path, clock: SqliteStore(path / "rooms.db", RETENTION, clock=clock),
    ],
    ids=["memory", "sqlite"],
)
@settings(max_examples=80, deadline=None, derandomize=True)
@given(actions=ACTIONS)
def test_a_store_does_what_the_model_does(opened: Open, actions: list[tuple[str, object]]) -> None:
    async def run(directory: str) -> None:
        clock = Clock()
        store, model = opened(Path(directory), clock), Model(clock)
        try:
            for action, what in actions:
                await act(store, model, action, what)
            for room in ROOMS:
                await act(store, model, "read", room)
        finally:
            await store.close()

    with TemporaryDirectory() as directory:
        asyncio.run(run(directory))


async def act(store: Store, model: Model, action: str, what: object) -> None:
    if action == "wait":
        assert isinstance(what, int)
        model.clock.now += what
    elif action == "publish":
        assert isinstance(what, list)
        delivered: list[Cursor] = []

        def deliver(_room: Room, entry: Entry, _published_at: float | None) -> int:
            delivered.append(entry.cursor)
            return 1

        store.subscribe(deliver)
        publications = [Publication(room, id, json.dumps({"id": id})) for room, id in what]
        new = []
        for (room, id), receipt in zip(what, await store.publish(publications), strict=True):
            assert receipt.duplicate == model.is_duplicate(room, id)
            if receipt.duplicate:
                assert receipt.cursor == model.first[room, id][1]
            else:
                model.publish(room, id, receipt.cursor)
                new.append(receipt.cursor)
        assert delivered == new
    elif action == "read":
        room = Room(str(what))
        for start in (store.earliest(), *(cursor for _, cursor, _ in model.published[room])):
            page = await store.read(room, start, 100)
            got = [(entry.cursor, json.loads(entry.text)["id"]) for entry in page.entries]
            expected = [each for each in model.retained(room) if each[0].offset > start.offset]
            assert got == expected
            missed = [
                cursor
                for _, cursor, _ in model.published[room]
                if cursor.offset > start.offset and cursor not in {each[0] for each in expected}
            ]
            if missed and start.offset:
                assert not page.recovered, "a loss must be told"
    else:
        room = Room(str(what))
        if retained := model.retained(room):
            before = await store.get_ack(room)
            store.ack(room, retained[-1][0])
            after = await store.get_ack(room)
            assert after is not None
            assert after.offset >= max(retained[-1][0].offset, before.offset if before else 0)
