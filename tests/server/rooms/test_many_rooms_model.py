"""Several rooms on one connection against a plain model of each (PROTOCOL.md, "Folding")."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from synap_realtime.protocol.control import CloseCode, ControlFrame
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.app import Node, create_node
from synap_realtime.server.auth.claims import UNRESTRICTED
from synap_realtime.server.config import ServerSettings
from synap_realtime.server.rooms.backlog import MAX_BACKLOG_BYTES, UnbatchedSink
from synap_realtime.server.rooms.connection import Connection
from synap_realtime.server.stores.base import Entry, Retention
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.clocks import VirtualTimeLoop
from tests.support.folding import FoldingClient, write
from tests.support.stores import publish

ROOMS = (Room("user_1"), Room("user_2"), Room("request_3"))
RETENTION_COUNT = 12


class SlowStore(MemoryStore):
    """A store whose pages are old by the time that they arrive, as a database's are."""

    async def read(self, *arguments: Any) -> Any:
        page = await super().read(*arguments)
        await asyncio.sleep(0.001)
        return page


class RoomModel:
    """One room: what was published, and what the client shows.

    Attributes:
        texts: the text of each key, of its last attempt.
        replaced: the last id of each key with the mode ``replace``.
        ids: of ordinary notifications.
        shown: the same, as the client has it.
        has_gap: whether the server has said that notifications were missed.
        after: where the client starts.
        state: of the client's subscription.
    """

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.replaced: dict[str, str] = {}
        self.ids: list[str] = []
        self.attempts: dict[str, int] = {}
        self.indexes: dict[str, int] = {}
        self.shown = FoldingClient()
        self.has_gap = False
        self.after = "earliest"
        self.is_wanted = False
        self.is_replaying = False
        self.starts_at_earliest = True

    @property
    def is_trimmed(self) -> bool:
        """Whether the log may have lost something."""
        return len(self.ids) + len(self.texts) + len(self.replaced) > RETENTION_COUNT

    def leave(self) -> None:
        # The server tells about a gap only at the end of a replay.
        self.has_gap |= self.is_replaying and self.is_trimmed
        self.is_wanted = self.is_replaying = False

    def subscribed(self, data: Mapping[str, Any]) -> None:
        # What was lost before the earliest notification is no gap.
        self.has_gap |= not data["recovered"] or (self.starts_at_earliest and self.is_trimmed)
        self.is_replaying = self.starts_at_earliest = False
        self.after = data["cursor"]

    def receive(self, wire: dict[str, Any]) -> None:
        self.shown.receive(wire)
        self.after = self.shown.after


class Client(UnbatchedSink):
    """One connection at a time, whose peer reads a number of writes."""

    def __init__(self, world: World, *, joins: bool) -> None:
        """
        Args:
            joins: replayed notifications are joined into one write, as on a WebSocket.
        """
        self.max_joined_bytes = 16 * 1024 if joins else 0
        self.world = world
        self.accepts = 0
        self.connection: Connection | None = None

    @property
    def is_writable(self) -> bool:
        return self.accepts > 0

    def send(self, entry: Entry) -> bool:
        return self.send_joined([entry])

    send_batched = send

    def send_joined(self, entries: Sequence[Entry]) -> bool:
        assert self.is_writable, "a notification is written only to a writable socket"
        self.accepts -= 1
        for entry in entries:
            wire = json.loads(entry.text)
            room = self.world.rooms[Room(wire["room"])]
            assert room.is_wanted, "nothing follows synap.unsubscribed"
            room.receive(wire)
        return self.is_writable

    def send_control(self, frame: ControlFrame) -> None:
        assert self.is_writable
        self.accepts -= 1
        room = self.world.rooms.get(frame.data.get("room", ""))
        assert frame.type != "synap.error", frame.data
        if room is not None and frame.type == "synap.subscribed":
            room.subscribed(frame.data)
        elif room is not None and frame.type == "synap.unsubscribed" and "code" in frame.data:
            room.leave()

    def close(self, code: CloseCode) -> None:
        assert code is CloseCode.DRAINING
        self.world.disconnected()


