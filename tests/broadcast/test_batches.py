"""Calls made during a request share the next one, and fail independently."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from synap_realtime import AsyncBroadcaster, Broadcaster, BroadcastResult
from synap_realtime.broadcast import batch_queue, encoding
from synap_realtime.broadcast.batch_queue import QueuedNotification, QueueLimits
from synap_realtime.broadcast.sender import Sender
from synap_realtime.documentation import Topic, see
from synap_realtime.testing import RealtimeRecorder
from tests.support.timeouts import TIMEOUT_S

from .gate import Gate

UNAVAILABLE = {"success": False, "error": "No room", "details": "full", "code": "unavailable"}
NAMED = "http://rooms.test (url=)"
REFUSED = {
    "success": False,
    "error": "Too large",
    "details": "at most",
    "code": "payload_too_large",
}


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def broadcaster(gate: Gate) -> AsyncIterator[AsyncBroadcaster]:
    async with AsyncBroadcaster("http://rooms.test", transport=gate) as made:
        yield made


class Callers:
    """Calls that are made one after the other and wait together."""

    def __init__(self, broadcaster: AsyncBroadcaster) -> None:
        self._broadcaster = broadcaster

    async def call(self, id: str, user: str = "42", **data: Any) -> asyncio.Task[BroadcastResult]:
        """Make one; returns when it is on its way or waits."""
        task = asyncio.create_task(
            self._broadcaster.broadcast_success(user, "a.completed", data, id=id)
        )
        await asyncio.sleep(0)  # its first step takes it there
        return task

    async def calls(self, *ids: str, **data: Any) -> list[asyncio.Task[BroadcastResult]]:
        return [await self.call(id, **data) for id in ids]

    @property
    def sender(self) -> Sender:
        return self._broadcaster._pools[asyncio.get_running_loop()].sender

    @property
    def waiting(self) -> list[str]:
        return [item.encoded.id for item in self.sender._batch_queue._waiting]


@pytest.fixture
def callers(broadcaster: AsyncBroadcaster) -> Callers:
    return Callers(broadcaster)


async def test_sends_a_single_notification_immediately_without_a_task(
    gate: Gate, broadcaster: AsyncBroadcaster
) -> None:
    before = len(asyncio.all_tasks())
    for id in ("a", "b"):
        answers = asyncio.get_running_loop().run_in_executor(None, lambda: gate.next_now().accept())
        assert (await broadcaster.broadcast_success("42", "a.completed", {}, id=id)).id == id
        await answers
    assert gate.tasks == before


async def test_batches_notifications_that_arrive_during_a_request_in_order(
    gate: Gate, callers: Callers
) -> None:
    calls = await callers.calls("a", "b", "c", "d")
    first = await gate.next()
    assert first.ids == ["a"]
    assert callers.waiting == ["b", "c", "d"]
    first.accept()
    second = await gate.next()
    assert (second.path, second.ids) == ("/broadcast", ["b", "c", "d"])
    second.accept()
    results = await asyncio.gather(*calls)
    assert [result.id for result in results] == ["a", "b", "c", "d"]
    assert all(result.success and result.attempts == 1 for result in results)
    assert gate.is_quiet


async def test_each_caller_gets_its_own_result(gate: Gate, callers: Callers) -> None:
    calls = await callers.calls("a", "ok", "bad", "same")
    (await gate.next()).accept()
    room = {"broadcastCount": 3, "cursor": "1", "duplicate": True}
    same = {"success": True, "broadcastCount": 3, "rooms": {"user_42": room}}
    (await gate.next()).accept(bad=REFUSED, same=same)
    _, ok, bad, duplicate = await asyncio.gather(*calls)
    assert (ok.success, ok.rooms, ok.duplicate) == (True, ("user_42",), False)
    assert (bad.success, bad.rooms, bad.error) == (
        False,
        (),
        f"{NAMED} rejected the notification: Too large: at most",
    )
    assert (duplicate.success, duplicate.broadcast_count, duplicate.duplicate) == (True, 3, True)


async def test_retries_only_items_that_the_store_could_not_keep(
    gate: Gate, callers: Callers
) -> None:
    calls = await callers.calls("a", "b", "c")
    (await gate.next()).accept()
    (await gate.next()).accept(c=UNAVAILABLE)
    again = await gate.next()
    assert again.ids == ["c"]
    again.accept()
    assert [result.attempts for result in await asyncio.gather(*calls)] == [1, 1, 2]


@pytest.mark.parametrize("trouble", ["503", "429", "connection"])
async def test_a_batch_that_failed_is_sent_again_as_it_was(
    gate: Gate, callers: Callers, trouble: str
) -> None:
    calls = await callers.calls("a", "b", "c", "d", "e")
    (await gate.next()).accept()
    batch = await gate.next()
    if trouble == "connection":
        batch.fail(httpx.ConnectError("refused"))
    else:
        batch.refuse(int(trouble))
    ids: list[str] = []
    while len(ids) < 4:  # after a 429, smaller batches are sent
        again = await gate.next()
        ids += again.ids
        again.accept()
    assert ids == ["b", "c", "d", "e"]
    results = await asyncio.gather(*calls)
    assert [result.attempts for result in results] == [1, 2, 2, 2, 2]
    assert all(result.success and not result.duplicate for result in results)


async def test_rooms_keep_their_order_and_do_not_block_each_other(
    gate: Gate, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = iter([1.5])
    monkeypatch.setattr("synap_realtime.broadcast.retry.backoff_s", lambda *_: next(pauses, 0.0))
    first = await callers.call("a1", "A")
    (await gate.next()).refuse(503)
    while callers.waiting != ["a1"]:
        await callers.sender._wait_changed()
    others = [await callers.call("a2", "A"), await callers.call("b1", "B")]
    passing = await gate.next()
    assert passing.ids == ["b1"]
    passing.accept()
    held = await gate.next()
    assert held.ids == ["a1", "a2"]
    held.accept()
    assert all(result.success for result in await asyncio.gather(first, *others))


async def test_no_request_is_larger_than_the_contract_allows(gate: Gate, callers: Callers) -> None:
    calls = await callers.calls("first")
    small = [f"s{n}" for n in range(990)]
    large = [f"l{n}" for n in range(9)]
    calls += await callers.calls(*small)
    calls += await callers.calls(*large, text="x" * 250_000)
    ids: list[str] = []
    sizes: list[int] = []
    while len(ids) < 1000:
        held = await gate.next()
        ids += held.ids
        sizes.append(held.size)
        held.accept()
    assert ids == ["first", *small, *large]
    assert max(sizes) <= 1024 * 1024
    assert len(sizes) <= 5, "990 small and 3 large; 4; 2; and the first"
    assert all(result.success for result in await asyncio.gather(*calls))


async def test_rooms_count_as_well(gate: Gate, broadcaster: AsyncBroadcaster) -> None:
    calls = [
        asyncio.create_task(broadcaster.broadcast_success("1", "a", {}, "r", id=f"i{n}"))
        for n in range(601)
    ]
    counts: list[int] = []
    while sum(counts) < 601:
        held = await gate.next()
        counts.append(len(held.items))
        held.accept()
    assert counts == [1, 500, 100], "1,000 rooms over all notifications of a request"
    await asyncio.gather(*calls)


def limit_queues(monkeypatch: pytest.MonkeyPatch, limits: QueueLimits) -> None:
    """Give the queues that are created from now on these limits."""
    monkeypatch.setattr(batch_queue, "QueueLimits", lambda: limits)


@pytest.mark.parametrize("limits", [QueueLimits(notifications=3), QueueLimits(bytes=300)])
async def test_full_queue_blocks_callers_in_order(
    gate: Gate, callers: Callers, monkeypatch: pytest.MonkeyPatch, limits: QueueLimits
) -> None:
    limit_queues(monkeypatch, limits)
    ids = [f"i{n}" for n in range(20)]
    calls = await callers.calls(*ids)
    seen: list[str] = []
    while len(seen) < 20:
        held = await gate.next()
        assert len(callers.waiting) <= 3
        assert len(held.ids) <= 3
        seen += held.ids
        held.accept()
    assert seen == ids
    assert all(result.success for result in await asyncio.gather(*calls))


@pytest.mark.parametrize("status", [400, 413])
async def test_notification_that_fails_a_whole_batch_fails_alone(
    gate: Gate, callers: Callers, status: int
) -> None:
    """A proxy with its own limit, or an unknown check."""
    ids = [f"i{n}" for n in range(9)]
    calls = await callers.calls("first", *ids)

    def answer() -> None:
        done: set[str] = set()
        while len(done) < 10:
            held = gate.next_now()
            if "i4" not in held.ids:
                held.accept()
            else:
                held.refuse(status)
            if "i4" not in held.ids or len(held.ids) == 1:
                done.update(held.ids)

    await asyncio.to_thread(answer)
    results = {result.id: result for result in await asyncio.gather(*calls)}
    assert [id for id, result in results.items() if not result.success] == ["i4"]
    assert results["i4"].error == f"{NAMED} answered {status}: No: because"
    assert [sent.id for sent in gate.rooms.sent] == ["first", *ids[:4], *ids[5:]]


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (
            401,
            f"; set REALTIME_API_KEY to one of the server's API keys{see(Topic.CREDENTIALS)}",
        ),
        (403, see(Topic.PERMISSIONS)),
    ],
)
async def test_authentication_failure_is_every_callers_result(
    gate: Gate, callers: Callers, status: int, hint: str
) -> None:
    calls = await callers.calls("a", "b", "c")
    (await gate.next()).accept()
    (await gate.next()).refuse(status)
    errors = [result.error for result in await asyncio.gather(*calls)]
    assert errors == [None, *[f"{NAMED} answered {status}: No: because{hint}"] * 2]
    assert gate.is_quiet


@pytest.mark.parametrize("is_lone", [True, False])
async def test_sends_singles_in_order_to_a_server_without_the_batch_route(
    gate: Gate, callers: Callers, is_lone: bool
) -> None:
    calls = []
    if not is_lone:
        calls = await callers.calls("first")
        held = await gate.next()
    calls += [await callers.call(f"{user}{n}", user) for n in range(3) for user in "ABC"]
    if not is_lone:
        held.accept()
    (await gate.next()).refuse(404, None)

    def answer() -> int:
        most = 0
        left = 9
        while left:
            helds = [gate.next_now() for _ in range(3)]  # one for each user, at the same time
            assert len({held.path for held in helds}) == 3
            assert all(held.path.startswith("/rooms/user_") for held in helds)
            most = max(most, len(helds))
            left -= 3
            for held in helds:
                held.accept()
        return most

    await asyncio.to_thread(answer)
    assert all(result.success for result in await asyncio.gather(*calls))
    arrived = [str(notification.id) for notification in gate.rooms.arrivals if notification.id]
    for user in "ABC":
        assert [id for id in arrived if id[0] == user] == [f"{user}{n}" for n in range(3)]
    again = await callers.call("again")
    held = await gate.next()
    assert held.path == "/rooms/user_42/broadcast", "it is remembered"
    held.accept()
    assert (await again).attempts == 1
    assert gate.is_quiet


async def test_limits_concurrent_requests_to_a_server_without_the_batch_route(
    gate: Gate, broadcaster: AsyncBroadcaster, callers: Callers
) -> None:
    broadcaster._endpoint.has_batch_route = False
    calls = [await callers.call(f"i{n}", str(n)) for n in range(40)]
    helds = [await gate.next() for _ in range(batch_queue.MAX_CONCURRENT_SINGLES)]
    await asyncio.sleep(0.05)
    assert gate.is_quiet
    assert len(callers.waiting) == 40 - batch_queue.MAX_CONCURRENT_SINGLES
    for held in helds:
        held.accept()
    for _ in range(40 - batch_queue.MAX_CONCURRENT_SINGLES):
        (await gate.next()).accept()
    assert all(result.success for result in await asyncio.gather(*calls))


def encoded(id: str, user: str = "42") -> encoding.EncodedNotification:
    message = encoding.normalize({"type": "a", "data": {}, "id": id})
    return encoding.encode(encoding.rooms_for(user, None), message)


@pytest.mark.parametrize("at", ["queue", "request"])
async def test_deadline_ends_only_its_own_call(gate: Gate, callers: Callers, at: str) -> None:
    (first,) = await callers.calls("first")
    held = await gate.next()
    loop = asyncio.get_running_loop()
    short = QueuedNotification(encoded("short"), loop.time() + (0.2 if at == "queue" else 1.5))
    hurried = asyncio.create_task(callers.sender.send(short))
    await asyncio.sleep(0)
    (patient,) = await callers.calls("patient")
    if at == "request":
        held.accept()
        held = await gate.next()
        assert held.ids == ["short", "patient"]
    result = await hurried
    assert not result.success
    assert "did not answer in time" in (result.error or "")
    assert result.attempts == (0 if at == "queue" else 1)
    held.accept()
    if at == "queue":
        held = await gate.next()
        assert held.ids == ["patient"], "nobody waits for the other any more"
        held.accept()
    assert (await first).success
    assert (await patient).success


@pytest.mark.parametrize("who", ["lone", "waiting", "under way"])
async def test_cancelling_one_caller_affects_no_other(
    gate: Gate, callers: Callers, who: str
) -> None:
    first, second, third = await callers.calls("a", "b", "c")
    held = await gate.next()
    if who == "under way":
        held.accept()
        held = await gate.next()
        assert held.ids == ["b", "c"]
    cancelled = first if who == "lone" else second
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    if who != "lone":
        held.accept()
    if who != "under way":
        held = await gate.next()
        assert held.ids == (["b", "c"] if who == "lone" else ["c"])
        held.accept()
    results = await asyncio.gather(*{first, second, third} - {cancelled})
    assert all(result.success and result.attempts == 1 for result in results)
    assert gate.is_quiet


async def test_cancelled_waiter_leaves_queue_space_to_others(
    gate: Gate, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_queues(monkeypatch, QueueLimits(notifications=1))
    calls = await callers.calls("a", "b", "c", "d", "e")
    for call in (calls[2], calls[3]):  # the first in line, and one behind it
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    seen = []
    for _ in range(3):
        held = await gate.next()
        seen += held.ids
        held.accept()
    assert seen == ["a", "b", "e"]
    assert all(result.success for result in await asyncio.gather(calls[0], calls[1], calls[4]))


async def test_timed_out_waiter_leaves_queue_space_to_the_next(
    gate: Gate, callers: Callers, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_queues(monkeypatch, QueueLimits(notifications=1))
    first = await callers.call("a")
    held = await gate.next()
    short = QueuedNotification(encoded("short"), asyncio.get_running_loop().time() + 0.2)
    hurried = asyncio.create_task(callers.sender.send(short))
    await asyncio.sleep(0)
    second = await callers.call("b")
    assert not (await hurried).success
    async with asyncio.timeout(TIMEOUT_S):
        while callers.waiting != ["b"]:
            await callers.sender._wait_changed()
    for each in (held, None):
        (each or await gate.next()).accept()
    assert (await first).success
    assert (await second).success


async def test_close_finishes_pending_notifications(
    gate: Gate, broadcaster: AsyncBroadcaster
) -> None:
    callers = Callers(broadcaster)
    calls = await callers.calls("a", "b", "c")
    closing = asyncio.create_task(broadcaster.aclose())
    for ids in (["a"], ["b", "c"]):
        held = await gate.next()
        assert held.ids == ids
        assert not closing.done()
        held.accept()
    await closing
    assert all(call.done() and call.result().success for call in calls)
    assert broadcaster._pools == {}


async def test_error_of_a_custom_transport_reaches_every_caller(
    gate: Gate, callers: Callers
) -> None:
    calls = await callers.calls("a", "b", "c")
    (await gate.next()).accept()
    (await gate.next()).fail(ZeroDivisionError("a bug"))
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [BroadcastResult, *[ZeroDivisionError] * 2]


async def test_closing_the_event_loop_fails_pending_notifications(
    gate: Gate, callers: Callers
) -> None:
    calls = await callers.calls("a", "b")
    held = await gate.next()
    pump = callers.sender._flush_task
    assert pump is not None
    pump.cancel()
    assert "event loop was closed" in ((await calls[1]).error or "")
    held.accept()
    assert (await calls[0]).success


async def test_closing_the_event_loop_before_the_queue_starts_fails_what_waits(
    gate: Gate, callers: Callers
) -> None:
    first = await callers.call("a")
    held = await gate.next()
    second = await callers.call("b")
    pump = callers.sender._flush_task
    assert pump is not None
    pump.cancel()  # before its first step
    assert "event loop was closed" in ((await second).error or "")
    held.accept()
    assert (await first).success
    later = await callers.call("c")
    (await gate.next()).accept()
    assert (await later).success


async def test_the_testing_plugin_records_each_broadcast(realtime: RealtimeRecorder) -> None:
    async with AsyncBroadcaster(transport=realtime) as broadcaster:
        realtime.fail_requests(503)
        await asyncio.gather(
            *(broadcaster.broadcast_success("42", "a.completed", {"n": n}) for n in range(50))
        )
    assert [sent.data["n"] for sent in realtime.sent()] == list(range(50))
    assert len(realtime.received) == 50


class Counting(httpx.AsyncHTTPTransport):
    """Counts the requests to a real server."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        return await super().handle_async_request(request)


