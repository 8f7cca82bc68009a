"""Folding on the stores (stores/base.py and PROTOCOL.md, "Folding"), also against a plain model."""

from __future__ import annotations

import asyncio
import json
import secrets
import tempfile
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.folding import Fold, Mode, make_fold
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Entry, PublishResult, Retention, Store
from synap_realtime.server.stores.folds import IDLE_KEY_S, MAX_OPEN_KEYS
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from synap_realtime.server.stores.sqlite.store import SqliteStore
from tests.support.folding import Texts, folded, write
from tests.support.stores import ids, publication, publish

from .conftest import Clock, OpenStore

_T = TypeVar("_T")

USER, REQUEST = Room("user_1"), Room("request_1")


async def wires(store: Store, after: Cursor | None = None, room: Room = USER) -> list[Any]:
    """Return the notifications of a room's log."""
    page = await store.read(room, after or store.earliest(), 10_000)
    assert all(entry.size == len(entry.text.encode()) for entry in page.entries)
    return [json.loads(entry.text) for entry in page.entries]


async def test_replace_keeps_the_last_at_its_position(open_store: OpenStore) -> None:
    store = open_store()
    first = await write(store, "p1", "replace", data={"n": 1})
    await publish(store, "n1")
    second = await write(store, "p2", "replace", data={"n": 2})
    assert second.cursor.offset > first.cursor.offset
    log = await wires(store)
    assert [wire["id"] for wire in log] == ["n1", "p2"]
    assert log[1]["data"] == {"n": 2}
    assert log[1]["fold"] == {"key": "k", "mode": "replace", "attempt": 0}
    assert log[1]["cursor"] == str(second.cursor)
    page = await store.read(USER, first.cursor, 10)
    assert (len(page.entries), page.recovered) == (2, True), "nothing is lost by folding"


async def test_append_keeps_one_notification_with_the_whole_text(
    open_store: OpenStore,
) -> None:
    store = open_store()
    delivered: list[Any] = []

    def deliver(_room: Room, entry: Entry, _published_at: float | None) -> int:
        delivered.append(json.loads(entry.text))
        return 1

    store.subscribe(deliver)
    await store.join(USER)
    for number, piece in enumerate(["aé", "", "😀\n", '"x\x00']):
        await write(store, f"p{number}", piece=piece, data={"index": number})
    assert [wire["fold"]["offset"] for wire in delivered] == [0, 2, 2, 4]
    assert [wire["data"]["index"] for wire in delivered] == [0, 1, 2, 3]
    (folded_wire,) = await wires(store)
    assert folded_wire["id"] == "p3"
    assert folded_wire["data"] == {"index": 0, "delta": 'aé😀\n"x\x00'}
    assert folded_wire["fold"]["offset"] == 0
    assert folded_wire["cursor"] == delivered[-1]["cursor"]
    (entry,) = (await store.read(USER, store.earliest(), 10)).entries
    assert entry.fold == make_fold("k", "append", 'aé😀\n"x\x00', offset=0)


async def test_repeated_piece_is_a_duplicate_without_its_id(open_store: OpenStore) -> None:
    store = open_store()
    await write(store, "p0", piece="ab", offset=0)
    last = await write(store, "p1", piece="cd", offset=2)
    for offset, piece in ((0, "ab"), (2, "cd"), (1, "bc")):
        again = await write(store, "other", piece=piece, offset=offset)
        assert again == PublishResult("other", last.cursor, 0, duplicate=True)
    kept = await write(store, "p1", piece="ef", offset=4)
    assert not kept.duplicate, "the ids of pieces with an offset are not kept"


async def test_repeated_final_piece_is_a_duplicate_by_its_id(open_store: OpenStore) -> None:
    store = open_store()
    first = await write(store, "p0", piece="all", offset=0, final=True)
    again = await write(store, "p0", piece="all", offset=0, final=True)
    assert again == first._replace(duplicate=True)
    assert len(await wires(store)) == 1


async def test_an_id_of_an_ordinary_notification_is_a_duplicate(
    open_store: OpenStore,
) -> None:
    store = open_store()
    first = await publish(store, "n1")
    again = await write(store, "n1", piece="x")
    assert (again.duplicate, again.cursor) == (True, first.cursor)
    assert (await write(store, "p1", piece="x")).conflict is None
    assert (await publish(store, "p1")).duplicate


