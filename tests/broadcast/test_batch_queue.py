"""The batch queue without a network loses, duplicates and reorders nothing within a room."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from synap_realtime.broadcast.batch_queue import (
    MAX_CONCURRENT_SINGLES,
    BatchQueue,
    QueuedNotification,
    QueueLimits,
)
from synap_realtime.broadcast.encoding import EncodedNotification
from synap_realtime.broadcast.endpoint import Endpoint
from synap_realtime.broadcast.responses import ApiResponse
from synap_realtime.broadcast.retry import RetryPolicy
from synap_realtime.protocol.notification import MAX_BATCH_BYTES
from synap_realtime.protocol.rooms import Room

ROOMS = st.lists(st.sampled_from("ABC"), min_size=1, max_size=2, unique=True)
DEADLINE_S = 60.0


def ok(count: int) -> ApiResponse:
    return ApiResponse(status=200, body={"results": [{"success": True}] * count})


def unavailable(count: int) -> ApiResponse:
    result = {"success": False, "error": "No", "details": "full", "code": "unavailable"}
    return ApiResponse(status=200, body={"results": [result] * count})


FAILURES = {
    "unavailable": ApiResponse(status=503, error="503"),
    "away": ApiResponse(error="refused"),
    "broken": ApiResponse(status=500, error="500"),
    "too many": ApiResponse(status=429, error="429", retry_after_s=1.0),
    "too large": ApiResponse(status=413, error="413", body={"code": "payload_too_large"}),
    "bad key": ApiResponse(status=401, error="401", body={"code": "unauthorized"}),
}


class OutboxMachine(RuleBasedStateMachine):
    """A client whose requests come to any end, while calls come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.endpoint = Endpoint("http://rooms.test", None)
        self.outbox = BatchQueue(self.endpoint)
        self.now = 1000.0
        self.requests: list[list[QueuedNotification]] = []
        self.called: dict[str, list[str]] = defaultdict(list)
        self.kept: dict[str, list[str]] = defaultdict(list)
        self.open: dict[str, QueuedNotification] = {}
        self.settled: list[str] = []
        self.count = 0

    @rule(rooms=ROOMS, size=st.sampled_from([100, 250_000]))
    def call(self, rooms: list[Any], size: int) -> None:
        id = f"{self.count:05d}"
        self.count += 1
        encoded = EncodedNotification(
            tuple(Room(f"user_{room}") for room in rooms), id, b"x" * size
        )
        item = QueuedNotification(encoded, self.now + DEADLINE_S)
        item.done = lambda: self.settle(id)
        self.open[id] = item
        for room in rooms:
            self.called[room].append(id)
        self.outbox.add(item)

    def settle(self, id: str) -> None:
        self.settled.append(id)
        del self.open[id]

    @rule()
    def send(self) -> None:
        if items := self.outbox.next_batch(self.now):
            if len(items) > 1:
                assert sum(len(item.encoded.as_batch_item) + 1 for item in items) <= MAX_BATCH_BYTES
            assert self.endpoint.has_batch_route or len(items) == 1
            self.outbox.begin(items)
            self.requests.append(items)
        max_concurrent = 1 if self.endpoint.has_batch_route else MAX_CONCURRENT_SINGLES
        assert len(self.requests) <= max_concurrent
        under_way = [room for items in self.requests for room in {*_rooms(items)}]
        assert len(under_way) == len(set(under_way)), "two requests for one room"

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), kind=st.sampled_from(["ok", "full", "cancelled", *FAILURES]))
    def answer(self, data: st.DataObject, kind: str) -> None:
        self.end(self.requests.pop(data.draw(st.integers(0, len(self.requests) - 1))), kind)

    def end(self, items: list[QueuedNotification], kind: str) -> None:
        if kind == "cancelled":  # the caller's own task sent it, and is gone
            if len(items) == 1:
                self.open.pop(items[0].encoded.id, None)
                self.outbox.cancel(items[0])
        elif items[0].per_room is None:
            made = {"ok": ok, "full": unavailable}.get(kind)
            answer = made(len(items)) if made else FAILURES[kind]
            if kind == "ok":
                self.keep(items)
            self.outbox.apply_response(items, answer, self.now)
        else:
            kept = ApiResponse(status=200, body={"success": True})
            call = items[0].call
            while call is not None:  # one request for each room
                if kind not in ("ok", "full"):
                    self.outbox.apply_response(items, FAILURES[kind], self.now)
                    break
                self.keep(items, call.path)
                call = self.outbox.apply_response(items, kept, self.now)
        self.outbox.release(items)

    def keep(self, items: list[QueuedNotification], path: str = "") -> None:
        for item in items:
            for room in item.encoded.rooms:
                if path and path != f"/rooms/{room}/broadcast":
                    continue
                self.kept[room.removeprefix("user_")].append(item.encoded.id)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), is_late=st.booleans())
    def lose_patience(self, data: st.DataObject, is_late: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.open)))
        item = self.open[id]
        if is_late:
            self.outbox.expire(item)
        else:
            self.outbox.cancel(item)
            item.done = lambda: None
            del self.open[id]

    @precondition(lambda self: not self.requests)
    @rule()
    def lose_the_route(self) -> None:
        if items := self.outbox.next_batch(self.now):
            self.outbox.begin(items)
            self.outbox.apply_response(items, ApiResponse(status=404, error="404"), self.now)
            self.outbox.release(items)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_overtaken_in_its_room(self) -> None:
        for room, kept in self.kept.items():
            order = [self.called[room].index(id) for id in kept]
            assert order == sorted(order)
            assert len(order) == len(set(order))

    @invariant()
    def each_caller_is_answered_once(self) -> None:
        assert len(self.settled) == len(set(self.settled))

    @invariant()
    def the_bytes_are_counted(self) -> None:
        waiting = self.outbox._waiting
        assert self.outbox._waiting_bytes == sum(len(item.encoded.body) for item in waiting)

    def teardown(self) -> None:
        """Every pending caller gets a result once the server recovers."""
        for _ in range(10_000):
            while self.requests:
                self.end(self.requests.pop(), "ok")
            if not self.open:
                break
            if (due := self.outbox.next_due(self.now)) is not None:
                self.now = due
            self.send()
        assert not self.open
        assert self.outbox.is_idle
        self.nothing_is_overtaken_in_its_room()


