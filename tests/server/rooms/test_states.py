"""The states of a subscription, with a sink that the test blocks and frees."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synap_realtime.protocol.control import PRESENCE, SUBSCRIBED, CloseCode, ControlFrame
from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.metrics import Metrics
from synap_realtime.server.resources.byte_budget import BacklogBudget, Caller, Holder
from synap_realtime.server.rooms.backlog import (
    MAX_BACKLOG_FRAMES,
    SLOW_CONSUMER_TIMEOUT_S,
    UnbatchedSink,
)
from synap_realtime.server.rooms.delivery_state import DeliveryState
from synap_realtime.server.rooms.hub import Hub
from synap_realtime.server.rooms.subscription import Subscription
from synap_realtime.server.stores.base import Entry, Page, Publication
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.clocks import in_virtual_time
from tests.support.stores import LateStore
from tests.support.timeouts import TIMEOUT_S

USER = Room("user_1")
FRAME = ControlFrame(PRESENCE, {"event": "state", "users": []})


class ManualSink(UnbatchedSink):
    """Writes while the test lets it.

    Attributes:
        blocks_after: how many more notifications it writes before it blocks; None: any number.
        written: ids of notifications and types of control frames, in order.
        frames: the control frames.
    """

    def __init__(self) -> None:
        self.is_writable = True
        self.blocks_after: int | None = None
        self.written: list[str] = []
        self.frames: list[ControlFrame] = []
        self.code: CloseCode | None = None

    def send(self, entry: Entry) -> bool:
        assert self.is_writable, "written to a blocked socket"
        self.written.append(json.loads(entry.text)["id"])
        if self.blocks_after is not None:
            self.blocks_after -= 1
            self.is_writable = self.blocks_after > 0
        return self.is_writable

    send_batched = send

    def send_control(self, frame: ControlFrame) -> None:
        assert self.is_writable, "written to a blocked socket"
        self.written.append(frame.type)
        self.frames.append(frame)

    def close(self, code: CloseCode) -> None:
        assert self.code is None, "closed twice"
        self.code = code


class JoiningSink(ManualSink):
    """Writes several notifications by one write.

    Attributes:
        joined: the ids of each such write.
    """

    max_joined_bytes = 240  # three notifications of this test

    def __init__(self) -> None:
        super().__init__()
        self.joined: list[list[str]] = []

    def send_joined(self, entries: Sequence[Entry]) -> bool:
        assert self.is_writable, "written to a blocked socket"
        assert sum(entry.size for entry in entries) <= self.max_joined_bytes
        self.joined.append([json.loads(entry.text)["id"] for entry in entries])
        self.written += self.joined[-1]
        self.is_writable = False
        return False


class Budget(BacklogBudget):
    """Remembers what the one subscriber is charged."""

    def __init__(self) -> None:
        super().__init__(0, 0)
        self.charged = 0

    def charge(self, subscriber: Holder, caller: Caller, size: int) -> None:
        super().charge(subscriber, caller, size)
        self.charged = size


class SubscribedRoom:
    """A room with one subscription."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.hub = Hub()
        self.store.subscribe(self.hub.broadcast)
        self.sink = ManualSink()
        self.budget = Budget()
        self.subscription = Subscription(
            self.store, self.hub, USER, Metrics("test", 0), acknowledges=True, budget=self.budget
        )
        self.published: list[str] = []
        self.running: asyncio.Task[None] | None = None

    @property
    def state(self) -> DeliveryState:
        return self.subscription.state

    async def publish(self) -> int:
        """Publish one notification. Return how many subscribers accepted it."""
        id = f"n{len(self.published) + 1}"
        self.published.append(id)
        (result,) = await self.store.publish([Publication(USER, id, json.dumps({"id": id}))])
        return result.broadcast_count

    def block(self) -> None:
        self.sink.is_writable = False
        self.subscription.on_write_blocked()

    def free(self) -> None:
        self.sink.is_writable = True
        self.subscription.on_writable()

    async def start(self) -> None:
        """Run the subscription until it is live or waits."""
        self.running = asyncio.create_task(self.subscription.run("earliest", self.sink))
        await asyncio.sleep(0)

    async def enter(self, state: DeliveryState) -> None:
        """Bring the subscription into a state by what causes it."""
        if state is DeliveryState.JOINING:
            return
        if state in (DeliveryState.REPLAYING, DeliveryState.CATCHING_UP):
            await self.publish()
            self.sink.is_writable = False
            await self.start()
            if state is DeliveryState.CATCHING_UP:
                self.sink.is_writable = True
                self.store.read = self._blocking_read  # type: ignore[method-assign]
                self.subscription.on_writable()
                await self.publish()  # since the page was read, so that there is one more
                await asyncio.sleep(0)
            return
        await self.start()
        if state is DeliveryState.BLOCKED:
            self.block()
        elif state is DeliveryState.DRAINING:
            self.block()
            self.subscription.drain(100)
        elif state is DeliveryState.CLOSED:
            self.subscription.close(CloseCode.REVOKED)

    async def _blocking_read(self, room: Room, after: Cursor, limit: int) -> Page:
        self.sink.is_writable = False
        return await MemoryStore.read(self.store, room, after, limit)

    async def finish(self) -> None:
        self.sink.is_writable = True
        for _ in range(20):
            self.subscription.on_writable()
            await asyncio.sleep(0)
        self.subscription.detach()
        if self.running is not None:
            async with asyncio.timeout(TIMEOUT_S):
                await self.running
        await self.store.close()