async def test_conflict_stores_nothing_and_others_of_the_batch_are_stored(
    open_store: OpenStore,
) -> None:
    store = open_store()
    results = await store.publish(
        [
            folded("p0", make_fold("k", "append", "ab", attempt=1)),
            folded("p1", make_fold("k", "append", "c", attempt=1, offset=5)),
            publication("n1"),
            folded("p2", make_fold("k", "append", "x")),
            folded("p3", make_fold("k", "append", "c", attempt=1, offset=2)),
            folded("p4", make_fold("k", "replace", attempt=1)),
        ]
    )
    codes = [result.conflict and result.conflict.code for result in results]
    assert codes == [None, "offset_mismatch", None, "stale_attempt", None, "fold_mode"]
    assert results[1].conflict is not None
    assert (results[1].conflict.offset, results[1].conflict.attempt) == (2, 1)
    assert [result.id for result in results] == ["p0", "p1", "n1", "p2", "p3", "p4"]
    log = await wires(store)
    assert [wire["id"] for wire in log] == ["n1", "p3"]
    assert log[1]["data"]["delta"] == "abc"
    assert not (await publish(store, "p1")).duplicate, "its id was not kept"


async def test_final_write_closes_the_key_and_the_next_begins_another_entry(
    open_store: OpenStore,
) -> None:
    store = open_store()
    for id, piece in (("p0", "first "), ("p1", "text")):
        await write(store, id, piece=piece, final=id == "p1")
    await write(store, "q0", piece="second")
    log = await wires(store)
    assert [wire["data"]["delta"] for wire in log] == ["first text", "second"]
    assert log[0]["fold"]["final"] is True
    assert "final" not in log[1]["fold"]
    await write(store, "r0", "replace", key="progress", final=True)
    await write(store, "r1", "replace", key="progress")
    assert [wire["id"] for wire in await wires(store)] == ["p1", "q0", "r0", "r1"]


async def test_lower_attempt_stays_fenced_off_after_the_final_write(
    open_store: OpenStore,
) -> None:
    store = open_store()
    await write(store, "p0", piece="good", attempt=2, final=True)
    late = await write(store, "z0", piece="zombie", attempt=1, offset=0)
    assert late.conflict is not None
    assert (late.conflict.code, late.conflict.attempt) == ("stale_attempt", 2)


async def test_higher_attempt_replaces_the_text(open_store: OpenStore) -> None:
    store = open_store()
    for number in range(600):
        await write(store, f"p{number}", piece=f"{number} ", attempt=1)
    await write(store, "q0", piece="again", attempt=2, offset=0)
    (wire,) = await wires(store)
    assert (wire["data"]["delta"], wire["fold"]["attempt"]) == ("again", 2)


async def test_text_of_many_pieces_survives(open_store: OpenStore) -> None:
    store = open_store()
    pieces = [f"é{number} " for number in range(3000)]
    length = 0
    for start in range(0, len(pieces), 100):
        batch = []
        for number, piece in enumerate(pieces[start : start + 100], start):
            batch.append(folded(f"p{number}", make_fold("k", "append", piece, offset=length)))
            length += len(piece)
        assert all(result.conflict is None for result in await store.publish(batch))
    (wire,) = await wires(store)
    text = "".join(pieces)
    assert wire["data"]["delta"] == text
    for start, end in ((0, 1), (700, 900), (length - 4, length)):
        again = await write(store, "again", piece=text[start:end], offset=start)
        assert again.duplicate
    beyond = await write(store, "beyond", piece="x", offset=length + 1)
    assert beyond.conflict is not None
    assert beyond.conflict.offset == length


async def test_text_is_bounded_and_the_write_over_the_bound_changes_nothing(
    open_store: OpenStore,
) -> None:
    store = open_store()
    for number in range(4):
        await write(store, f"p{number}", piece="x" * 250_000)
    over = await write(store, "over", piece="x" * 250_000)
    assert over.conflict is not None
    assert over.conflict.code == "payload_too_large"
    (entry,) = (await store.read(USER, store.earliest(), 10)).entries
    assert entry.size < 1024 * 1024
    assert (await write(store, "end", piece="x", offset=1_000_000)).conflict is None


async def test_a_page_of_large_texts_ends_early(open_store: OpenStore) -> None:
    store = open_store()
    texts = {f"k{number}": str(number) * 200_000 for number in range(12)}
    for number, (key, text) in enumerate(texts.items()):
        await write(store, f"p{number}", piece=text, key=key)
    await publish(store, "n0")
    found: list[Any] = []
    after, pages = store.earliest(), 0
    while True:
        page = await store.read(USER, after, 100)
        pages += 1
        assert sum(entry.size for entry in page.entries) < 1_300_000
        found += [json.loads(entry.text) for entry in page.entries]
        if not page.ends_early:
            break
        after = page.entries[-1].cursor
    assert pages == 3
    assert [wire["id"] for wire in found] == [*(f"p{number}" for number in range(12)), "n0"]


