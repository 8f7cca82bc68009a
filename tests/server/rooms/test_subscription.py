"""PROTOCOL.md, "Subscribing", without sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synap_realtime.protocol.control import CloseCode, ControlFrame
from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.asgi.connections import run_subscription
from synap_realtime.server.auth.claims import UNRESTRICTED
from synap_realtime.server.deadlines import TimerQueue
from synap_realtime.server.metrics import Metrics
from synap_realtime.server.rooms.backlog import MAX_BACKLOG_BYTES
from synap_realtime.server.rooms.hub import Hub
from synap_realtime.server.rooms.replay import UNKNOWN_POSITION
from synap_realtime.server.rooms.sessions import Session
from synap_realtime.server.rooms.subscription import Subscription
from synap_realtime.server.stores.base import (
    Entry,
    Page,
    Publication,
    Retention,
)
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.clocks import in_virtual_time
from tests.support.stores import LateStore
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits

USER, REQUEST = Room("user_1"), Room("request_1")


class SlowStore(MemoryStore):
    """A store whose pages are old by the time that they arrive, as a database's are."""

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        page = await super().read(room, after, limit)
        await asyncio.sleep(0)
        return page


class Node:
    """A store, a hub, and publishing to both, as the server does it."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.hub = Hub()
        self.store.subscribe(self.hub.broadcast)
        self.metrics = Metrics("test", 0)
        self.count = 0

    async def publish(self, room: Room, size: int = 0) -> str:
        self.count += 1
        id = f"n{self.count}"
        wire = {"type": "a", "data": {"x": "x" * size}, "id": id}
        publication = Publication(room, id, json.dumps(wire))
        (receipt,) = await self.store.publish([publication])
        return str(receipt.cursor)


class Reader:
    """Collects what a subscription sends."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.control: list[tuple[int, ControlFrame]] = []  # after how many notifications
        self.news = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, message: Entry | ControlFrame) -> None:
        await self.gate.wait()
        if isinstance(message, ControlFrame):
            self.control.append((len(self.ids), message))
        else:
            self.ids.append(json.loads(message.text)["id"])
        self.news.set()

    async def until_control(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.control) < count:
                self.news.clear()
                await self.news.wait()

    async def until(self, count: int) -> list[str]:
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.ids) < count:
                self.news.clear()
                await self.news.wait()
        return self.ids


@asynccontextmanager
async def subscribed(
    node: Node, room: Room, after: str | None = None, reader: Reader | None = None
) -> AsyncIterator[Reader]:
    reader = reader or Reader()
    subscription = Subscription(node.store, node.hub, room, node.metrics)
    task = asyncio.create_task(run_subscription(subscription, after, reader.send))
    try:
        while not node.hub.subscriber_count(room):  # noqa: ASYNC110 - a few turns of the loop
            await asyncio.sleep(0)
        yield reader
    finally:
        subscription.close(CloseCode.DRAINING)
        reader.gate.set()
        await task
    assert node.hub.subscriber_count(room) == 0


async def test_late_subscriber_of_a_request_receives_its_result() -> None:
    node = Node()
    await node.publish(REQUEST)
    for _ in range(2):
        async with subscribed(node, REQUEST) as reader:
            assert await reader.until(1) == ["n1"]


async def test_returning_user_receives_missed_notifications_once() -> None:
    node = Node()
    await node.publish(USER)
    async with subscribed(node, USER) as reader:
        await node.publish(USER)
        assert await reader.until(2) == ["n1", "n2"]
    await node.publish(USER)
    async with subscribed(node, USER) as reader:
        assert await reader.until(1) == ["n3"]


async def test_after_chooses_where_to_start() -> None:
    node = Node()
    cursors = [await node.publish(USER) for _ in range(3)]
    async with subscribed(node, USER, "earliest") as reader:
        assert await reader.until(3) == ["n1", "n2", "n3"]
    async with subscribed(node, USER, cursors[0]) as reader:
        assert await reader.until(2) == ["n2", "n3"]
    async with subscribed(node, USER, "latest") as reader:
        await node.publish(USER)
        assert await reader.until(1) == ["n4"]


@pytest.mark.parametrize("after", ["gone-99", "gone-0"])
async def test_position_of_a_lost_log_replays_everything(after: str) -> None:
    node = Node()
    async with subscribed(node, USER, after) as reader:
        await node.publish(USER)
        await node.publish(USER)
        assert await reader.until(2) == ["n1", "n2"]