EVERY_STATE = list(DeliveryState)
BLOCKED_STATES = [DeliveryState.REPLAYING, DeliveryState.CATCHING_UP, DeliveryState.BLOCKED]
OPEN_STATES = [
    each for each in DeliveryState if each not in (DeliveryState.DRAINING, DeliveryState.CLOSED)
]


@pytest.mark.parametrize("state", EVERY_STATE, ids=lambda state: state.name)
async def test_reaches_every_state_by_its_cause(state: DeliveryState) -> None:
    room = SubscribedRoom()
    await room.enter(state)
    assert room.state is state
    await room.finish()
    assert room.state is DeliveryState.CLOSED


@pytest.mark.parametrize("state", OPEN_STATES, ids=lambda state: state.name)
async def test_everything_published_is_written_once_whatever_the_state(
    state: DeliveryState,
) -> None:
    room = SubscribedRoom()
    await room.enter(state)
    for _ in range(3):
        await room.publish()
    if state is DeliveryState.JOINING:
        await room.start()
    for _ in range(20):
        room.free()
        await asyncio.sleep(0)
    assert room.state is DeliveryState.LIVE
    await room.publish()
    assert [each for each in room.sink.written if each in room.published] == room.published
    assert room.sink.written.count("synap.subscribed") == 1
    await room.finish()


async def test_entry_that_was_replayed_before_its_delivery_is_not_written_again() -> None:
    """A store may deliver an entry a while after it can be read, and the socket block meanwhile."""
    room = SubscribedRoom()
    late = LateStore()
    late.subscribe(room.hub.broadcast)
    room.store = late
    room.subscription = Subscription(
        late, room.hub, USER, Metrics("test", 0), acknowledges=True, budget=room.budget
    )
    await room.publish()
    await room.start()
    await asyncio.sleep(0)
    room.block()
    await room.publish()
    late.release()
    room.free()
    await asyncio.sleep(0)
    assert [each for each in room.sink.written if each in room.published] == ["n1", "n2"]
    await room.finish()


async def test_live_client_receives_a_gap_and_continues_in_the_new_epoch() -> None:
    room = SubscribedRoom()
    await room.enter(DeliveryState.LIVE)
    await room.publish()
    head = await room.store.head(USER)
    room.subscription.on_gap(Cursor("new", 5))  # offsets may start anew
    assert room.state is DeliveryState.LIVE
    assert room.sink.written == ["synap.subscribed", "n1", "synap.subscribed"]
    assert room.sink.frames[-1].data == {
        "room": USER, "cursor": "new-5", "replayed": 0, "recovered": False,
    }  # fmt: skip
    assert not room.subscription.acknowledge(head)
    assert room.subscription.acknowledge(Cursor("new", 5))
    await room.publish()
    assert room.sink.written[-1] == "n2"
    await room.finish()


