"""``/ready``: whether a publish would be stored."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.http.monitoring import Readiness
from synap_realtime.server.stores.memory import MemoryStore
from tests.support.servers import Front
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits

NOTE = {"type": "note.completed", "data": {"text": "x" * 1000}}
BIG_NOTE = {"type": "note.completed", "data": {"text": "x" * 200_000}}


class Counted(MemoryStore):
    """A store that counts how often it is asked, and can be away."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.problem: str | None = None

    async def check(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.problem is not None:
            raise StoreUnavailableError(self.problem)


async def answers(readiness: Readiness, count: int) -> list[bool]:
    """Send so many concurrent requests; return for each whether the server is ready."""
    found = await asyncio.gather(*(readiness.check() for _ in range(count)), return_exceptions=True)
    return [answer is None for answer in found]


async def test_store_is_probed_at_most_once_a_second() -> None:
    now = 100.0
    store = Counted()
    readiness = Readiness(store, clock=lambda: now)
    for _ in range(10):
        assert await answers(readiness, 100) == [True] * 100
    assert store.asked == 1
    store.problem = "gone"
    now += 1.0
    for _ in range(10):
        assert await answers(readiness, 100) == [False] * 100
    assert store.asked == 2
    store.problem = None
    now += 1.0
    assert await answers(readiness, 2) == [True, True]
    assert store.asked == 3


async def test_cancelled_readiness_request_leaves_the_result_to_others() -> None:
    readiness = Readiness(Counted())
    first = asyncio.ensure_future(readiness.check())
    second = asyncio.ensure_future(readiness.check())
    await asyncio.sleep(0)
    first.cancel()
    await second


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small separate file system."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return filler


async def until_status(client: httpx.AsyncClient, status: int) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while (await client.get("/ready")).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def publish(client: httpx.AsyncClient, note: object) -> int:
    return (await client.post("/rooms/user_1/broadcast", json=note)).status_code


async def test_ready_is_503_on_a_full_disk_until_publishes_succeed(
    disk: Path, front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "synap_realtime.server.stores")
    settings = load_settings(store=f"sqlite:///{disk / 'rooms.db'}")
    async with front(create_app(settings)) as url, httpx.AsyncClient(base_url=url) as client:
        assert await publish(client, NOTE) == 200
        assert (await client.get("/ready")).status_code == 200
        filler = fill(disk)
        await until_status(client, 503)  # although nobody has published since
        assert await publish(client, BIG_NOTE) == 503
        for _ in range(200):
            response = await client.get("/ready")
            assert response.status_code == 503
            assert response.headers["retry-after"]
        filler.unlink()
        await until_status(client, 200)
        assert await publish(client, BIG_NOTE) == 200
    lines = [record.message for record in caplog.records]
    assert len(lines) == 2, lines
    assert lines[0].startswith("store unavailable: ")
    assert lines[1].startswith("store recovered: ")


async def test_readiness_checks_write_nothing_to_the_disk(
    tmp_path: Path, front: Front, set_waits: SetWaits
) -> None:
    set_waits(ready_max_age_s=0.0)
    settings = load_settings(store=f"sqlite:///{tmp_path / 'rooms.db'}")
    async with front(create_app(settings)) as url, httpx.AsyncClient(base_url=url) as client:
        assert await publish(client, NOTE) == 200
        assert (await client.get("/ready")).status_code == 200
        await asyncio.sleep(1.5)  # until what belongs to the publish is in the file

        def written() -> list[int]:
            return [file.stat().st_mtime_ns for file in sorted(tmp_path.glob("rooms.db*"))]

        before = written()
        for _ in range(100):
            assert (await client.get("/ready")).status_code == 200
        assert written() == before