async def test_publish_during_the_replay_is_delivered_once() -> None:
    node = Node()
    for _ in range(250):
        await node.publish(REQUEST)
    reader = Reader()
    reader.gate.clear()
    async with subscribed(node, REQUEST, reader=reader):
        for _ in range(250):
            await node.publish(REQUEST)
        reader.gate.set()
        await node.publish(REQUEST)
        assert await reader.until(501) == [f"n{n}" for n in range(1, 502)]


async def test_publish_during_the_last_page_is_not_lost() -> None:
    node = Node(SlowStore())
    async with subscribed(node, REQUEST) as reader:
        await node.publish(REQUEST)  # the empty page is on its way
        assert await reader.until(1) == ["n1"]


async def test_notification_read_before_its_delivery_is_not_duplicated() -> None:
    store = LateStore()
    node = Node(store)
    await node.publish(REQUEST)
    async with subscribed(node, REQUEST) as reader:
        await reader.until_control(1)
        assert reader.ids == ["n1"]
        await node.publish(REQUEST)
        store.release()
        assert await reader.until(2) == ["n1", "n2"]


async def test_replay_of_a_busy_room_becomes_live() -> None:
    """Whenever the subscriber has caught up, there is something new."""
    node = Node(SlowStore())
    await node.publish(REQUEST)

    class Busy(Reader):
        async def send(self, message: Entry | ControlFrame) -> None:
            await super().send(message)
            if len(self.ids) < 500 and isinstance(message, Entry):
                await node.publish(REQUEST)

    reader = Busy()
    async with subscribed(node, REQUEST, reader=reader):
        await reader.until_control(1)
        assert subscribed_frame(reader)[0] < 20
        assert await reader.until(500) == [f"n{n}" for n in range(1, 501)]


@in_virtual_time
async def test_slow_consumer_is_closed_and_can_resume() -> None:
    node = Node()
    reader = Reader()
    subscription = Subscription(node.store, node.hub, USER, node.metrics)
    task = asyncio.create_task(run_subscription(subscription, None, reader.send))
    first = await node.publish(USER)
    await reader.until(1)
    reader.gate.clear()
    for _ in range(MAX_BACKLOG_BYTES // 100_000 + 3):
        await node.publish(USER, size=100_000)
    assert await subscription.wait_closed() is CloseCode.SLOW_CONSUMER
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert node.hub.subscriber_count(USER) == 0
    async with subscribed(node, USER, first) as again:
        assert len(await again.until(node.count - 1)) == node.count - 1


async def test_slow_consumer_in_the_replay_is_closed(
    set_waits: SetWaits,
) -> None:
    set_waits(slow_consumer_timeout_s=0.05)
    node, reader = Node(), Reader()
    for _ in range(3):
        await node.publish(USER)
    reader.gate.clear()
    subscription = Subscription(node.store, node.hub, USER, node.metrics)
    async with asyncio.timeout(TIMEOUT_S):
        await run_subscription(subscription, None, reader.send)
        assert await subscription.wait_closed() is CloseCode.SLOW_CONSUMER
    assert await node.store.get_ack(USER) is None, "what was not taken was not received"


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["publish", "leave", "join", "pause", "go"]), max_size=60),
    st.sampled_from([MemoryStore, SlowStore]),
)
def test_any_interleaving_delivers_everything_once_and_in_order(
    actions: list[str], store: type[MemoryStore]
) -> None:
    """Against the plain model: a subscriber that resumes sees each notification once."""

    async def run() -> None:
        node, reader = Node(store()), Reader()
        last: str | None = "earliest"
        task: asyncio.Task[CloseCode] | None = None
        subscription: Subscription | None = None
        cursors: list[str] = []

        async def leave() -> None:
            nonlocal task, subscription, last
            if task and subscription:
                subscription.close(CloseCode.DRAINING)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                last = cursors[len(reader.ids) - 1] if reader.ids else "earliest"
                task = None

        def join() -> None:
            nonlocal task, subscription
            if task is None:
                subscription = Subscription(node.store, node.hub, USER, node.metrics)
                task = asyncio.create_task(run_subscription(subscription, last, reader.send))

        for action in actions:
            match action:
                case "publish":
                    cursors.append(await node.publish(USER))
                case "leave":
                    await leave()
                case "join":
                    join()
                case "pause":
                    reader.gate.clear()
                case "go":
                    reader.gate.set()
            await asyncio.sleep(0)
        reader.gate.set()
        join()
        assert await reader.until(node.count) == [f"n{n}" for n in range(1, node.count + 1)]
        await leave()

    asyncio.run(run())


