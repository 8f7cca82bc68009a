"""PROTOCOL.md, "Subscribing", without sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synap_realtime.protocol.control import CloseCode, ControlFrame
from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.hub import Hub
from synap_realtime.server.stores.base import Entry, Page, Publication
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.server.subscription import MAX_WAITING_BYTES, Subscription

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
        self.count = 0

    async def publish(self, room: Room, size: int = 0) -> str:
        self.count += 1
        id = f"n{self.count}"
        wire = {"type": "a", "data": {"x": "x" * size}, "id": id}
        publication = Publication(room, id, json.dumps(wire))
        (receipt,) = await self.store.publish([publication], self.hub.deliver)
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

    async def until(self, count: int) -> list[str]:
        async with asyncio.timeout(5):
            while len(self.ids) < count:
                self.news.clear()
                await self.news.wait()
        return self.ids


@asynccontextmanager
async def subscribed(
    node: Node, room: Room, after: str | None = None, reader: Reader | None = None
) -> AsyncIterator[Reader]:
    reader = reader or Reader()
    subscription = Subscription(node.store, node.hub, room)
    task = asyncio.create_task(subscription.run(after, reader.send))
    try:
        await asyncio.sleep(0)  # the task joins the room first of all
        yield reader
    finally:
        subscription.close(CloseCode.DRAINING)
        reader.gate.set()
        await task
    assert node.hub.connections(room) == 0


async def test_a_late_subscriber_of_a_request_gets_its_result() -> None:
    node = Node()
    await node.publish(REQUEST)
    for _ in range(2):
        async with subscribed(node, REQUEST) as reader:
            assert await reader.until(1) == ["n1"]


async def test_a_user_who_was_away_gets_what_was_missed_once() -> None:
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
async def test_a_position_of_a_log_that_is_gone_means_everything_and_then_live(after: str) -> None:
    node = Node()
    async with subscribed(node, USER, after) as reader:
        await node.publish(USER)
        await node.publish(USER)
        assert await reader.until(2) == ["n1", "n2"]


async def test_what_comes_during_the_replay_is_neither_lost_nor_doubled() -> None:
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


async def test_what_comes_while_the_last_page_is_read_is_not_lost() -> None:
    node = Node(SlowStore())
    async with subscribed(node, REQUEST) as reader:
        await node.publish(REQUEST)  # the empty page is on its way
        assert await reader.until(1) == ["n1"]


async def test_a_listener_that_does_not_read_is_closed_and_can_resume() -> None:
    node = Node()
    reader = Reader()
    subscription = Subscription(node.store, node.hub, USER)
    task = asyncio.create_task(subscription.run(None, reader.send))
    first = await node.publish(USER)
    await reader.until(1)
    reader.gate.clear()
    for _ in range(MAX_WAITING_BYTES // 100_000 + 3):
        await node.publish(USER, size=100_000)
    assert await subscription.closed() is CloseCode.TOO_SLOW
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert node.hub.connections(USER) == 0
    async with subscribed(node, USER, first) as again:
        assert len(await again.until(node.count - 1)) == node.count - 1


async def test_one_who_stalls_in_the_replay_is_closed_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("synap_realtime.server.subscription.SEND_TIMEOUT_S", 0.05)
    node, reader = Node(), Reader()
    for _ in range(3):
        await node.publish(USER)
    reader.gate.clear()
    subscription = Subscription(node.store, node.hub, USER)
    async with asyncio.timeout(5):
        await subscription.run(None, reader.send)
        assert await subscription.closed() is CloseCode.TOO_SLOW
    assert await node.store.received_mark(USER) is None, "what was not taken was not received"


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
        task: asyncio.Task[None] | None = None
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
                subscription = Subscription(node.store, node.hub, USER)
                task = asyncio.create_task(subscription.run(last, reader.send))

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