async def test_real_server_stores_notifications_in_call_order(rooms: str) -> None:
    counting = Counting()
    async with AsyncBroadcaster(rooms, transport=counting) as broadcaster:
        results = await asyncio.gather(
            *(broadcaster.broadcast_success("42", "a.completed", {"n": n}) for n in range(900))
        )
    assert all(result.success and result.attempts == 1 for result in results)
    assert counting.requests <= 3
    async with httpx.AsyncClient() as client:
        history = (await client.get(f"{rooms}/rooms/user_42/history?limit=1000")).json()
    assert [each["data"]["n"] for each in history["notifications"]] == list(range(900))


# The same for callers that are threads


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as executor:
        yield executor


Call = Callable[..., Future[BroadcastResult]]


@pytest.fixture
def sync(gate: Gate) -> Iterator[Broadcaster]:
    with Broadcaster("http://rooms.test", transport=gate) as made:
        yield made


@pytest.fixture
def call(sync: Broadcaster, threads: ThreadPoolExecutor) -> Call:
    """Make a call in a thread; returns when it is on its way or waits."""

    def make(id: str, user: str = "42") -> Future[BroadcastResult]:
        with sync._changed:
            before = count()
        future = threads.submit(sync.broadcast_success, user, "a.completed", {}, id=id)
        with sync._changed:
            while count() == before and not future.done():
                sync._changed.wait(0.001)
        return future

    def count() -> int:
        return len(sync._batch_queue._waiting) + len(sync._batch_queue._in_flight)

    return make