def subscribed_frame(reader: Reader) -> tuple[int, dict[str, object]]:
    (found,) = [each for each in reader.control if each[1].type == "synap.subscribed"]
    return found[0], dict(found[1].data)


async def test_subscribed_is_sent_once_between_replay_and_live() -> None:
    node = Node()
    cursors = [await node.publish(USER) for _ in range(40)]
    async with subscribed(node, USER, cursors[4]) as reader:
        await reader.until(35)
        await reader.until_control(1)
        await node.publish(USER)
        await reader.until(36)
    sent_before, data = subscribed_frame(reader)
    assert sent_before == 35
    assert data == {"room": USER, "cursor": cursors[-1], "replayed": 35, "recovered": True}


@pytest.mark.parametrize("after", [None, "earliest", "latest"])
async def test_the_cursor_of_an_empty_room_resumes_and_notices_a_loss(after: str | None) -> None:
    node = Node(MemoryStore(Retention(count=3)))
    async with subscribed(node, USER, after) as reader:
        await reader.until_control(1)
    cursor = str(subscribed_frame(reader)[1]["cursor"])
    await node.publish(USER)
    async with subscribed(node, USER, cursor) as again:
        assert await again.until(1) == ["n1"]
        await again.until_control(1)
    assert subscribed_frame(again)[1]["recovered"] is True
    for _ in range(5):
        await node.publish(USER)
    async with subscribed(node, USER, cursor) as late:
        assert await late.until(3) == ["n4", "n5", "n6"]
        await late.until_control(1)
    assert subscribed_frame(late)[1]["recovered"] is False


@pytest.mark.parametrize("after", ["gone-99", UNKNOWN_POSITION])
async def test_lost_position_is_reported(after: str) -> None:
    node = Node()
    await node.publish(USER)
    async with subscribed(node, USER, after) as reader:
        await reader.until(1)
        await reader.until_control(1)
    assert subscribed_frame(reader)[1]["recovered"] is False


async def test_without_acks_delivery_advances_the_cursor() -> None:
    node = Node()
    await node.publish(USER)
    async with subscribed(node, USER) as reader:
        await reader.until(1)
    await node.publish(USER)
    async with subscribed(node, USER) as reader:
        assert await reader.until(1) == ["n2"]


def session_of(subscription: Subscription) -> Session:
    """A session without a token, of the commands that need no access control."""
    nothing: Any = None
    return Session(subscription, USER, UNRESTRICTED, nothing, TimerQueue())


async def test_with_acks_only_acks_advance_the_cursor() -> None:
    node, reader = Node(), Reader()
    cursors = [await node.publish(USER) for _ in range(3)]
    subscription = Subscription(node.store, node.hub, USER, node.metrics, acknowledges=True)
    session = session_of(subscription)
    task = asyncio.create_task(run_subscription(subscription, None, reader.send))
    await reader.until(3)
    assert await node.store.get_ack(USER) is None
    epoch = cursors[0].partition("-")[0]
    wrong = (f'"{epoch}-99999999999999999"', '"elsewhere-1"', '"nonsense"', "7", "null", "{}")
    for cursor in wrong:
        assert session.on_client_message(f'{{"action":"ack","cursor":{cursor}}}') is None
    for text in ('{"action":"dance"}', "{", "[]", "hello", ""):
        assert session.on_client_message(text) is None
    assert await node.store.get_ack(USER) is None
    assert session.ignored == len(wrong) + 5
    session.on_client_message(json.dumps({"action": "ack", "cursor": cursors[1]}))
    session.on_client_message(json.dumps({"action": "ack", "cursor": cursors[0]}))
    assert str(await node.store.get_ack(USER)) == cursors[1]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with subscribed(node, USER) as again:
        assert await again.until(1) == ["n3"]


async def test_unreached_position_does_not_become_a_devices_cursor() -> None:
    """Else it would receive everything again, and a gap, at each connect."""
    node = Node()
    await node.publish(USER)
    ahead = f"{node.store.earliest().epoch}-{10**17}"
    for after, recovered in ((ahead, False), (None, True)):
        reader = Reader()
        subscription = Subscription(
            node.store, node.hub, USER, node.metrics, device="phone", acknowledges=True
        )
        task = asyncio.create_task(run_subscription(subscription, after, reader.send))
        assert await reader.until(1) == ["n1"]
        await reader.until_control(1)
        assert subscribed_frame(reader)[1]["recovered"] is recovered
        subscription.close(CloseCode.DRAINING)
        await task