def _rooms(items: list[QueuedNotification]) -> list[Room]:
    return [room for item in items for room in item.encoded.rooms]


TestOutbox = OutboxMachine.TestCase


# What the client of jobs asks of the queue


def queue_of(limits: QueueLimits | None = None, policy: RetryPolicy | None = None) -> BatchQueue:
    return BatchQueue(Endpoint("http://rooms.test", None), limits, policy)


def item_of(id: str, room: str = "A", size: int = 10, due: float = 0.0) -> QueuedNotification:
    encoded = EncodedNotification((Room(f"user_{room}"),), id, b"x" * size)
    return QueuedNotification(encoded, due=due)


def send(queue: BatchQueue, answer: ApiResponse, now: float) -> list[str]:
    """Send the next batch, answer it, and return its ids."""
    batch = queue.next_batch(now)
    if batch:
        queue.begin(batch)
        queue.apply_response(batch, answer, now)
        queue.release(batch)
    return [item.encoded.id for item in batch]


def test_a_delayed_notification_waits_for_its_time_and_delays_no_other() -> None:
    queue = queue_of()
    queue.add_delayed(item_of("late", due=5.0))
    queue.add(item_of("next"))
    assert send(queue, ok(1), 1.0) == ["next"]
    assert (queue.next_due(1.0), len(queue), queue.is_idle) == (5.0, 1, False)
    assert send(queue, ok(1), 5.0) == ["late"]
    assert queue.is_idle


def test_expediting_a_delayed_notification_puts_it_before_later_ones() -> None:
    queue = queue_of()
    first, other = item_of("first", due=5.0), item_of("other", due=6.0)
    queue.add_delayed(first)
    queue.add_delayed(other)
    queue.expedite([first])
    queue.add(item_of("second"))
    assert send(queue, ok(2), 1.0) == ["first", "second"]
    queue.expedite()
    assert queue.last is other
    assert send(queue, ok(1), 1.0) == ["other"]


