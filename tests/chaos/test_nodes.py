"""Nodes in processes of their own, through each fault: nothing is lost silently or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.timeouts import TIMEOUT_S

from .nodes.deployment import Deployment, wait_until
from .nodes.faults import LINK_FAULTS, SENTINEL_FAULTS, Fault, kill_worker, while_paused
from .nodes.report import Result, evaluate
from .nodes.traffic import Traffic, run_traffic

EXACT = {
    "kill -9 of the replica",
    "cut link between primary and replica",
    "kill -9 of a node",
    "SIGSTOP of a node for 11.5 s",
    "rolling restart of the nodes",
    "`CLIENT KILL` of all connections",
    *LINK_FAULTS,
}
"""The faults that lose nothing at all."""


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("sentinels")) as deployment:
        yield deployment


@pytest.fixture(scope="module")
def links(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("links"), sentinels=0) as deployment:
        yield deployment


@contextlib.asynccontextmanager
async def running(deployment: Deployment) -> AsyncIterator[Deployment]:
    await asyncio.to_thread(deployment.__enter__)
    try:
        yield deployment
    finally:
        deployment.__exit__(None, None, None)


async def survive(deployment: Deployment, fault: Fault) -> Result:
    async def break_something(_traffic: Traffic) -> None:
        await asyncio.to_thread(fault, deployment, random.Random(1))

    result = evaluate(await run_traffic(deployment.url, break_something))
    assert result.acknowledged > 10
    assert result.is_correct, result
    return result


@pytest.mark.parametrize("name", SENTINEL_FAULTS)
async def test_nodes_with_sentinels(sentinels: Deployment, name: str) -> None:
    primary = sentinels.primary
    result = await survive(sentinels, SENTINEL_FAULTS[name])
    # On a busy machine, the Sentinels may replace a primary that is only slow.
    if name in EXACT and sentinels.primary is primary:
        assert result.is_exact, result


@pytest.mark.parametrize("name", LINK_FAULTS)
async def test_nodes_with_one_server(links: Deployment, name: str) -> None:
    result = await survive(links, LINK_FAULTS[name])
    assert result.is_exact or name not in EXACT, result


async def test_output_buffer_that_overflows(links: Deployment) -> None:
    """A node that does not read is disconnected, and reads from the log what it missed."""
    closed = 0

    async def fault(traffic: Traffic) -> None:
        nonlocal closed
        loop = asyncio.get_running_loop()

        def publish() -> None:
            large = traffic.publish_many(900, 14_000)
            asyncio.run_coroutine_threadsafe(large, loop).result(TIMEOUT_S)

        closed = await asyncio.to_thread(while_paused, links, random.Random(1), publish)

    result = evaluate(await run_traffic(links.url, fault))
    assert closed
    assert result.is_exact, result


async def test_workers_of_two_nodes(tmp_path: Path) -> None:
    async with running(Deployment(tmp_path, options=("--workers", "2"))) as two:
        for fault in (kill_worker, SENTINEL_FAULTS["kill -9 of the primary"]):
            await survive(two, fault)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs root and the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


async def test_full_disk_refuses_publishes_until_it_has_space(
    tmp_path: Path, small_disk: Path
) -> None:
    file = small_disk / "large"

    def fill(nodes: Deployment) -> None:
        with (
            contextlib.suppress(OSError),
            file.open("wb", buffering=0) as large,
        ):  # until it is full
            while True:
                large.write(b"x" * 4096)
        wait_until(lambda: not any(node.is_ready for node in nodes.nodes), "503 of /ready")
        message = {"type": "a", "data": {}}
        url = f"{nodes.url}/rooms/user_1/broadcast"
        answer = httpx.post(url, json=message, timeout=TIMEOUT_S)
        assert answer.status_code == 503
        assert "Retry-After" in answer.headers
        file.unlink()
        nodes.until_whole()

    async with running(Deployment(tmp_path, sentinels=0, data=small_disk / "data")) as nodes:

        async def fault(_traffic: Traffic) -> None:
            await asyncio.to_thread(fill, nodes)

        result = evaluate(await run_traffic(nodes.url, fault))
    assert result.is_exact, result