class World:
    """A node whose store outlives it, its rooms, and one client."""

    def __init__(self, *, joins: bool) -> None:
        self.store = SlowStore(Retention(count=RETENTION_COUNT))
        self.rooms = {room: RoomModel() for room in ROOMS}
        self.client = Client(self, joins=joins)
        self.count = 0
        self.node: Node
        self.start()

    def start(self) -> None:
        self.node = create_node(ServerSettings(drain_timeout_s=1), self.store)

    def new_id(self) -> str:
        self.count += 1
        return f"i{self.count}"

    # ---- the publishers

    async def publish(self, room: Room) -> None:
        self.rooms[room].ids.append(self.new_id())
        await publish(self.store, self.rooms[room].ids[-1], room)

    async def replace(self, room: Room, key: str) -> None:
        self.rooms[room].replaced[f"state {key}"] = self.new_id()
        await write(self.store, f"i{self.count}", "replace", key=f"state {key}", room=room)

    async def append(self, room: Room, key: str, piece: str, *, restarts: bool = False) -> None:
        model = self.rooms[room]
        if restarts or key not in model.texts:
            model.attempts[key] = model.attempts.get(key, -1) + 1
            model.texts[key], model.indexes[key] = "", 0
        result = await write(
            self.store, self.new_id(), piece=piece, key=key, room=room,
            attempt=model.attempts[key], offset=len(model.texts[key]),
            data={"index": model.indexes[key]},
        )  # fmt: skip
        if result.conflict is not None:  # the key is no longer retained
            assert result.conflict.code == "offset_mismatch"
            await self.append(room, key, piece, restarts=True)
            return
        model.texts[key] += piece
        model.indexes[key] += 1

    async def trim(self, room: Room) -> None:
        """Publish so much that everything before is no longer retained."""
        for _ in range(RETENTION_COUNT):
            await self.publish(room)

    # ---- the client

    async def connect(self) -> None:
        client = self.client
        if client.connection is None:
            client.accepts = 5
            client.connection = await self.node.sessions.open_connection(
                UNRESTRICTED, None, transport="websocket"
            )
            await client.connection.run(None, client)

    def disconnect(self) -> None:
        if (connection := self.client.connection) is not None:
            self.node.sessions.close(connection)
            self.disconnected()

    def disconnected(self) -> None:
        if (connection := self.client.connection) is not None:
            self.node.sessions.close_soon(connection)
        self.client.connection = None
        for room in self.rooms.values():
            room.leave()

    def subscribe(self, room: Room) -> None:
        model = self.rooms[room]
        if self.client.connection is not None and not model.is_wanted:
            model.is_wanted = model.is_replaying = True
            model.shown.indexed = {}
            self.act("subscribe", room, after=model.after)

    def unsubscribe(self, room: Room) -> None:
        if self.client.connection is not None and self.rooms[room].is_wanted:
            self.act("unsubscribe", room)
            self.rooms[room].leave()

    def act(self, action: str, room: Room, **members: str) -> None:
        assert self.client.connection is not None
        message = {"action": action, "room": room, **members}
        self.client.connection.on_client_message(json.dumps(message))

    def read(self, count: int) -> None:
        self.client.accepts += count
        if self.client.connection is not None:
            self.client.connection.on_writable()

    def block(self) -> None:
        self.client.accepts = 0
        if self.client.connection is not None:
            self.client.connection.on_write_blocked()

    async def restart(self) -> None:
        """Drain the node, and start another one."""
        draining = asyncio.ensure_future(self.node.drain())
        await asyncio.sleep(0.01)
        self.read(3)
        await draining
        self.disconnect()
        await asyncio.sleep(0)
        assert self.node.budgets.backlogs.bytes == 0
        self.start()

    def check_bounds(self) -> None:
        if (connection := self.client.connection) is not None:
            sessions = connection.sessions()
            live = sum(session.subscription.backlog_bytes for session in sessions)
            assert connection.backlog.bytes == live <= MAX_BACKLOG_BYTES

    async def finish(self) -> None:
        """Let the client receive everything."""
        await self.connect()
        for _ in range(40):
            for room in ROOMS:
                self.subscribe(room)
            self.read(1000)
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        self.disconnect()
        await asyncio.sleep(0)
        assert self.node.budgets.backlogs.bytes == 0
        await self.node.close()


