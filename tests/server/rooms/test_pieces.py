"""The pieces of texts on their way to subscribers (PROTOCOL.md, "Folding")."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from synap_realtime.protocol.control import CloseCode, ControlFrame
from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.folding import make_fold
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.metrics import Metrics
from synap_realtime.server.resources.byte_budget import NO_CALLER, BacklogBudget
from synap_realtime.server.rooms.backlog import Backlog, UnbatchedSink
from synap_realtime.server.rooms.hub import Hub
from synap_realtime.server.rooms.pieces import (
    MAX_PENDING_BYTES,
    MAX_STREAMS,
    PieceNumbers,
    PiecePacer,
    can_join,
    cut,
    fold_queue,
    join,
    with_index,
)
from synap_realtime.server.rooms.subscription import Subscription
from synap_realtime.server.stores.base import Entry, make_entry
from synap_realtime.server.stores.folds import with_offset
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.clocks import VirtualTimeLoop, in_virtual_time
from tests.support.folding import FoldingClient, folded, write
from tests.support.stores import publish

USER = Room("user_1")
INTERVAL_S = 0.04


def piece(
    at: int, offset: int, text: str, index: int | None = None, key: str = "k", **members: Any
) -> Entry:
    """Return a live entry with a piece, at an offset of the log."""
    fold = make_fold(key, "append", text, offset=offset, **members)
    data: dict[str, Any] = {} if index is None else {"index": index}
    publication = folded(f"p{at}", fold, **data)
    return make_entry(USER, Cursor("e", at), with_offset(publication.text, fold), fold)


def replacement(at: int, key: str = "r", *, final: bool = False) -> Entry:
    fold = make_fold(key, "replace", final=final)
    return make_entry(USER, Cursor("e", at), folded(f"r{at}", fold).text, fold)


def ordinary(at: int) -> Entry:
    return make_entry(USER, Cursor("e", at), json.dumps({"type": "a", "id": f"n{at}", "data": {}}))


def test_joined_pieces_are_one_piece() -> None:
    joined = join([piece(1, 2, "aé", 5), piece(2, 4, "", 6), piece(4, 4, "😀", 7, final=True)])
    wire = json.loads(joined.text)
    assert wire["data"] == {"index": 5, "delta": "aé😀"}
    assert wire["fold"] == {
        "key": "k",
        "mode": "append",
        "attempt": 0,
        "final": True,
        "offset": 2,
    }
    assert (wire["id"], wire["cursor"]) == ("p4", "e-4")
    assert joined.size == len(joined.text.encode())
    assert joined.fold == make_fold("k", "append", "aé😀", offset=2, final=True)


@pytest.mark.parametrize(
    "second",
    [
        piece(2, 3, "x"),
        piece(2, 1, "x"),
        piece(2, 2, "x", key="other"),
        piece(2, 2, "x", attempt=1),
        replacement(2),
        ordinary(2),
    ],
    ids=["gap", "overlap", "key", "attempt", "mode", "ordinary"],
)
def test_only_consecutive_pieces_of_a_text_are_joined(second: Entry) -> None:
    assert can_join(piece(1, 0, "ab"), piece(2, 2, "x"))
    assert not can_join(piece(1, 0, "ab"), second)
    assert not can_join(ordinary(1), second)
    assert not can_join(piece(1, 0, "ab", final=True), piece(2, 2, "x"))


@given(st.lists(st.text("aé😀\n", max_size=5), min_size=1, max_size=12), st.data())
def test_a_cut_leaves_the_part_after_the_position(texts: list[str], data: st.DataObject) -> None:
    entries, offset = [], 7
    for number, text in enumerate(texts):
        entries.append(piece(10 + 2 * number, offset, text, number))
        offset += len(text)
    middle = data.draw(st.integers(1, len(entries)))
    joined = join([join(entries[:middle]), *entries[middle:]])
    after = data.draw(st.integers(9, entries[-1].cursor.offset - 1))
    rest = cut(joined, after)
    unseen = [entry for entry in entries if entry.cursor.offset > after]
    assert unseen[0].fold is not None
    assert rest.fold is not None
    assert rest.fold.offset == unseen[0].fold.offset
    assert rest.fold.piece == json.loads(rest.text)["data"]["delta"]
    assert rest.fold.piece == "".join(texts[len(entries) - len(unseen) :])
    assert rest.cursor == joined.cursor
    assert rest.size == len(rest.text.encode())


def test_a_queue_is_folded() -> None:
    queue = [
        (entry, float(entry.cursor.offset))
        for entry in (
            *(replacement(1), replacement(2, final=True), piece(3, 0, "a"), piece(4, 1, "b")),
            *(ordinary(5), piece(6, 2, "c"), replacement(7), piece(8, 3, "d"), replacement(9)),
        )
    ]
    found = fold_queue(queue, keeps_parts=False)
    assert [(entry.cursor.offset, at) for entry, at in found] == [
        (2, 2.0),
        (4, 3.0),
        (5, 5.0),
        (8, 6.0),
        (9, 9.0),
    ]


def test_pieces_of_a_connection_are_numbered_from_its_replay() -> None:
    numbers = PieceNumbers()
    assert numbers.number(piece(1, 3, "x", 8)) == piece(1, 3, "x", 8)
    numbers.count_from(piece(2, 0, "whole", 0))
    assert len(numbers) == 1
    assert numbers.number(piece(3, 5, "x", 9)) == with_index(piece(3, 5, "x", 9), 1)
    assert numbers.number(piece(4, 1, "y", 0, key="other")) == piece(4, 1, "y", 0, key="other")
    assert numbers.number(piece(5, 6, "x", 10)) == with_index(piece(5, 6, "x", 10), 2)
    restarted = piece(6, 0, "again", 0, attempt=1)
    assert numbers.number(restarted) is restarted
    assert not len(numbers)


class Broadcasts:
    """Takes what a pacer delivers to one subscriber."""

    def __init__(self) -> None:
        self.wires: list[Any] = []
        self.times: list[float] = []
        self.subscribers = 1

    def __call__(self, room: Room, entry: Entry, published_at: float | None) -> int:
        self.wires.append(json.loads(entry.text))
        self.times.append(asyncio.get_running_loop().time())
        return self.subscribers

    def pacer(self, interval_s: float = INTERVAL_S) -> PiecePacer:
        return PiecePacer(self, lambda _: self.subscribers, interval_s)

    def deltas(self) -> list[str]:
        return [wire["data"].get("delta", wire["id"]) for wire in self.wires]


@in_virtual_time
async def test_at_most_one_piece_of_a_text_in_an_interval() -> None:
    taken = Broadcasts()
    pacer = taken.pacer()
    for number in range(100):  # 200 a second
        assert pacer.deliver(USER, piece(number + 1, number, "x", number), 0.0) == 1
        await asyncio.sleep(0.005)
    await asyncio.sleep(1)
    assert not pacer.pending
    assert "".join(taken.deltas()) == "x" * 100
    assert taken.deltas()[0] == "x", "the first one is not delayed"
    pauses = [after - before for before, after in itertools.pairwise(taken.times)]
    assert min(pauses) > INTERVAL_S - 1e-6
    assert len(taken.wires) <= 0.5 / INTERVAL_S + 2
    assert [wire["data"]["index"] for wire in taken.wires] == list(range(len(taken.wires)))
    pacer.deliver(USER, piece(101, 100, "y", 100), 0.0)
    assert taken.deltas()[-1] == "y", "after a pause, the next one is not delayed"


@in_virtual_time
async def test_pieces_after_a_text_that_was_read_as_a_whole_are_numbered_from_it() -> None:
    taken = Broadcasts()
    pacer = taken.pacer()
    whole = piece(3, 0, "abc", 0)._replace(parts=((3, 0),))
    for entry in (piece(1, 0, "a", 0), whole, piece(4, 3, "d", 3), piece(5, 4, "e", 4)):
        pacer.deliver(USER, entry, 0.0)
        await asyncio.sleep(INTERVAL_S)
    assert [wire["data"]["index"] for wire in taken.wires] == [0, 0, 1, 2]


@in_virtual_time
async def test_other_entry_of_the_room_comes_after_the_pieces_before_it() -> None:
    taken = Broadcasts()
    pacer = taken.pacer()
    for number in range(3):
        pacer.deliver(USER, piece(number + 1, number, "abc"[number]), 0.0)
    pacer.deliver(Room("user_2"), ordinary(4), 0.0)
    pacer.deliver(USER, ordinary(5), 0.0)
    pacer.deliver(USER, piece(6, 3, "d"), 0.0)
    pacer.deliver(USER, replacement(7), 0.0)
    pacer.deliver(USER, piece(8, 4, "e"), 0.0)
    pacer.deliver(USER, piece(9, 0, "other", key="l"), 0.0)
    assert taken.deltas() == ["a", "n4", "bc", "n5", "d", "r7", "e", "other"]


@in_virtual_time
async def test_final_piece_is_delivered_immediately_with_those_before_it() -> None:
    taken = Broadcasts()
    pacer = taken.pacer()
    for number in range(3):
        pacer.deliver(USER, piece(number + 1, number, "abc"[number], final=number == 2), 0.0)
    assert taken.deltas() == ["a", "bc"]
    assert taken.wires[1]["fold"]["final"] is True
    pacer.deliver(USER, piece(4, 0, "next"), 0.0)
    assert taken.deltas()[-1] == "next"


@in_virtual_time
async def test_pending_pieces_are_bounded_and_flushed() -> None:
    taken = Broadcasts()
    pacer = taken.pacer()
    size = MAX_PENDING_BYTES // 4
    for number in range(6):
        pacer.deliver(USER, piece(number + 1, number * size, "x" * size), 0.0)
    assert [len(delta) // size for delta in taken.deltas()] == [1, 4]
    pacer.flush_all()
    assert [len(delta) // size for delta in taken.deltas()] == [1, 4, 1]


@in_virtual_time
async def test_without_an_interval_or_a_subscriber_nothing_is_delayed() -> None:
    taken = Broadcasts()
    off = taken.pacer(0)
    for number in range(3):
        off.deliver(USER, piece(number + 1, number, "x"), 0.0)
    assert len(taken.wires) == 3
    taken.subscribers = 0
    pacer = taken.pacer()
    for number in range(3):
        assert pacer.deliver(USER, piece(number + 1, number, "x"), 0.0) == 0
    assert len(taken.wires) == 6
    assert not pacer.pending


@in_virtual_time
async def test_texts_that_never_end_are_forgotten() -> None:
    taken = Broadcasts()
    pacer = taken.pacer()
    for number in range(MAX_STREAMS + 10):
        pacer.deliver(Room(f"user_{number}"), piece(1, 0, "x"), 0.0)
    assert len(pacer._streams) == MAX_STREAMS


class ClosedHolder:
    def over_budget(self) -> None:
        pytest.fail("the backlog is too large")


def test_backlog_of_a_long_text_stays_small_and_is_one_piece() -> None:
    budget = BacklogBudget(0, 0)
    backlog = Backlog(ClosedHolder(), budget, NO_CALLER)
    backlog.finish_replay(0)
    for number in range(6000):  # 1.3 MB as single entries
        backlog.add(piece(number + 1, 5 * number, "12345", number), 1.0)
    assert budget.bytes < 200_000
    popped = backlog.pop()
    assert popped is not None
    assert popped[0].fold is not None
    assert popped[0].fold.piece == "12345" * 6000
    assert backlog.pop() is None
    assert budget.bytes == 0


class SlowSink(UnbatchedSink):
    """A connection whose client applies what it receives by both versions of the protocol."""

    def __init__(self, client: Subscriber) -> None:
        self.client = client
        self.is_writable = True

    def send(self, entry: Entry) -> bool:
        assert self.is_writable
        self.client.receive(json.loads(entry.text))
        return True

    send_batched = send

    def send_control(self, frame: ControlFrame) -> None: ...

    def close(self, code: CloseCode) -> None:
        assert code is CloseCode.DRAINING


class Subscriber(FoldingClient):
    """A user's client, which connects again and again."""

    def __init__(self, room: SharedRoom) -> None:
        super().__init__()
        self.room = room
        self.sink: SlowSink | None = None
        self.subscription: Subscription | None = None

    async def connect(self) -> None:
        if self.subscription is None:
            self.indexed = {}
            self.sink = SlowSink(self)
            self.subscription = Subscription(
                self.room.store, self.room.hub, USER, self.room.metrics, acknowledges=True
            )
            self.room.tasks.append(
                asyncio.create_task(self.subscription.run(self.after, self.sink))
            )

    def disconnect(self) -> None:
        if self.subscription is not None:
            self.subscription.close(CloseCode.DRAINING)
            self.subscription.detach()
            self.subscription = self.sink = None

    def block(self) -> None:
        if self.subscription is not None and self.sink is not None:
            self.sink.is_writable = False
            self.subscription.on_write_blocked()

    def free(self) -> None:
        if self.subscription is not None and self.sink is not None:
            self.sink.is_writable = True
            self.subscription.on_writable()