def test_replaces_a_notification_only_before_it_may_have_been_sent() -> None:
    queue = queue_of()
    item = item_of("a")
    queue.add(item)
    assert queue.replace(item, item_of("b", size=99).encoded)
    assert queue._waiting_bytes == 99
    batch = queue.next_batch(1.0)
    assert not queue.replace(item, item_of("c").encoded), "in flight"
    queue.begin(batch)
    queue.apply_response(batch, FAILURES["away"], 1.0)
    queue.release(batch)
    assert not queue.replace(item, item_of("c").encoded), "the server may have it"
    assert item.encoded.id == "b"


@pytest.mark.parametrize("limits", [QueueLimits(notifications=3), QueueLimits(bytes=30)])
def test_evicts_the_oldest_that_was_never_sent(limits: QueueLimits) -> None:
    queue = queue_of(limits)
    tried = item_of("tried", size=0)
    queue.add(tried)
    assert send(queue, FAILURES["away"], 1.0) == ["tried"]
    delayed = item_of("delayed", due=99.0)
    queue.add_delayed(delayed)
    items = [item_of(str(n)) for n in range(5)]
    evicted = []
    for item in items:
        queue.add(item)
        evicted += queue.evict_oldest("full")
    assert evicted == items[:3]
    assert [item.result and item.result.error for item in evicted] == ["full"] * 3
    assert [item.encoded.id for item in queue._waiting] == ["tried", "3", "4"]
    for n in range(2):
        queue.add_delayed(item_of(f"delayed {n}", due=99.0))
        evicted += queue.evict_oldest("full")
    queue.add_delayed(item_of("last", due=99.0))
    assert queue.evict_oldest("full") == [delayed], "when nothing else is left"


@pytest.mark.parametrize("has_batch_route", [True, False])
def test_a_failure_pauses_the_whole_queue_of_a_client_without_deadlines(
    has_batch_route: bool,
) -> None:
    queue = queue_of(policy=RetryPolicy(pauses_queue=True))
    queue._endpoint.has_batch_route = has_batch_route
    queue.add(item_of("a"))
    assert send(queue, FAILURES["away"], 1.0) == ["a"]
    queue.add(item_of("b", "B"))
    due = queue.next_due(1.0)
    assert due is not None
    assert queue.is_paused(1.0)
    assert queue.next_batch(1.0) == []
    assert not queue.is_paused(due)
    assert send(queue, ok(2), due)[0] == "a"


def test_a_partly_stored_batch_is_retried_in_part_and_pauses_that_client() -> None:
    queue = queue_of(policy=RetryPolicy(pauses_queue=True))
    stored, refused = item_of("a"), item_of("b", "B")
    queue.add(stored)
    queue.add(refused)
    results = [{"success": True}, {"success": False, "error": "No", "code": "unavailable"}]
    send(queue, ApiResponse(status=200, body={"results": results}), 1.0)
    assert stored.result is not None
    assert stored.result.success
    assert (refused.result, refused.failure is None) == (None, False)
    assert queue.is_paused(1.0)


def test_ending_the_queue_fails_delayed_notifications_as_well() -> None:
    queue = queue_of()
    items = [item_of("a"), item_of("b", due=99.0)]
    queue.add(items[0])
    queue.add_delayed(items[1])
    queue.end("closed")
    assert [item.result and item.result.error for item in items] == ["closed"] * 2
    assert queue.is_idle


def test_a_retried_single_joins_a_batch_once_the_server_has_the_route() -> None:
    queue = queue_of()
    queue._endpoint.has_batch_route = False
    item = item_of("a")
    queue.add(item)
    send(queue, FAILURES["away"], 1.0)
    queue._endpoint.has_batch_route = True
    queue.add(item_of("b", "B"))
    batch = queue.next_batch(item.due)
    assert queue.begin(batch).path == "/broadcast"
    assert queue.apply_response(batch, ok(2), item.due) is None
    assert item.result is not None
    assert (item.result.success, item.result.attempts) == (True, 2)