async def test_a_client_without_the_subprotocol_cannot_acknowledge() -> None:
    node = Node()
    cursor = await node.publish(USER)
    session = session_of(Subscription(node.store, node.hub, USER, node.metrics))
    session.on_client_message(json.dumps({"action": "ack", "cursor": cursor}))
    session.on_client_message(json.dumps({"action": "authenticate", "token": "t"}))
    assert await node.store.get_ack(USER) is None
    assert session.ignored == 2


async def test_a_token_that_arrives_after_the_end_is_ignored() -> None:
    node = Node()
    session = session_of(Subscription(node.store, node.hub, USER, node.metrics, acknowledges=True))
    session.end()
    tasks = asyncio.all_tasks()
    session.on_client_message(json.dumps({"action": "authenticate", "token": "t"}))
    assert asyncio.all_tasks() == tasks


def test_ping_is_answered_and_a_protocol_violation_closes() -> None:
    node = Node()
    subscription = Subscription(node.store, node.hub, USER, node.metrics)
    session = session_of(subscription)
    assert session.on_client_message("ping") == "pong"
    assert session.on_client_message("x" * 4096) is None
    assert subscription.deliver(Entry(node.store.earliest(), "{}", 2), 0.0)
    session.on_client_message(b"ping")
    assert not subscription.deliver(Entry(node.store.earliest(), "{}", 2), 0.0)


async def test_drained_client_receives_earlier_publishes_first() -> None:
    node, reader = Node(), Reader()
    subscription = Subscription(node.store, node.hub, USER, node.metrics)
    task = asyncio.create_task(run_subscription(subscription, None, reader.send))
    await reader.until_control(1)
    reader.gate.clear()
    for _ in range(20):
        await node.publish(USER)
    subscription.drain(250)
    subscription.drain(999)
    await node.publish(USER)  # too late: it stays in the log
    reader.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        assert await subscription.wait_closed() is CloseCode.DRAINING
        await task
    assert len(reader.ids) == 20
    (closing,) = [frame for _, frame in reader.control if frame.type == "synap.closing"]
    assert closing.data == {"code": 4012, "reconnectAfterMs": 250}


async def test_client_drained_in_the_replay_receives_all_of_it() -> None:
    node, reader = Node(), Reader()
    for _ in range(50):
        await node.publish(REQUEST)
    reader.gate.clear()
    subscription = Subscription(node.store, node.hub, REQUEST, node.metrics)
    task = asyncio.create_task(run_subscription(subscription, None, reader.send))
    await asyncio.sleep(0)
    subscription.drain(250)
    reader.gate.set()
    async with asyncio.timeout(TIMEOUT_S):
        await task
    assert len(reader.ids) == 50
    assert [frame.type for _, frame in reader.control] == ["synap.closing", "synap.subscribed"]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from(["publish", "publish", "publish", "leave", "join", "pause", "go"]),
        max_size=60,
    ),
    st.sampled_from([MemoryStore, SlowStore]),
)
def test_resuming_client_receives_everything_or_a_gap(
    actions: list[str], store: type[MemoryStore]
) -> None:
    """A log of five, so that it is trimmed all the time, also in the middle of a replay."""

    async def run() -> None:
        node = Node(store(Retention(count=5)))
        position: str | None = "earliest"
        last = 0  # the number of the notification that the client had last
        reader = Reader()
        task: asyncio.Task[CloseCode] | None = None
        subscription: Subscription | None = None

        async def leave() -> None:
            nonlocal position, last, task
            if task is None or subscription is None:
                return
            subscription.close(CloseCode.DRAINING)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            task = None
            numbers = [int(id[1:]) for id in reader.ids]
            assert numbers == sorted(set(numbers)), "in order, none twice"
            if reader.control:
                recovered = subscribed_frame(reader)[1]["recovered"]
                first = position == "earliest" and not last
                if recovered and not first:
                    assert numbers == list(range(last + 1, last + 1 + len(numbers))), "no gap"
                position = str(subscribed_frame(reader)[1]["cursor"])
            if numbers:
                last, position = numbers[-1], cursors[numbers[-1] - 1]

        cursors: list[str] = []
        for action in actions:
            if action == "publish":
                cursors.append(await node.publish(USER))
            elif action == "leave":
                await leave()
            elif action == "join" and task is None:
                reader = Reader()
                subscription = Subscription(node.store, node.hub, USER, node.metrics)
                task = asyncio.create_task(run_subscription(subscription, position, reader.send))
            elif action == "pause":
                reader.gate.clear()
            elif action == "go":
                reader.gate.set()
            await asyncio.sleep(0)
        await leave()

    asyncio.run(run())