class SlowStore(MemoryStore):
    """A store whose pages are old by the time that they arrive, as a database's are."""

    async def read(self, *arguments: Any) -> Any:
        page = await super().read(*arguments)
        await asyncio.sleep(0.001)
        return page


class SharedRoom:
    """A room with three subscribers, and a plain model of its texts."""

    def __init__(self) -> None:
        self.store = SlowStore()
        self.hub = Hub()
        self.metrics = Metrics("test", 0)
        self.pacer = PiecePacer(self.hub.broadcast, self.hub.subscriber_count, INTERVAL_S)
        self.store.subscribe(self.pacer.deliver)
        self.tasks: list[asyncio.Task[None]] = []
        self.subscribers = [Subscriber(self) for _ in range(3)]
        self.texts: dict[str, str] = {}
        self.finished: dict[str, str] = {}
        self.attempts: dict[str, int] = {}
        self.indexes: dict[str, int] = {}
        self.replaced: dict[str, str] = {}
        self.ids: list[str] = []
        self.count = 0

    def new_id(self) -> str:
        self.count += 1
        return f"i{self.count}"

    async def publish(self) -> None:
        self.ids.append(self.new_id())
        await publish(self.store, self.ids[-1])

    async def replace(self, key: str) -> None:
        self.replaced[key] = self.new_id()
        await write(self.store, self.replaced[key], "replace", key=f"state {key}")

    async def append(self, key: str, text: str, *, restarts: bool, final: bool) -> None:
        if restarts:
            self.attempts[key] = self.attempts.get(key, 0) + 1
        if restarts or key not in self.texts:
            self.texts[key], self.indexes[key] = "", 0
        result = await write(
            self.store,
            self.new_id(),
            piece=text,
            key=key,
            attempt=self.attempts.get(key, 0),
            offset=len(self.texts[key]),
            final=final,
            data={"index": self.indexes[key]},
        )
        assert result.conflict is None
        self.texts[key] += text
        self.indexes[key] += 1
        if final:  # the next write begins another text
            self.attempts[key] = self.attempts.get(key, 0) + 1
            self.finished[key] = self.texts.pop(key)

    async def finish(self) -> None:
        """Let every subscriber receive everything."""
        for subscriber in self.subscribers:
            await subscriber.connect()
        for _ in range(100):
            for subscriber in self.subscribers:
                subscriber.free()
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for subscriber in self.subscribers:
            subscriber.disconnect()
        await asyncio.gather(*self.tasks)
        await self.store.close()


