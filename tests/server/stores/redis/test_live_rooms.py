"""A node delivers each entry of a room once, in order, whatever order messages and replies have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import Entry, Page, make_entry
from synap_realtime.server.stores.redis.keys import ALL_PARTITIONS, KeySpace
from synap_realtime.server.stores.redis.live_rooms import LiveRooms
from synap_realtime.server.stores.redis.log_scripts import HEAD
from synap_realtime.server.stores.redis.script import Script
from synap_realtime.server.stores.redis.scripts import JOIN
from synap_realtime.server.stores.redis.tasks import Tasks
from tests.support.timeouts import TIMEOUT_S

ROOM = Room("user_1")
KEYS = KeySpace("synap")
CHANNEL = KEYS.of_room(ROOM).log


class Server:
    """The log of one room at Redis. Replies can be withheld.

    Attributes:
        replies, pages: set: replies arrive, and those of reads; cleared: they are withheld.
        calls, reads: how many were computed.
    """

    def __init__(self) -> None:
        self.epoch = "e1"
        self.head = 1000
        self.log: list[Entry] = []
        self.replies = asyncio.Event()
        self.pages = asyncio.Event()
        for each in (self.replies, self.pages):
            each.set()
        self.calls = self.reads = 0

    def add(self, offset: int) -> bytes:
        """Store an entry. Return its announcement."""
        previous, self.head = self.head, offset
        text = f'{{"n":{offset}}}'
        self.log.append(make_entry(ROOM, Cursor(self.epoch, offset), text))
        return f"{self.epoch} {previous} {offset} call:4 {text}".encode()

    def fail_over(self, epoch: str, head: int) -> None:
        """Be another server, which lacks what comes after a position."""
        self.epoch, self.head = epoch, head
        kept = [each for each in self.log if each.cursor.offset <= head]
        self.log = [each._replace(cursor=Cursor(epoch, each.cursor.offset)) for each in kept]

    async def read(self, _room: Room, after: Cursor, limit: int) -> Page:
        is_foreign = after.epoch != self.epoch
        found = [each for each in self.log if is_foreign or each.cursor.offset > after.offset]
        self.reads += 1
        await self.pages.wait()
        return Page(found[:limit], recovered=not is_foreign)

    def call(self, script: Script, _keys: Sequence[bytes], *_: Any) -> asyncio.Future[Any]:
        assert script in (HEAD, JOIN)
        self.calls += 1
        return asyncio.ensure_future(self._reply((self.epoch.encode(), str(self.head).encode())))

    async def _reply(self, reply: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        await self.replies.wait()
        return [reply]


class ConnectedChannels:
    """Subscribes to everything immediately. The test brings the messages."""

    def start(self) -> None:
        pass

    async def subscribe(self, channel: bytes) -> None:
        pass

    def unsubscribe(self, channel: bytes) -> None:
        pass


class Node:
    """A node with one subscriber."""

    def __init__(self, server: Server) -> None:
        self.delivered: list[int] = []
        self.gaps = 0
        self.tasks = Tasks()
        self.rooms = LiveRooms(
            KEYS, "node", server.call, self.tasks, server.read, lambda _: 1_000_000
        )
        self.rooms.channels = ConnectedChannels()
        self.rooms.subscribe(self._deliver, self._on_gap)

    def _deliver(self, _room: Room, entry: Entry, _published_at: float | None) -> int:
        self.delivered.append(entry.cursor.offset)
        return 1

    def _on_gap(self, _room: Room, _position: Cursor) -> None:
        self.gaps += 1

    def receive(self, announcement: bytes) -> None:
        self.rooms.on_message(CHANNEL, announcement)

    async def settle(self) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            await self.tasks.wait()


@pytest.fixture
async def server() -> Server:
    return Server()


@pytest.fixture
async def node(server: Server) -> Node:
    node = Node(server)
    await node.rooms.join(ROOM)
    return node


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0)


async def test_reads_what_was_not_announced(server: Server, node: Node) -> None:
    node.receive(server.add(1001))
    server.add(1002)
    node.receive(server.add(1003))
    await node.settle()
    assert (node.delivered, node.gaps) == ([1001, 1002, 1003], 0)


async def test_heal_that_began_before_the_resubscription_reads_again(
    server: Server, node: Node
) -> None:
    """Its read is older than an entry that was published before the messages came back."""
    server.pages.clear()
    node.rooms.catch_up(ALL_PARTITIONS)  # after the first connection: it reads an empty page
    await until(lambda: server.reads == 1)
    server.add(1001)  # while there is no connection
    node.rooms.catch_up(ALL_PARTITIONS)  # after the second one
    await node.rooms.report(ALL_PARTITIONS)
    server.pages.set()
    await node.settle()
    assert (node.delivered, node.gaps) == ([1001], 0)


async def test_entry_that_is_announced_during_a_heal_is_read(server: Server, node: Node) -> None:
    server.pages.clear()
    node.rooms.catch_up(ALL_PARTITIONS)
    await until(lambda: server.reads == 1)
    node.receive(server.add(1001))
    server.pages.set()
    await node.settle()
    assert (node.delivered, node.gaps) == ([1001], 0)


async def test_announced_entry_that_was_deleted_is_passed_over(server: Server, node: Node) -> None:
    server.add(1001)
    announcement = server.add(1002)
    server.log.clear()
    node.receive(announcement)
    await node.settle()
    node.receive(server.add(1003))
    assert (node.delivered, node.gaps) == ([1003], 0)


@pytest.mark.parametrize(
    "announcement",
    [
        b"",
        b"e1",
        b"e1 x 1001 c:4 {}",
        b"e1 1000 y c:4 {}",
        b"e1 1000 1001 c:4 \xff",
        b"\xff 1 2 c:4",
        b"e1 1000 1001 c:4:f {",
        b"e1 1000 1001 c:4:f []",
        b'e1 1000 1001 c:4:f {"id":"1","data":{}}',
        b'e1 1000 1001 c:4:f {"data":1,"fold":{"key":"k","mode":"replace"}}',
        b'e1 1000 1001 c:4:f {"data":{},"fold":{"key":"k","mode":"append"}}',
        b'e1 1000 1001 c:4:f {"data":{},"fold":{"key":1,"mode":"replace"}}',
    ],
)
async def test_malformed_announcement_is_read_from_the_log(
    server: Server, node: Node, announcement: bytes
) -> None:
    """It must not cost the connection, over which the messages of all rooms arrive."""
    server.add(1001)
    node.receive(announcement)
    await node.settle()
    node.receive(server.add(1002))
    assert (node.delivered, node.gaps) == ([1001, 1002], 0)


async def test_late_entry_of_a_former_epoch_changes_nothing(server: Server, node: Node) -> None:
    """The connection for messages may lead to the former primary for a while."""
    node.receive(server.add(1001))
    late = server.add(5000)  # the former primary's clock was ahead
    server.fail_over("e2", 1001)
    await node.rooms.report(ALL_PARTITIONS)
    assert node.gaps == 1
    node.receive(late)
    await node.settle()
    node.receive(server.add(1002))
    await node.settle()
    assert (node.delivered, node.gaps) == ([1001, 1002], 1)


async def test_late_entry_of_a_former_epoch_during_a_heal(server: Server, node: Node) -> None:
    late = server.add(5000)
    server.fail_over("e2", 1000)
    await node.rooms.report(ALL_PARTITIONS)
    server.pages.clear()
    node.rooms.catch_up(ALL_PARTITIONS)
    await until(lambda: server.reads == 1)
    node.receive(late)
    server.pages.set()
    await node.settle()
    node.receive(server.add(1001))
    await node.settle()
    assert (node.delivered, node.gaps) == ([1001], 1)


async def test_new_epoch_is_reported_once_and_continues_at_its_head(
    server: Server, node: Node
) -> None:
    """Also if the clock of the former primary was ahead: offsets of two logs are not compared."""
    node.receive(server.add(5000))
    server.fail_over("e2", 1000)
    node.receive(server.add(1001))
    await node.settle()
    assert (node.delivered, node.gaps) == ([5000], 1)
    node.receive(server.add(1002))
    await node.settle()
    assert (node.delivered, node.gaps) == ([5000, 1002], 1)


async def test_new_epoch_that_is_announced_during_a_heal_is_reported(
    server: Server, node: Node
) -> None:
    """The heal has read the former log, and no further entry follows."""
    node.receive(server.add(5000))
    server.pages.clear()
    node.rooms.catch_up(ALL_PARTITIONS)
    await until(lambda: server.reads == 1)
    server.fail_over("e2", 1000)
    node.receive(server.add(1001))
    server.pages.set()
    await node.settle()
    assert node.gaps == 1
    node.receive(server.add(1002))
    await node.settle()
    assert (node.delivered, node.gaps) == ([5000, 1002], 1)


async def test_emptied_log_is_reported_with_its_epoch(server: Server, node: Node) -> None:
    node.receive(server.add(1001))
    server.fail_over("e2", 0)
    node.rooms.catch_up(ALL_PARTITIONS)
    await node.settle()
    assert node.gaps == 1
    node.receive(server.add(1))
    await node.settle()
    assert (node.delivered, node.gaps) == ([1001, 1], 1)


async def test_epoch_that_begins_while_a_room_is_joined_is_noticed(server: Server) -> None:
    node = Node(server)
    server.replies.clear()
    joining = asyncio.create_task(node.rooms.join(ROOM))
    await until(lambda: server.calls == 1)
    server.fail_over("e2", 500)
    node.receive(server.add(600))
    server.replies.set()
    await joining
    await node.settle()
    assert node.gaps == 1