def test_batches_threads_that_arrive_during_a_request_in_order(gate: Gate, call: Call) -> None:
    calls = [call(id) for id in "abcd"]
    first = gate.next_now()
    assert first.ids == ["a"]
    first.accept()
    second = gate.next_now()
    assert second.ids == ["b", "c", "d"]
    second.accept(c=REFUSED, d=UNAVAILABLE)
    third = gate.next_now()
    assert third.ids == ["d"]
    third.accept()
    results = [each.result(10) for each in calls]
    assert [result.success for result in results] == [True, True, False, True]
    assert [result.attempts for result in results] == [1, 1, 1, 2]
    assert results[2].error == f"{NAMED} rejected the notification: Too large: at most"


def test_threads_share_a_server_without_the_route(gate: Gate, call: Call) -> None:
    calls = [call(f"{user}{n}", user) for n in range(3) for user in "AB"]
    gate.next_now().refuse(405, None)
    for _ in range(3):
        pair = [gate.next_now(), gate.next_now()]
        assert {held.path for held in pair} == {
            "/rooms/user_A/broadcast",
            "/rooms/user_B/broadcast",
        }
        for held in pair:
            held.accept()
    assert all(each.result(10).success for each in calls)
    arrived = [str(notification.id) for notification in gate.rooms.arrivals]
    assert [id for id in arrived if id[0] == "A"] == ["A0", "A1", "A2"]
    assert [id for id in arrived if id[0] == "B"] == ["B0", "B1", "B2"]


