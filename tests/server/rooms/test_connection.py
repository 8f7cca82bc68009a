"""PROTOCOL.md, "Many rooms on one connection", without sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable

import pytest

from synap_realtime.protocol.control import CloseCode, ControlFrame
from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.folding import make_fold
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.app import Node, create_node
from synap_realtime.server.auth.claims import UNRESTRICTED
from synap_realtime.server.config import ServerSettings
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.rooms.backlog import (
    MAX_BACKLOG_BYTES,
    SLOW_CONSUMER_TIMEOUT_S,
    UnbatchedSink,
)
from synap_realtime.server.rooms.connection import CONCURRENT_REPLAYS, Connection
from synap_realtime.server.stores.base import (
    DeliveryHandler,
    Entry,
    GapHandler,
    Page,
    Publication,
    ignore_gap,
)
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.clocks import in_virtual_time
from tests.support.folding import Texts, folded
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits

BUSY, QUIET, OTHER = Room("user_busy"), Room("user_quiet"), Room("user_other")


class PartlyUnavailableStore(MemoryStore):
    """A store that cannot read the logs of some rooms.

    Attributes:
        hanging: their reads do not return.
        failing: their reads raise.
    """

    hanging: set[Room]
    failing: set[Room]
    report_gap: GapHandler

    def subscribe(self, handler: DeliveryHandler, on_gap: GapHandler = ignore_gap) -> None:
        super().subscribe(handler, on_gap)
        self.report_gap = on_gap

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        if room in self.hanging:
            await asyncio.Event().wait()
        if room in self.failing:
            raise StoreUnavailableError("unavailable")
        return await super().read(room, after, limit)


class Socket(UnbatchedSink):
    """A sink that accepts a number of writes, until the peer reads.

    Attributes:
        accepts: how many more writes it accepts.
        sent: what was written: a room and an id, or the type and the data of a control frame.
    """

    def __init__(self) -> None:
        self.accepts = 1_000_000
        self.sent: list[tuple[str, object]] = []
        self.texts: dict[str, Texts] = {}
        self.code: CloseCode | None = None
        self._changed = asyncio.Event()

    @property
    def is_writable(self) -> bool:
        return self.accepts > 0

    def send(self, entry: Entry) -> bool:
        assert self.is_writable, "a notification is written only to a writable socket"
        wire = json.loads(entry.text)
        self.texts.setdefault(wire["room"], Texts()).apply(wire)
        self._write(wire["room"], wire["id"])
        return self.is_writable

    send_batched = send

    def send_control(self, frame: ControlFrame) -> None:
        self._write(frame.type, dict(frame.data))

    def close(self, code: CloseCode) -> None:
        self.code = code

    def text(self, room: Room) -> str:
        """The text of the pieces of a room, applied by their offsets."""
        return self.texts.setdefault(room, Texts()).by_key.get("k", "")

    def _write(self, name: str, value: object) -> None:
        self.accepts -= 1
        self.sent.append((name, value))
        self._changed.set()

    async def until(self, check: Callable[[], object]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while not check():
                self._changed.clear()
                await self._changed.wait()

    async def until_subscribed(self, *rooms: Room) -> None:
        await self.until(lambda: set(rooms) <= self.subscribed)

    @property
    def subscribed(self) -> set[object]:
        return {data["room"] for data in self.frames("synap.subscribed")}

    def frames(self, type: str) -> list[dict[str, object]]:
        return [data for name, data in self.sent if name == type and isinstance(data, dict)]

    def ids(self, room: Room) -> list[object]:
        return [id for name, id in self.sent if name == room]


class Server:
    """A node, and a client's connection to it."""

    def __init__(self) -> None:
        self.store = PartlyUnavailableStore()
        self.store.hanging, self.store.failing = set(), set()
        settings = ServerSettings(piece_interval_ms=0)
        self.node: Node = create_node(settings, self.store)
        self.connection: Connection
        self.socket = Socket()

    async def connect(self) -> None:
        registry = self.node.sessions
        self.connection = await registry.open_connection(UNRESTRICTED, None, transport="websocket")
        await self.connection.run(None, self.socket)

    def act(self, action: str, room: str | None = None, **members: object) -> None:
        message = {"action": action, "room": room, **members}
        self.connection.on_client_message(
            json.dumps({name: value for name, value in message.items() if value is not None})
        )

    async def publish(self, room: Room, *ids: str, size: int = 0) -> None:
        for id in ids:
            text = json.dumps({"type": "a", "data": {"x": "x" * size}, "id": id})
            await self.store.publish([Publication(room, id, text)])

    def read(self, count: int) -> None:
        """Let the peer read so many writes."""
        self.socket.accepts = count
        self.connection.on_writable()

    def block(self) -> None:
        self.socket.accepts = 0
        self.connection.on_write_blocked()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.connect()
    yield server
    server.node.sessions.close(server.connection)
    await server.node.close()