KEYS = st.sampled_from(["k", "k", "k", "k", "l"])
STEPS = st.one_of(
    st.tuples(st.just("burst"), KEYS, st.integers(1, 4)),
    st.tuples(
        st.just("append"),
        KEYS,
        st.text("aé😀", max_size=3),
        st.sampled_from(["continue", "continue", "continue", "restart", "end"]),
    ),
    st.sampled_from([("replace", "k"), ("replace", "l"), ("publish",)]),
    st.tuples(
        st.sampled_from(["connect", "connect", "disconnect", "block", "free"]), st.integers(0, 2)
    ),
    st.tuples(st.sampled_from(["connect", "block"]), st.integers(0, 2)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.0015, 0.003, 0.05])),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(STEPS, min_size=10, max_size=60))
@example(  # the second one has replayed the pending pieces, and blocks
    [
        *(("connect", 0), ("wait", 0.003), ("burst", "k", 3), ("connect", 1), ("wait", 0.003)),
        *(("block", 1), ("wait", 0.05), ("burst", "k", 1), ("free", 1), ("burst", "k", 1)),
    ]
)
@example(  # the second one joins while pieces are pending, and more follow
    [
        *(("connect", 0), ("wait", 0.003), ("burst", "k", 3), ("connect", 1), ("wait", 0.003)),
        *(("burst", "k", 2), ("wait", 0.05), ("burst", "k", 1)),
    ]
)
def test_every_subscriber_has_the_same_texts_at_the_end(steps: list[tuple[Any, ...]]) -> None:
    """Whoever joins, blocks, leaves and resumes when: by offsets, and by indexes."""

    async def run() -> None:
        room = SharedRoom()
        for step in steps:
            match step:
                case "append", key, text, how:
                    await room.append(key, text, restarts=how == "restart", final=how == "end")
                case "burst", key, count:
                    for _ in range(count):
                        await room.append(key, "xy", restarts=False, final=False)
                case "replace", key:
                    await room.replace(key)
                case ("publish",):
                    await room.publish()
                case "connect", number:
                    await room.subscribers[number].connect()
                case "wait", seconds:
                    await asyncio.sleep(seconds)
                case action, number:
                    getattr(room.subscribers[number], action)()
        await room.finish()
        for subscriber in room.subscribers:
            assert subscriber.ids == room.ids
            assert subscriber.replaced == {f"state {k}": id for k, id in room.replaced.items()}
            shown = subscriber.texts.by_key
            expected = {**room.finished, **room.texts}
            assert shown == expected
            for key, (text, _) in subscriber.indexed.items():
                assert text == expected[key]
        await room.close()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())
