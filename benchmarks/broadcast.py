"""Measure the cost of a broadcast in the publishing program, compared with raw httpx posting the
same JSON.

The room server runs in a separate process. Rounds alternate, so that other load on the machine
affects both equally. The ratio is the median of the pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import httpx

from synap_realtime import AsyncBroadcaster, Broadcaster

TYPE = "note.creation.completed"
DATA = {"entityId": "0192f0c1-7d3a-7c4e-9d55-2f1c7a9b0e11", "title": "A note", "fileUrl": "/n/1"}
CONCURRENT = 1000

Post = Callable[[int], Awaitable[None]]
Round = dict[str, float]


def message(n: int) -> dict[str, Any]:
    """Build the message as the SDK does, with an id and a time."""
    return {
        "type": TYPE,
        "data": DATA,
        "id": f"{os.getpid()}-{time.monotonic_ns()}-{n:030d}"[:36],
        "status": "success",
        "timestamp": "2026-01-31T12:00:00.000Z",
    }


async def one_by_one(post: Post, count: int) -> Round:
    for n in range(20):
        await post(n)
    gc.collect()
    cpu, begin = time.process_time(), time.perf_counter()
    for n in range(count):
        await post(n)
    return spent(cpu, begin, count)


async def concurrently(post: Post, count: int) -> Round:
    await post(0)
    gc.collect()
    cpu, begin = time.process_time(), time.perf_counter()
    await asyncio.gather(*(post(n) for n in range(count)))
    return spent(cpu, begin, count)


def spent(cpu: float, begin: float, count: int) -> Round:
    """Return microseconds per notification."""
    return {
        "cpu": (time.process_time() - cpu) / count * 1e6,
        "wall": (time.perf_counter() - begin) / count * 1e6,
    }


async def ours(url: str, measure: Callable[[Post, int], Awaitable[Round]], count: int) -> Round:
    async with AsyncBroadcaster(url, deadline_s=60, timeout_s=60) as broadcaster:

        async def post(_: int) -> None:
            (await broadcaster.broadcast_success("42", TYPE, DATA)).raise_for_status()

        return await measure(post, count)


async def raw(url: str, measure: Callable[[Post, int], Awaitable[Round]], count: int) -> Round:
    async with httpx.AsyncClient(timeout=60) as client:

        async def post(n: int) -> None:
            response = await client.post(f"{url}/rooms/user_42/broadcast", json=message(n))
            assert response.raise_for_status().json()["success"]

        return await measure(post, count)


def ours_sync(url: str, count: int) -> Round:
    with Broadcaster(url) as broadcaster:
        return one_by_one_sync(
            lambda _: broadcaster.broadcast_success("42", TYPE, DATA).raise_for_status(), count
        )


def raw_sync(url: str, count: int) -> Round:
    with httpx.Client() as client:

        def post(n: int) -> None:
            response = client.post(f"{url}/rooms/user_42/broadcast", json=message(n))
            assert response.raise_for_status().json()["success"]

        return one_by_one_sync(post, count)


def one_by_one_sync(post: Callable[[int], object], count: int) -> Round:
    for n in range(20):
        post(n)
    gc.collect()
    cpu, begin = time.process_time(), time.perf_counter()
    for n in range(count):
        post(n)
    return spent(cpu, begin, count)


def compare(name: str, rounds: int, mine: Callable[[], Round], theirs: Callable[[], Round]) -> None:
    pairs = []
    for n in range(rounds):  # each runs first equally often
        if n % 2:
            b, a = theirs(), mine()
        else:
            a, b = mine(), theirs()
        pairs.append((a, b))
    line: dict[str, Any] = {"case": name}
    for kind in ("cpu", "wall"):
        line[f"ours_{kind}_us"] = round(median(a[kind] for a, _ in pairs), 1)
        line[f"httpx_{kind}_us"] = round(median(b[kind] for _, b in pairs), 1)
        ratios = sorted(a[kind] / b[kind] for a, b in pairs)
        line[f"{kind}_ratio"] = round(median(ratios), 3)
        line[f"{kind}_ratio_from_to"] = [round(ratios[0], 3), round(ratios[-1], 3)]
    print(json.dumps(line), flush=True)


def imports(rounds: int) -> None:
    """Measure ``import synap_realtime``, compared with httpx and a pydantic model."""

    def took(code: str) -> Round:
        timed = (
            "import time; cpu, begin = time.process_time(), time.perf_counter()\n"
            f"{code}\n"
            "print(time.process_time() - cpu, time.perf_counter() - begin)"
        )
        done = subprocess.run(
            [sys.executable, "-c", timed], check=True, capture_output=True, text=True
        )
        cpu, wall = (float(word) * 1e6 for word in done.stdout.split())
        return {"cpu": cpu, "wall": wall}

    bare = "import httpx, pydantic"
    model = "import httpx\nfrom pydantic import BaseModel\nclass M(BaseModel):\n    x: int"
    ours = "import synap_realtime"
    compare("import, compared with the two", rounds, lambda: took(ours), lambda: took(bare))
    compare(
        "import, compared with the two and a model", rounds, lambda: took(ours), lambda: took(model)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    rounds, count = options.rounds, options.count
    code = "from synap_realtime.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0"]
    command += ["--publishes-per-s", "0", "--publish-bytes-per-s", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        lines = iter(server.stderr.readline, "")
        url = next(line.split()[-1] for line in lines if "listening on" in line)
        compare(
            "one, awaited",
            rounds,
            lambda: asyncio.run(ours(url, one_by_one, count)),
            lambda: asyncio.run(raw(url, one_by_one, count)),
        )
        compare("one, sync", rounds, lambda: ours_sync(url, count), lambda: raw_sync(url, count))
        compare(
            f"{CONCURRENT} concurrent",
            rounds,
            lambda: asyncio.run(ours(url, concurrently, CONCURRENT)),
            lambda: asyncio.run(raw(url, concurrently, CONCURRENT)),
        )
    finally:
        server.terminate()
        server.wait(10)
    imports(rounds)
    print(json.dumps({"python": platform.python_version(), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