@pytest.mark.parametrize("state", BLOCKED_STATES, ids=lambda state: state.name)
async def test_client_that_is_behind_reconnects_after_a_gap(state: DeliveryState) -> None:
    room = SubscribedRoom()
    await room.enter(state)
    await room.publish()
    room.subscription.on_gap(Cursor("new", 5))
    assert room.state is DeliveryState.DRAINING
    for _ in range(20):
        room.free()
        await asyncio.sleep(0)
    assert room.subscription.close_code is CloseCode.DRAINING
    assert [each for each in room.sink.written if each in room.published] == room.published
    await room.finish()


@pytest.mark.parametrize("state", OPEN_STATES, ids=lambda state: state.name)
async def test_drains_what_was_accepted_and_nothing_later(state: DeliveryState) -> None:
    room = SubscribedRoom()
    await room.enter(state)
    await room.publish()
    room.block()
    room.subscription.drain(100)
    assert room.state is DeliveryState.DRAINING
    accepted = list(room.published)
    if state is not DeliveryState.JOINING:  # else the hub does not know it yet
        assert await room.publish() == 0, "accepted while draining"
        accepted = room.published[:-1]
    if state is DeliveryState.JOINING:
        await room.start()
    for _ in range(20):
        room.free()
        await asyncio.sleep(0)
    assert (room.state, room.sink.code) == (DeliveryState.CLOSED, CloseCode.DRAINING)
    written = [each for each in room.sink.written if each in room.published]
    # A replay also has what was published while it drains: it is in the log.
    assert written[: len(accepted)] == accepted
    assert written in (accepted, room.published)
    assert room.sink.written.count("synap.closing") == 1
    await room.finish()


@pytest.mark.parametrize("state", EVERY_STATE[:-1], ids=lambda state: state.name)
async def test_closes_from_every_state_and_writes_nothing_more(state: DeliveryState) -> None:
    room = SubscribedRoom()
    await room.enter(state)
    room.subscription.close(CloseCode.REVOKED)
    room.subscription.close(CloseCode.DRAINING)
    assert (room.state, room.subscription.close_code) == (DeliveryState.CLOSED, CloseCode.REVOKED)
    written = list(room.sink.written)
    room.subscription.drain(100)
    room.subscription.send_control(FRAME)
    room.subscription.on_write_blocked()
    assert await room.publish() == 0
    if state is DeliveryState.JOINING:
        await room.start()
    for _ in range(5):
        room.free()
        await asyncio.sleep(0)
    assert room.sink.code is CloseCode.REVOKED
    assert room.sink.written == written
    assert room.state is DeliveryState.CLOSED
    assert await room.subscription.wait_closed() is CloseCode.REVOKED
    await room.finish()


@pytest.mark.parametrize("state", OPEN_STATES, ids=lambda state: state.name)
async def test_control_frame_precedes_later_notifications(state: DeliveryState) -> None:
    room = SubscribedRoom()
    await room.enter(state)
    room.subscription.send_control(FRAME)
    if state is DeliveryState.JOINING:
        await room.start()
    await room.publish()
    for _ in range(20):
        room.free()
        await asyncio.sleep(0)
    assert room.sink.written.count(PRESENCE) == 1
    assert room.sink.written.index(PRESENCE) < room.sink.written.index(room.published[-1])
    await room.finish()


@pytest.mark.parametrize(
    "state", [*BLOCKED_STATES, DeliveryState.DRAINING], ids=lambda state: state.name
)
@in_virtual_time
async def test_blocked_socket_is_closed_after_the_timeout(state: DeliveryState) -> None:
    room = SubscribedRoom()
    await room.enter(state)
    await asyncio.sleep(SLOW_CONSUMER_TIMEOUT_S - 0.1)
    assert room.state is not DeliveryState.CLOSED
    await asyncio.sleep(0.2)
    assert room.subscription.close_code is CloseCode.SLOW_CONSUMER
    await room.finish()