async def test_retention_counts_a_key_once_and_by_its_last_write(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store(count=3, max_age_s=100)
    await write(store, "p0", piece="a")
    for number in range(2):
        await publish(store, f"n{number}")
    for number in range(1, 50):
        await write(store, f"p{number}", piece="a")
    assert await ids(store) == ["n0", "n1", "p49"]
    clock.now += 99
    await write(store, "p50", piece="b")
    clock.now += 2
    (wire,) = await wires(store)
    assert wire["data"]["delta"] == "a" * 50 + "b"
    clock.now += 100
    assert await wires(store) == []
    late = await write(store, "p51", piece="c", offset=51)
    assert late.conflict is not None
    assert (late.conflict.code, late.conflict.offset) == ("offset_mismatch", 0)


async def test_a_text_whose_entry_was_trimmed_begins_anew(open_store: OpenStore) -> None:
    store = open_store(count=3)
    first = await write(store, "p0", piece="a")
    for number in range(3):
        await publish(store, f"n{number}")
    assert not (await store.read(USER, first.cursor._replace(offset=1), 10)).recovered
    await write(store, "p1", piece="b")
    assert [wire["data"].get("delta") for wire in await wires(store)] == [None, None, "b"]


async def test_a_room_has_a_bounded_number_of_open_keys(
    open_store: OpenStore, clock: Clock
) -> None:
    store = open_store()
    for number in range(MAX_OPEN_KEYS):
        await write(store, f"p{number}", piece="x", key=f"k{number}")
        clock.now += 0.001
    over = await write(store, "over", piece="x", key="over")
    assert over.conflict is not None
    assert (over.conflict.code, over.conflict.offset) == ("too_many_keys", None)
    assert (await write(store, "other", piece="x", key="over", room=REQUEST)).conflict is None
    assert (await write(store, "once", piece="x", key="once", final=True)).conflict is None
    await write(store, "q0", piece="x", key="k0", final=True)
    assert (await write(store, "r0", piece="x", key="over")).conflict is None
    clock.now += IDLE_KEY_S
    await write(store, "q1", piece="x", key="k1")
    assert (await write(store, "r1", piece="x", key="more")).conflict is None
    log = {wire["fold"]["key"]: wire["data"]["delta"] for wire in await wires(store)}
    assert log["k2"] == "x", "the text of a closed key stays"
    await write(store, "q2", "append", piece="y", key="k1")
    again = await write(store, "q3", piece="x", key="k2", offset=1)
    assert again.conflict is not None
    assert again.conflict.offset == 0, "the key that was idle longest is closed"


@dataclass(frozen=True)
class Kept:
    """A notification in the log of the model."""

    cursor: Cursor
    at: float
    id: str
    fold: Fold | None = None
    text: str = ""
    is_closed: bool = False


class FoldMachine(RuleBasedStateMachine):
    """A store, and a plain model: a list of notifications for each room, a string for each text.

    Attributes:
        kind: the store.
        url: of a Valkey server.
        scale: the length of a second of the test, in seconds: the time of Redis passes by itself.
    """

    kind: ClassVar[str]
    url: ClassVar[str]
    scale: ClassVar[int] = 1

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.opened_at = self.clock.now
        self.prefix = secrets.token_hex(4)
        self.retention = Retention(
            count=4,
            max_age_s=100 * self.scale,
            request_max_age_s=40 * self.scale,
            dedupe_window_s=10 * self.scale,
        )
        self.store = self.open()
        self.count = 0
        self.log: dict[Room, list[Kept]] = {USER: [], REQUEST: []}
        self.lost: dict[Room, int] = {USER: 0, REQUEST: 0}  # the highest offset that was deleted
        self.ids: dict[tuple[Room, str], tuple[float, Cursor]] = {}
        self.cursors: dict[Room, list[Cursor]] = {USER: [], REQUEST: []}
        # Subscribers that were away since a position, and one that never was.
        self.live = {USER: Texts(), REQUEST: Texts()}
        self.away: list[tuple[Room, Cursor, Texts]] = []

    def open(self) -> Store:
        store: Store
        if self.kind == "memory":
            store = MemoryStore(self.retention, clock=self.clock)
        elif self.kind == "redis":
            address = parse_address(f"{self.url}?prefix={self.prefix}")
            store = RedisStore(address, self.retention, clock=self.clock_of_redis())
        else:
            path = Path(self.folder.name) / "rooms.db"
            store = SqliteStore(path, self.retention, clock=self.clock)
        store.subscribe(self.deliver)
        for room in (USER, REQUEST):
            self.run(store.join(room))
        return store

    def clock_of_redis(self) -> Callable[[], float]:
        """Return a clock by which a store that is opened again continues the time of the first."""
        opened_at = iter([self.opened_at])
        return lambda: next(opened_at, self.clock.now)

    def run(self, call: Coroutine[Any, Any, _T]) -> _T:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()
        self.folder.cleanup()

    def deliver(self, room: Room, entry: Entry, published_at: float | None) -> int:
        assert published_at is None
        self.live[room].apply(json.loads(entry.text))
        return 1

    def prune(self) -> None:
        """Delete what has expired, or is over the count."""
        for room, log in self.log.items():
            youngest = self.clock.now - self.retention.age_s(room)
            kept = [each for each in log[-self.retention.count :] if each.at > youngest]
            gone = log[: len(log) - len(kept)]
            self.lost[room] = max([self.lost[room], *(each.cursor.offset for each in gone)])
            self.log[room] = kept

    def find(self, room: Room, key: str) -> Kept | None:
        found = [each for each in self.log[room] if each.fold and each.fold.key == key]
        return found[-1] if found else None

    rooms = st.sampled_from([USER, REQUEST])
    keys = st.sampled_from(["k", "l"])
    finals = st.sampled_from([False, False, False, True])
    attempts = st.sampled_from([0, 0, 0, 0, 1, -1])

    @rule(room=rooms, id=st.sampled_from("abc"))
    def publish(self, room: Room, id: str) -> None:
        result = self.run(publish(self.store, id, room))
        if (first := self.first(room, id)) is not None:
            assert (result.duplicate, result.cursor) == (True, first)
        else:
            assert not result.duplicate
            self.keep(room, Kept(result.cursor, self.clock.now, id))
            self.ids[room, id] = (self.clock.now, result.cursor)

    @rule(
        room=rooms,
        key=keys,
        piece=st.text("aé😀\x01", max_size=4),
        place=st.sampled_from(["absent", "end", "end", "end", "start", "middle", "beyond"]),
        higher=attempts,
        final=finals,
        known=st.booleans(),
    )
    def append(
        self, room: Room, key: str, piece: str, place: str, higher: int, final: bool, known: bool
    ) -> None:
        """Append a piece.

        Args:
            known: use a piece that the text already has.
        """
        present = self.find(room, key)
        text = present.text if present is not None else ""
        offset = {"end": len(text), "start": 0, "middle": len(text) // 2, "beyond": len(text) + 1}
        at = offset.get(place)
        if known and at is not None:
            piece = text[at : at + 3] or piece
        self.write(room, key, "append", piece, at, higher, final=final)

    @rule(room=rooms, key=keys, higher=attempts, final=finals)
    def replace(self, room: Room, key: str, higher: int, final: bool) -> None:
        self.write(room, key, "replace", "", None, higher, final=final)

    def write(
        self,
        room: Room,
        key: str,
        mode: Mode,
        piece: str,
        offset: int | None,
        higher: int,
        *,
        final: bool,
    ) -> None:
        present = self.find(room, key)
        attempt = max(
            0, higher + (0 if present is None or not present.fold else present.fold.attempt)
        )
        fold = make_fold(key, mode, piece, attempt=attempt, offset=offset, final=final)
        self.count += 1
        id = f"p{self.count}"
        result = self.run(self.store.publish([folded(id, fold, room, n=self.count)]))[0]
        found = (
            ("stored", None)
            if result.conflict is None and not result.duplicate
            else ("duplicate", None)
            if result.conflict is None
            else (result.conflict.code, result.conflict.offset)
        )
        expected = self.expect(present, fold)
        assert found == expected
        if expected[0] == "duplicate":
            assert present is not None
            assert result.cursor == present.cursor
        if expected[0] != "stored":
            return
        continues = present is not None and not present.is_closed
        if continues and present is not None:
            self.log[room].remove(present)
            text = present.text if present.fold and present.fold.attempt == attempt else ""
        else:
            text = ""
        self.keep(room, Kept(result.cursor, self.clock.now, id, fold, text + piece, final))
        if offset is None or final:
            self.ids[room, id] = (self.clock.now, result.cursor)

    def expect(self, present: Kept | None, fold: Fold) -> tuple[str, int | None]:
        """Return the result by the words of PROTOCOL.md."""
        length = 0
        if present is not None and present.fold is not None:
            if fold.attempt < present.fold.attempt:
                return "stale_attempt", None
            if not present.is_closed:
                if present.fold.mode != fold.mode:
                    return "fold_mode", None
                if fold.attempt == present.fold.attempt:
                    length = len(present.text)
        if fold.offset is None or fold.offset == length:
            return "stored", None
        if (
            present is not None
            and present.fold is not None
            and present.fold.mode == "append"
            and fold.attempt == present.fold.attempt
            and fold.offset + len(fold.piece) <= len(present.text)
            and present.text[fold.offset :].startswith(fold.piece)
        ):
            return "duplicate", None
        return "offset_mismatch", length

    def first(self, room: Room, id: str) -> Cursor | None:
        at, cursor = self.ids.get((room, id), (-1e9, Cursor("", 0)))
        return cursor if self.clock.now - at < self.retention.dedupe_window_s else None

    def keep(self, room: Room, kept: Kept) -> None:
        self.log[room].append(kept)
        self.cursors[room].append(kept.cursor)
        self.prune()

    @rule(seconds=st.sampled_from([1, 9, 11, 41, 101]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds * self.scale
        self.prune()

    @rule(room=rooms)
    @precondition(lambda self: self.cursors[USER] and self.cursors[REQUEST])
    def leave(self, room: Room) -> None:
        """A subscriber that has received everything disconnects."""
        texts = Texts()
        texts.by_key = dict(self.live[room].by_key)
        self.away.append((room, self.cursors[room][-1], texts))

    @rule()
    def resume(self) -> None:
        """All subscribers that are away resume, and have the texts of the one that never was."""
        for room, cursor, texts in self.away:
            page = self.run(self.store.read(room, cursor, 100))
            for entry in page.entries:
                texts.apply(json.loads(entry.text))
            for kept in self.log[room]:
                if kept.fold and kept.fold.mode == "append" and not self.is_superseded(room, kept):
                    assert texts.by_key[kept.fold.key] == kept.text
        self.away = []

    def is_superseded(self, room: Room, kept: Kept) -> bool:
        return kept.fold is not None and self.find(room, kept.fold.key) is not kept

    @rule()
    def restart(self) -> None:
        if self.kind == "memory":
            return
        self.run(self.store.close())
        self.store = self.open()

    @invariant()
    def the_log_is_that_of_the_model(self) -> None:
        for room, log in self.log.items():
            positions = [self.store.earliest(), *self.cursors[room]]
            for start in positions[:1] + positions[-6:]:
                page = self.run(self.store.read(room, start, 100))
                expected = [each for each in log if each.cursor.offset > start.offset]
                assert [entry.cursor for entry in page.entries] == [e.cursor for e in expected]
                for entry, kept in zip(page.entries, expected, strict=True):
                    self.check(json.loads(entry.text), kept)
                if start.offset:
                    assert page.recovered == (self.lost[room] <= start.offset)

    def check(self, wire: dict[str, Any], kept: Kept) -> None:
        assert wire["id"] == kept.id
        if kept.fold is None:
            assert "fold" not in wire
        elif kept.fold.mode == "append":
            assert wire["data"]["delta"] == kept.text
            assert wire["fold"] == {**kept.fold.to_wire(), "offset": 0}
        else:
            assert wire["fold"] == kept.fold.to_wire()

    @invariant()
    def the_live_subscriber_has_every_text(self) -> None:
        for room, log in self.log.items():
            for kept in log:
                if kept.fold and kept.fold.mode == "append" and not self.is_superseded(room, kept):
                    assert self.live[room].by_key[kept.fold.key] == kept.text


@pytest.fixture(scope="module", autouse=True)
def _server_of_machines(valkey: str) -> None:
    FoldMachine.url = valkey


def machine(store: str, *, seconds: int = 1) -> type[FoldMachine]:
    class Machine(FoldMachine):
        kind = store
        scale = seconds

    return Machine


TestFoldsInMemory = machine("memory").TestCase
TestFoldsInMemory.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, derandomize=True
)
TestFoldsInSqlite = machine("sqlite").TestCase
TestFoldsInSqlite.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, derandomize=True
)
TestFoldsInRedis = machine("redis", seconds=100).TestCase
TestFoldsInRedis.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, derandomize=True
)
