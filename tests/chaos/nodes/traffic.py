"""Publishers and subscribers that go on while something fails, and what they receive."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field

import websockets

from synap_realtime import AsyncBroadcaster, subscribe
from tests.support.timeouts import TIMEOUT_S

END = "end"
"""The publisher of the last notification of each room."""

_INTERVAL_S = 0.04  # between two publishes of a publisher
_numbers = itertools.count()


@dataclass
class Received:
    """What one subscriber received.

    Attributes:
        is_restless: it disconnects now and then, and returns with its cursor.
        ids: when each id came for the first time.
        gaps: when the server has reported that notifications may be lost.
        doubled: how many came again although they must not.
        disordered: how many came after a later one of the same publisher.
    """

    room: str
    is_restless: bool = False
    ids: dict[str, float] = field(default_factory=dict)
    gaps: list[float] = field(default_factory=list)
    doubled: int = 0
    disordered: int = 0
    _last: dict[str, int] = field(default_factory=dict)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, id: str) -> None:
        self.ids[id] = time.monotonic()
        _, publisher, number = id.split(":")
        if int(number) < self._last.get(publisher, -1):
            self.disordered += 1
        self._last[publisher] = int(number)
        if publisher == END:
            self.ended.set()

    def add_gap(self, _room: str = "") -> None:
        self.gaps.append(time.monotonic())


@dataclass
class Traffic:
    """What was published and received during one fault.

    Attributes:
        acknowledged: when each id of a room was answered with 200.
        began, ended: when publishing began and ended, all by ``time.monotonic``.
    """

    url: str
    rooms: list[str]
    acknowledged: dict[str, dict[str, float]] = field(
        default_factory=lambda: defaultdict(dict[str, float])
    )
    received: list[Received] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0

    async def publish(self, sdk: AsyncBroadcaster, id: str, *, size: int = 0) -> None:
        """Publish until it is acknowledged, always with the same id."""
        room, _, number = id.split(":")
        message = {"type": "chaos.step", "data": {"n": int(number), "x": "x" * size}, "id": id}
        while not (await sdk.broadcast(room, message)).success:  # noqa: ASYNC110 - see the deadline
            await asyncio.sleep(0.05)
        self.acknowledged[room][id] = time.monotonic()

    async def publish_many(self, count: int, size: int) -> None:
        """Publish large notifications to the first room, concurrently."""
        async with AsyncBroadcaster(self.url) as sdk, asyncio.TaskGroup() as group:
            for number in range(count):
                id = f"{self.rooms[0]}:large-{number}:0"
                group.create_task(self.publish(sdk, id, size=size))


async def _publish(traffic: Traffic, name: str, over: asyncio.Event) -> None:
    """Publish to all rooms, one after the other."""
    async with AsyncBroadcaster(traffic.url, timeout_s=3, deadline_s=5) as sdk:
        for number in itertools.count():
            for room in traffic.rooms:
                if over.is_set():
                    return
                await traffic.publish(sdk, f"{room}:{name}:{number}")
                await asyncio.sleep(_INTERVAL_S)


async def _follow(url: str, received: Received) -> None:
    """Subscribe with the package."""
    notifications = subscribe(
        received.room, url, after="earliest", max_reconnects=None, on_gap=received.add_gap
    )
    async with aclosing(notifications):
        async for each in notifications:
            assert each.id is not None
            if each.id in received.ids:
                received.doubled += 1
            else:
                received.add(each.id)


class _Socket:
    """A WebSocket without the package: it resumes from its cursor, and drops ids that it knows."""

    def __init__(self, url: str, received: Received) -> None:
        self._url = f"{url.replace('http', 'ws')}/rooms/{received.room}/subscribe"
        self._received = received
        self._cursor = ""

    async def run(self) -> None:
        for stay in itertools.cycle((30, 5, 60, 1)):
            left = False
            with contextlib.suppress(OSError, websockets.WebSocketException):
                left = await self._connect(stay if self._received.is_restless else None)
            await asyncio.sleep(0.7 if left else 0.2)

    async def _connect(self, stay: int | None) -> bool:
        """Receive until disconnected, or until so many live notifications.

        Returns:
            Whether the subscriber has left.
        """
        seen: set[str] = set()  # a cursor comes once over a connection
        is_live = False
        async with websockets.connect(
            f"{self._url}?after={self._cursor or 'earliest'}",
            subprotocols=[websockets.Subprotocol("synap.v1")],
            open_timeout=3,
            close_timeout=1,
        ) as ws:
            async for text in ws:
                frame = json.loads(text)
                if frame["type"] == "synap.subscribed":
                    if not frame["data"]["recovered"] and self._cursor:
                        self._received.add_gap()
                    is_live = True
                    self._cursor = frame["data"]["cursor"]
                elif not frame["type"].startswith("synap."):
                    self._received.doubled += frame["cursor"] in seen
                    seen.add(frame["cursor"])
                    if frame["id"] not in self._received.ids:
                        self._received.add(frame["id"])
                    if is_live:  # a gap is reported at the end of a replay
                        self._cursor = frame["cursor"]
                        if stay is not None and (stay := stay - 1) == 0:
                            return True
        return False


@asynccontextmanager
async def _running(traffic: Traffic) -> AsyncIterator[None]:
    """Run three subscribers of each room until the end of ``with``."""
    tasks = []
    for room in traffic.rooms:
        package, socket, restless = Received(room), Received(room), Received(room, is_restless=True)
        traffic.received += (package, socket, restless)
        tasks.append(asyncio.create_task(_follow(traffic.url, package)))
        tasks += [
            asyncio.create_task(_Socket(traffic.url, each).run()) for each in (socket, restless)
        ]
    try:
        yield
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def run_traffic(
    url: str,
    fault: Callable[[Traffic], Awaitable[None]],
    *,
    before_s: float = 0.5,
    after_s: float = 0.5,
    rooms: int = 3,
    publishers: int = 2,
) -> Traffic:
    """Publish and subscribe before, during and after a fault, until everything has arrived.

    Args:
        url: of the nodes.
        before_s, after_s: how long publishers go on before and after the fault.
    """
    run = next(_numbers)
    traffic = Traffic(url, [f"user_{run}-{time.time_ns():x}-{n}" for n in range(rooms)])
    over = asyncio.Event()
    async with _running(traffic):
        traffic.began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(publishers):
                group.create_task(_publish(traffic, f"p{number}", over))
            await asyncio.sleep(before_s)
            await fault(traffic)
            await asyncio.sleep(after_s)
            over.set()
        traffic.ended = time.monotonic()
        async with AsyncBroadcaster(url) as sdk:
            for room in traffic.rooms:
                await traffic.publish(sdk, f"{room}:{END}:0")
        with contextlib.suppress(TimeoutError):  # what is missing is counted
            async with asyncio.timeout(TIMEOUT_S):
                for received in traffic.received:
                    await received.ended.wait()
    return traffic
