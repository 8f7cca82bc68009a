"""Publish with the SDK and with raw httpx, and print the cost of each round.

python -m benchmarks.publisher PORT ROUNDS ONE_BY_ONE CONCURRENT CORE

One line per round: ``{"raw": [cpu_us, wall_us], …}``, per notification.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median

import httpx

from synap_realtime import AsyncBroadcaster


async def publish(port: int, rounds: int, one_by_one: int, concurrent: int) -> None:
    url = f"http://127.0.0.1:{port}"
    headers = {"Authorization": f"Bearer {os.environ['REALTIME_API_KEY']}"}
    limits = httpx.Limits(max_connections=100)
    message = {"type": "bench.moved", "status": "pending", "data": {"text": "x" * 100}}

    async with (
        httpx.AsyncClient(headers=headers, limits=limits, timeout=60) as client,
        AsyncBroadcaster(url) as broadcaster,
    ):

        async def raw() -> None:
            answer = await client.post(f"{url}/rooms/user_1/broadcast", json=message)
            answer.raise_for_status()

        async def sdk() -> None:
            result = await broadcaster.broadcast_notification(user_id="1", message=message)
            result.raise_for_status()

        for number in range(-1, rounds):
            # The order rotates, so that no method always runs after the pause.
            ways = {
                "raw": await _cost(raw, one_by_one, 1),
                "sdk": await _cost(sdk, one_by_one, 1),
                "raw_many": await _cost(raw, concurrent, concurrent),
                "sdk_many": await _cost(sdk, concurrent, concurrent),
            }
            if number >= 0:  # the first one warms up
                print(json.dumps(ways), flush=True)


async def _cost(
    publish: Callable[[], Awaitable[None]], count: int, together: int
) -> tuple[float, float]:
    """Return CPU and wall time of one in us; for few, the median of three."""
    costs = []
    for _ in range(3 if together == 1 else 1):
        cpu, begun = time.process_time(), time.perf_counter()
        for _ in range(0, count, together):
            if together == 1:
                await publish()
            else:
                await asyncio.gather(*(publish() for _ in range(together)))
        cpu, took = time.process_time() - cpu, time.perf_counter() - begun
        costs.append((cpu / count * 1e6, took / count * 1e6))
    return median(cost[0] for cost in costs), median(cost[1] for cost in costs)


if __name__ == "__main__":
    *given, core = map(int, sys.argv[1:])
    os.sched_setaffinity(0, {core})
    asyncio.run(publish(*given))