async def test_delivers_nothing_to_a_blocked_socket(server: Server) -> None:
    for room in (BUSY, QUIET):
        server.act("subscribe", room)
    await server.socket.until_subscribed(BUSY, QUIET)
    server.block()
    await server.publish(BUSY, *(f"b{n}" for n in range(5)))
    await server.publish(QUIET, "q0")
    assert server.socket.ids(BUSY) == server.socket.ids(QUIET) == []
    server.read(100)
    assert server.socket.ids(BUSY) == [f"b{n}" for n in range(5)]
    assert server.socket.ids(QUIET) == ["q0"]


async def test_a_busy_room_delays_another_one_by_one_write(server: Server) -> None:
    for room in (BUSY, QUIET):
        server.act("subscribe", room)
    await server.socket.until_subscribed(BUSY, QUIET)
    server.block()
    await server.publish(BUSY, *(f"b{n}" for n in range(100)))
    server.read(10)
    await server.publish(QUIET, "q0")
    assert len(server.socket.ids(BUSY)) == 10
    server.read(1)
    assert server.socket.ids(QUIET) == ["q0"], "it had written nothing for longer"


async def test_replays_alternate(server: Server) -> None:
    for room in (BUSY, QUIET):
        await server.publish(room, *(f"n{n}" for n in range(50)))
    server.block()
    for room in (BUSY, QUIET):
        server.act("subscribe", room, after="earliest")
    for _ in range(40):
        server.read(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    counts = [len(server.socket.ids(room)) for room in (BUSY, QUIET)]
    assert abs(counts[0] - counts[1]) <= 2, counts
    server.read(1000)
    await server.socket.until_subscribed(BUSY, QUIET)
    for room in (BUSY, QUIET):
        assert server.socket.ids(room) == [f"n{n}" for n in range(50)]


async def test_a_log_that_does_not_answer_delays_no_other_room(server: Server) -> None:
    server.store.hanging.add(BUSY)
    server.act("subscribe", BUSY)
    rooms = [Room(f"user_{number}") for number in range(20)]
    for room in rooms:
        server.act("subscribe", room)
    await server.socket.until_subscribed(*rooms)
    await server.publish(rooms[-1], "n0")
    assert server.socket.ids(rooms[-1]) == ["n0"]
    server.act("unsubscribe", BUSY)
    assert server.socket.frames("synap.unsubscribed") == [{"room": BUSY}]


async def test_a_log_that_cannot_be_read_ends_its_room(server: Server) -> None:
    server.store.failing.add(BUSY)
    for room in (BUSY, QUIET):
        server.act("subscribe", room)
    await server.socket.until(lambda: server.socket.frames("synap.unsubscribed"))
    (ended,) = server.socket.frames("synap.unsubscribed")
    assert (ended["room"], ended["code"]) == (BUSY, CloseCode.DRAINING)
    await server.socket.until_subscribed(QUIET)
    server.store.failing.clear()
    server.act("subscribe", BUSY)
    await server.socket.until_subscribed(BUSY)


async def test_the_room_with_the_largest_backlog_ends(server: Server) -> None:
    for room in (BUSY, QUIET, OTHER):
        server.act("subscribe", room)
    await server.socket.until_subscribed(BUSY, QUIET, OTHER)
    server.block()
    await server.publish(QUIET, "q0", size=200_000)
    await server.publish(OTHER, "o0", "o1", size=100_000)
    await server.publish(BUSY, *(f"b{n}" for n in range(8)), size=100_000)
    assert server.connection.backlog.bytes <= MAX_BACKLOG_BYTES
    server.read(100)
    (ended,) = server.socket.frames("synap.unsubscribed")
    assert (ended["room"], ended["code"]) == (BUSY, CloseCode.SLOW_CONSUMER)
    assert server.socket.ids(BUSY) == []
    assert server.socket.ids(QUIET) == ["q0"]
    assert server.socket.ids(OTHER) == ["o0", "o1"]
    assert server.connection.backlog.bytes == 0
    assert server.socket.code is None


async def test_replays_hold_few_pages_while_the_socket_is_blocked(server: Server) -> None:
    rooms = [Room(f"user_{number}") for number in range(30)]
    for room in rooms:
        await server.publish(room, "n0", "n1", size=50_000)
    server.block()
    for room in rooms:
        server.act("subscribe", room, after="earliest")
    for _ in range(20):
        await asyncio.sleep(0)
    assert server.node.budgets.backlogs.bytes <= CONCURRENT_REPLAYS * 2 * 51_000
    server.read(1000)
    await server.socket.until_subscribed(*rooms)
    assert all(server.socket.ids(room) == ["n0", "n1"] for room in rooms)


async def test_pages_of_replays_end_no_other_room(server: Server) -> None:
    """A replay may hold large notifications, which are no backlog of the live rooms."""
    rooms = [Room(f"user_{number}") for number in range(CONCURRENT_REPLAYS)]
    for room in rooms:
        await server.publish(room, "n0", "n1", "n2", size=200_000)
    server.act("subscribe", QUIET)
    await server.socket.until_subscribed(QUIET)
    server.block()
    for room in rooms:
        server.act("subscribe", room, after="earliest")
    for _ in range(20):
        await asyncio.sleep(0)
    assert server.node.budgets.backlogs.bytes > MAX_BACKLOG_BYTES
    await server.publish(QUIET, "q0")
    server.read(1000)
    await server.socket.until_subscribed(*rooms)
    assert server.socket.ids(QUIET) == ["q0"]
    assert server.socket.frames("synap.unsubscribed") == []


async def test_growing_texts_of_many_rooms_are_joined_before_a_room_ends(server: Server) -> None:
    rooms = [Room(f"user_{number}") for number in range(30)]
    for room in rooms:
        server.act("subscribe", room)
    await server.socket.until_subscribed(*rooms)
    server.block()
    for number in range(300):  # 2 MB as single pieces, of which no room has 64 KiB
        for room in rooms:
            piece = folded(f"p{number}", make_fold("k", "append", "12345", offset=5 * number), room)
            await server.store.publish([piece])
    assert server.connection.backlog.bytes <= MAX_BACKLOG_BYTES
    server.read(10_000)
    assert server.socket.frames("synap.unsubscribed") == []
    for room in rooms:
        assert server.socket.text(room) == "12345" * 300
    assert server.connection.backlog.bytes == 0


@in_virtual_time
async def test_a_room_that_waits_for_the_others_is_not_slow() -> None:
    """The peer reads slowly, but it reads: no room ends, however long the others take."""
    server = Server()
    await server.connect()
    rooms = [Room(f"user_{number}") for number in range(20)]
    for room in rooms:
        server.act("subscribe", room)
    await server.socket.until_subscribed(*rooms)
    server.block()
    for room in rooms:
        await server.publish(room, "n0", "n1")
    for _ in range(2 * len(rooms)):
        await asyncio.sleep(0.4 * SLOW_CONSUMER_TIMEOUT_S)
        server.read(1)
    assert server.socket.frames("synap.unsubscribed") == []
    assert all(server.socket.ids(room) == ["n0", "n1"] for room in rooms)
    await server.publish(rooms[0], "n2")
    await asyncio.sleep(1.1 * SLOW_CONSUMER_TIMEOUT_S)
    assert server.socket.code == CloseCode.SLOW_CONSUMER
    server.node.sessions.close(server.connection)
    await server.node.close()


async def test_logs_that_do_not_answer_delay_no_other_room(
    server: Server, set_waits: SetWaits
) -> None:
    set_waits(slow_read_s=0.05)
    slow = [Room(f"workspace_{number}") for number in range(CONCURRENT_REPLAYS + 1)]
    server.store.hanging.update(slow)
    for room in (*slow, QUIET):
        server.act("subscribe", room)
    await server.socket.until_subscribed(QUIET)


async def test_a_peer_that_does_not_read_is_closed(server: Server, set_waits: SetWaits) -> None:
    set_waits(slow_consumer_timeout_s=0.05)
    server.act("subscribe", BUSY)
    await server.socket.until_subscribed(BUSY)
    server.block()
    await server.publish(BUSY, "b0")
    async with asyncio.timeout(TIMEOUT_S):
        assert await server.connection.wait_closed() == CloseCode.SLOW_CONSUMER
    assert server.socket.code == CloseCode.SLOW_CONSUMER


async def test_answers_to_a_peer_that_does_not_read_are_bounded(server: Server) -> None:
    server.block()
    for _ in range(1100):
        server.connection.send_control(ControlFrame("synap.error", {}))
    assert server.socket.code == CloseCode.SLOW_CONSUMER


async def test_frames_come_before_later_notifications(server: Server) -> None:
    server.act("subscribe", BUSY)
    await server.socket.until_subscribed(BUSY)
    server.block()
    server.act("nonsense")
    await server.publish(BUSY, "b0")
    server.read(100)
    assert [name for name, _ in server.socket.sent[-2:]] == ["synap.error", BUSY]


async def test_drains_once_for_all_rooms(server: Server) -> None:
    for room in (BUSY, QUIET):
        server.act("subscribe", room)
    await server.socket.until_subscribed(BUSY, QUIET)
    server.block()
    await server.publish(BUSY, "b0")
    server.connection.drain(250)
    server.act("subscribe", OTHER)
    assert server.socket.code is None
    server.read(100)
    (closing,) = server.socket.frames("synap.closing")
    assert closing == {"code": 4012, "reconnectAfterMs": 250}
    (error,) = server.socket.frames("synap.error")
    assert (error["code"], error["room"]) == ("unavailable", OTHER)
    assert server.socket.ids(BUSY) == ["b0"], "what it had accepted is delivered"
    assert server.socket.frames("synap.unsubscribed") == []
    assert server.socket.code == CloseCode.DRAINING


async def test_a_connection_without_rooms_drains(server: Server) -> None:
    server.connection.drain(100)
    assert server.socket.code == CloseCode.DRAINING


async def test_a_gap_during_a_replay_ends_the_room_alone(server: Server) -> None:
    for room in (BUSY, QUIET):
        server.act("subscribe", room)
    await server.socket.until_subscribed(BUSY, QUIET)
    server.block()
    await server.publish(BUSY, "b0")  # the room is blocked, so it cannot continue after a gap
    server.store.report_gap(BUSY, Cursor("e", 5))
    server.store.report_gap(QUIET, Cursor("e", 7))
    server.read(100)
    (ended,) = server.socket.frames("synap.unsubscribed")
    assert (ended["room"], ended["code"]) == (BUSY, CloseCode.DRAINING)
    assert isinstance(ended["reconnectAfterMs"], int)
    (gap,) = (frame for frame in server.socket.frames("synap.subscribed") if not frame["recovered"])
    assert (gap["room"], gap["cursor"]) == (QUIET, "e-7")


async def test_subscribes_again_immediately(server: Server) -> None:
    for _ in range(50):
        server.act("subscribe", BUSY)
        server.act("unsubscribe", BUSY)
    server.act("subscribe", BUSY)
    await server.socket.until_subscribed(BUSY)
    await server.publish(BUSY, "b0")
    assert server.socket.ids(BUSY) == ["b0"]
    assert len(server.connection.sessions()) == 1
    assert len(server.node.sessions.in_room(BUSY)) == 1


async def test_leaves_nothing_behind(server: Server) -> None:
    for room in (BUSY, QUIET):
        server.act("subscribe", room, presence=True)
    await server.socket.until_subscribed(BUSY, QUIET)
    server.node.sessions.close(server.connection)
    assert server.node.sessions.in_room(BUSY) == []
    assert server.node.sessions.count() == {"websocket": 0, "sse": 0}
    assert server.node.budgets.backlogs.bytes == 0
