"""``kill -9`` of the server: acknowledged publishes reach every resuming client once, in order."""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from pathlib import Path

import httpx
import pytest
import websockets

from tests.support.command_line import COMMAND
from tests.support.program import Program
from tests.support.timeouts import TIMEOUT_S

ROOMS = ["user_1", "user_2", "request_1"]


class Publisher:
    """Publishes to a room, one after the other, each until it is answered 200."""

    def __init__(self, url: str, room: str, name: str) -> None:
        self.acknowledged: list[str] = []
        self._url, self._room, self._name = url, room, name

    async def run(self, stop: asyncio.Event) -> None:
        number = 0
        async with httpx.AsyncClient(timeout=2) as client:
            while not stop.is_set():
                number += 1
                body = {"type": "a", "data": {"n": number}, "id": f"{self._name}-{number}"}
                while not await self._is_kept(client, body):  # noqa: ASYNC110 - it is away
                    await asyncio.sleep(0.05)
                self.acknowledged.append(str(body["id"]))
                await asyncio.sleep(0.01)  # at most 1,000 a room: the retention

    async def _is_kept(self, client: httpx.AsyncClient, body: object) -> bool:
        try:
            response = await client.post(f"{self._url}/rooms/{self._room}/broadcast", json=body)
        except httpx.HTTPError:
            return False
        return response.status_code == 200


class Subscriber:
    """Listens to a room, comes and goes, resumes from its last cursor; drops nothing itself."""

    def __init__(self, url: str, room: str, chance: random.Random) -> None:
        self.received: list[str] = []
        self.lost: list[object] = []
        self._url = f"{url.replace('http', 'ws')}/rooms/{room}/subscribe"
        self._chance = chance

    async def run(self) -> None:
        after = "earliest"
        while True:
            try:
                async with websockets.connect(
                    f"{self._url}?after={after}",
                    subprotocols=[websockets.Subprotocol("synap.v1")],
                ) as ws:
                    leave = self._chance.randint(1, 200)
                    async for text in ws:
                        frame = json.loads(text)
                        if frame["type"] == "synap.subscribed":
                            if not frame["data"]["recovered"]:
                                self.lost.append(frame)
                        elif frame["type"] != "synap.closing":
                            self.received.append(frame["id"])
                            after = frame["cursor"]
                            leave -= 1
                        if not leave:
                            break
            except (OSError, websockets.WebSocketException):
                await asyncio.sleep(0.05)


async def test_acknowledged_publishes_survive_kill_9(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    chance = random.Random(20)
    server = Program(f"sqlite:///{tmp_path / 'rooms.db'}")
    await server.start()
    stop = asyncio.Event()
    publishers = defaultdict(list)
    subscribers = defaultdict(list)
    for room in ROOMS:
        for n in range(2):
            publishers[room].append(Publisher(server.url, room, f"{room}-{n}"))
            subscribers[room].append(Subscriber(server.url, room, chance))
    publishing = [asyncio.create_task(each.run(stop)) for p in publishers.values() for each in p]
    listening = [asyncio.create_task(each.run()) for s in subscribers.values() for each in s]
    try:
        for _ in range(pytestconfig.getoption("rounds")):
            await asyncio.sleep(chance.uniform(0.05, 0.8))
            await server.kill()
            await server.start()
        stop.set()
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*publishing)
        for room in ROOMS:
            kept = {id for publisher in publishers[room] for id in publisher.acknowledged}
            assert kept
            async with asyncio.timeout(TIMEOUT_S):
                for subscriber in subscribers[room]:
                    while not kept <= set(subscriber.received):  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            first, second = subscribers[room]
            assert len(set(first.received)) == len(first.received), "none twice"
            assert first.received == second.received, "the same order for all"
            assert not first.lost
            assert not second.lost
            for publisher in publishers[room]:
                own = [id for id in first.received if id in set(publisher.acknowledged)]
                assert own == publisher.acknowledged, "the order of publishing"
    finally:
        for task in (*publishing, *listening):
            task.cancel()
        await asyncio.gather(*publishing, *listening, return_exceptions=True)
        await server.kill()


@pytest.mark.parametrize(
    "harm",
    ["the log is deleted", "all beside the file is deleted", "an old log is put back"],
)
async def test_replaced_log_loses_nothing_at_kill_9(tmp_path: Path, harm: str) -> None:
    """Publishers go on all the while; the server saves what was acknowledged, and then dies."""
    file = tmp_path / "rooms.db"
    server = Program(f"sqlite:///{file}")
    await server.start()
    stop = asyncio.Event()
    publishers = [Publisher(server.url, "user_1", f"p{n}") for n in range(4)]
    publishing = [asyncio.create_task(each.run(stop)) for each in publishers]
    log = Path(f"{file}-wal")

    async def acknowledge(count: int) -> None:
        """Until each publisher has so many more."""
        goals = [len(each.acknowledged) + count for each in publishers]
        async with asyncio.timeout(TIMEOUT_S):
            for each, goal in zip(publishers, goals, strict=True):
                while len(each.acknowledged) < goal:  # noqa: ASYNC110 - another process's work
                    await asyncio.sleep(0.01)

    try:
        for _ in range(3):
            await acknowledge(5)
            old = log.read_bytes()
            await acknowledge(5)
            for beside in tmp_path.iterdir():
                if beside == log or (harm.startswith("all") and beside != file):
                    beside.unlink()
            if harm.startswith("an old"):
                log.write_bytes(old)
            await acknowledge(2)  # the first of these was answered after the harm was seen
            await server.kill()
            await server.start()
        stop.set()
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*publishing)
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{server.url}/rooms/user_1/history?limit=1000")
        kept = [each["id"] for each in answer.json()["notifications"]]
        assert len(set(kept)) == len(kept), "none twice"
        for publisher in publishers:
            own = [id for id in kept if id in set(publisher.acknowledged)]
            assert own == publisher.acknowledged
    finally:
        for task in publishing:
            task.cancel()
        await asyncio.gather(*publishing, return_exceptions=True)
        await server.kill()


async def test_second_server_is_refused_even_without_the_side_files(
    tmp_path: Path,
) -> None:
    file = tmp_path / "rooms.db"
    server = Program(f"sqlite:///{file}")
    await server.start()
    try:
        for beside in tmp_path.iterdir():
            if beside != file:
                beside.unlink()
        (tmp_path / "link.db").symlink_to(file)
        second = await asyncio.create_subprocess_exec(
            COMMAND, "serve", "--port", "0", "--store", f"sqlite:///{tmp_path / 'link.db'}",
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(TIMEOUT_S):
            _, said = await second.communicate()
        assert second.returncode
        assert f"{file} is in use by another server or program (process ".encode() in said
    finally:
        await server.kill()