def check(model: RoomModel) -> None:
    """Check that a client that has received everything shows what was published."""
    if not model.has_gap:
        for key, (text, _) in model.shown.indexed.items():
            assert text == model.texts[key]
        assert model.shown.ids == model.ids
        assert model.shown.texts.by_key == model.texts
        assert model.shown.replaced == model.replaced
        return
    # What the log has lost is not shown, but everything shown is right and in order.
    remaining = iter(model.ids)
    assert all(id in remaining for id in model.shown.ids)
    assert model.shown.ids[-1:] == model.ids[-1:]


KEYS = st.sampled_from(["k", "k", "k", "l"])
IN_ROOM = st.sampled_from(ROOMS)
STEPS = st.one_of(
    st.tuples(st.just("burst"), IN_ROOM, KEYS, st.integers(1, 5)),
    st.tuples(st.just("restart text"), IN_ROOM, KEYS),
    st.tuples(st.just("append"), IN_ROOM, KEYS, st.sampled_from(["", "a", "é😀", "long" * 9000])),
    st.tuples(st.just("replace"), IN_ROOM, KEYS),
    st.tuples(st.sampled_from(["publish", "publish", "publish", "trim"]), IN_ROOM),
    st.tuples(st.sampled_from(["subscribe", "subscribe", "subscribe", "unsubscribe"]), IN_ROOM),
    st.sampled_from([("connect",), ("connect",), ("disconnect",), ("block",), ("block",)]),
    st.sampled_from([("connect",), ("restart",), ("read", 1), ("read", 2), ("read", 20)]),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.0015, 0.003, 0.05])),
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(STEPS, min_size=15, max_size=70), st.booleans())
@example(  # pieces of two rooms wait for the pacer when the node drains
    [
        *(("connect",), ("subscribe", ROOMS[0]), ("subscribe", ROOMS[1]), ("wait", 0.05)),
        *(("burst", ROOMS[0], "k", 3), ("burst", ROOMS[1], "k", 3), ("restart",)),
        *(("burst", ROOMS[0], "k", 3), ("burst", ROOMS[1], "k", 3)),
    ],
    True,
)
@example(  # a room is left and joined again while its pieces wait
    [
        *(("connect",), ("subscribe", ROOMS[0]), ("wait", 0.05), ("burst", ROOMS[0], "k", 3)),
        *(("unsubscribe", ROOMS[0]), ("burst", ROOMS[0], "k", 1), ("subscribe", ROOMS[0])),
        *(("wait", 0.003), ("burst", ROOMS[0], "k", 2), ("wait", 0.05)),
    ],
    False,
)
def test_each_room_of_a_connection_equals_its_model(
    steps: list[tuple[Any, ...]],
    joins: bool,
) -> None:
    """Whoever publishes what, and however the client reads, leaves and resumes."""

    async def run() -> None:
        world = World(joins=joins)
        for step in steps:
            match step:
                case "burst", room, key, count:
                    for _ in range(count):
                        await world.append(room, key, "xy")
                case "append", room, key, piece:
                    await world.append(room, key, piece)
                case "restart text", room, key:
                    await world.append(room, key, "new", restarts=True)
                case "replace", room, key:
                    await world.replace(room, key)
                case ("publish" | "trim" | "connect" | "restart") as action, *arguments:
                    await getattr(world, action)(*arguments)
                case "wait", seconds:
                    await asyncio.sleep(seconds)
                case action, *arguments:
                    getattr(world, action)(*arguments)
            world.check_bounds()
        await world.finish()
        for model in world.rooms.values():
            check(model)
        await world.close()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())