def test_transport_error_reaches_every_thread(gate: Gate, call: Call) -> None:
    calls = [call(id) for id in "abc"]
    gate.next_now().accept()
    gate.next_now().fail(ZeroDivisionError("a bug"))
    assert calls[0].result(10).success
    for each in calls[1:]:
        with pytest.raises(ZeroDivisionError):
            each.result(10)


def test_full_queue_blocks_threads(
    gate: Gate, sync: Broadcaster, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync._batch_queue, "limits", QueueLimits(notifications=2))
    calls = [
        threads.submit(sync.broadcast_success, "42", "a.completed", {}, id=f"i{n}")
        for n in range(20)
    ]
    seen: list[str] = []
    while len(seen) < 20:
        held = gate.next_now()
        assert len(held.ids) <= 2
        seen += held.ids
        held.accept()
    assert sorted(seen) == sorted(f"i{n}" for n in range(20))
    assert all(each.result(10).success for each in calls)


def test_deadline_ends_only_its_own_thread(
    gate: Gate, sync: Broadcaster, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = call("a")
    held = gate.next_now()
    monkeypatch.setattr(sync, "_deadline_s", 0.2)
    result = sync.broadcast_success("42", "a.completed", {}, id="b")
    assert not result.success
    assert result.attempts == 0
    assert "did not answer in time" in (result.error or "")
    held.accept()
    assert first.result(10).success
    assert gate.is_quiet, "nobody waits for the other any more"


def test_closing_waits_for_the_other_threads(gate: Gate, call: Call, sync: Broadcaster) -> None:
    calls = [call(id) for id in "ab"]
    closing = threading.Thread(target=sync.close)
    closing.start()
    for id in "ab":
        held = gate.next_now()
        assert held.ids == [id]
        assert closing.is_alive()
        held.accept()
    closing.join(10)
    assert not closing.is_alive()
    assert all(each.result(10).success for each in calls)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_does_not_wait_for_its_parents_request(
    gate: Gate, call: Call, sync: Broadcaster
) -> None:
    first = call("a")
    held = gate.next_now()
    if (child := os.fork()) == 0:
        threading.Thread(target=lambda: gate.next_now().accept(), daemon=True).start()
        os._exit(0 if sync.broadcast_success("42", "a.completed", {}).success else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    held.accept()
    assert first.result(10).success