@in_virtual_time
async def test_slow_reader_is_not_closed_while_it_reads() -> None:
    room = SubscribedRoom()
    await room.enter(DeliveryState.BLOCKED)
    for _ in range(5):
        for _ in range(2):
            await room.publish()
        await asyncio.sleep(SLOW_CONSUMER_TIMEOUT_S / 2)
        room.sink.blocks_after = 1
        room.free()
        assert room.state is DeliveryState.BLOCKED
    room.sink.blocks_after = None
    await room.finish()
    assert room.sink.written[1:] == room.published


@in_virtual_time
async def test_reading_everything_ends_the_timeout() -> None:
    room = SubscribedRoom()
    await room.enter(DeliveryState.BLOCKED)
    room.free()
    await asyncio.sleep(2 * SLOW_CONSUMER_TIMEOUT_S)
    assert room.state is DeliveryState.LIVE
    await room.finish()


@pytest.mark.parametrize("state", BLOCKED_STATES, ids=lambda state: state.name)
@pytest.mark.parametrize("end", ["close", "detach", "read"])
async def test_backlog_is_charged_until_it_is_written_or_dropped(
    state: DeliveryState, end: str
) -> None:
    room = SubscribedRoom()
    await room.enter(state)
    await room.publish()
    assert room.budget.bytes > 0
    assert room.budget.charged > 0
    if end == "close":
        room.subscription.close(CloseCode.REVOKED)
    elif end == "detach":
        room.subscription.detach()
    for _ in range(20):
        room.free()
        await asyncio.sleep(0)
    assert (room.budget.bytes, room.budget.charged) == (0, 0)
    await room.finish()


async def test_control_frames_of_a_blocked_socket_are_bounded() -> None:
    room = SubscribedRoom()
    await room.enter(DeliveryState.BLOCKED)
    for _ in range(MAX_BACKLOG_FRAMES):
        room.subscription.send_control(FRAME)
    assert room.state is DeliveryState.BLOCKED
    room.subscription.send_control(FRAME)
    assert room.subscription.close_code is CloseCode.SLOW_CONSUMER
    await room.finish()


ACTIONS = ["publish", "publish", "block", "free", "free", "control", "start", "wait", "drain"]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([*ACTIONS, "close", "detach"]), max_size=40))
def test_any_sequence_of_events_is_valid(actions: list[str]) -> None:
    """No event raises in any state, and what is written is a prefix of what was published."""

    async def run() -> None:
        room = SubscribedRoom()
        subscription = room.subscription
        events: dict[str, Callable[[], Awaitable[object] | None]] = {
            "publish": room.publish,
            "block": room.block,
            "free": room.free,
            "control": lambda: subscription.send_control(FRAME),
            "wait": lambda: asyncio.sleep(0),
            "drain": lambda: subscription.drain(100),
            "close": lambda: subscription.close(CloseCode.REVOKED),
        }
        for action in actions:
            if action == "detach":  # only when the connection has ended
                break
            if action == "start":
                if room.running is None:
                    await room.start()
            elif (waiting := events[action]()) is not None:
                await waiting
        if subscription.state is not DeliveryState.CLOSED and room.running is not None:
            for _ in range(20):
                room.free()
                await asyncio.sleep(0)
            assert subscription.state in (DeliveryState.LIVE, DeliveryState.CLOSED)
        await room.finish()
        written = [each for each in room.sink.written if each in room.published]
        assert written == room.published[: len(written)]
        if room.running is not None and room.sink.code is None and actions.count("detach") == 0:
            assert written == room.published

    asyncio.run(run())


async def test_replay_joins_notifications_up_to_a_bound_and_waits_after_each_write() -> None:
    room = SubscribedRoom()
    sink = room.sink = JoiningSink()
    for _ in range(9):
        await room.publish()
    await room.start()
    assert sink.joined == [["n1", "n2", "n3"]]
    assert room.budget.charged, "the rest of the page is charged while the socket is blocked"
    async with asyncio.timeout(TIMEOUT_S):
        while room.state is not DeliveryState.LIVE:
            room.free()
            await asyncio.sleep(0)
    assert sink.written == [*room.published, SUBSCRIBED]
    assert all(len(ids) <= 3 for ids in sink.joined)
    assert room.budget.charged == 0
