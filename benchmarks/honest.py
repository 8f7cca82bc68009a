"""An honest publisher that broadcasts at a steady rate with the SDK and measures each broadcast.

python -m benchmarks.honest PORT RATE CORE

It prints ``ready`` when it has started, and publishes until its standard input is closed. Then it
prints one JSON object: the durations in ms, each from the scheduled time of a broadcast, and the
number of failures.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time

from synap_realtime import AsyncBroadcaster

ROOM = "user_honest"
WARM_UP = 20


async def publish(port: int, rate: float) -> None:
    took_ms: list[float] = []
    failed = 0
    message = {"type": "bench.moved", "status": "pending", "data": {"text": "x" * 100}}
    stop = asyncio.create_task(asyncio.to_thread(sys.stdin.read))

    async def one(due: float) -> None:
        nonlocal failed
        result = await broadcaster.broadcast(ROOM, message)
        failed += not result.success
        took_ms.append((time.perf_counter() - due) * 1000)

    async with AsyncBroadcaster(f"http://127.0.0.1:{port}") as broadcaster:
        for _ in range(WARM_UP):
            await one(time.perf_counter())
        took_ms.clear()
        print("ready", flush=True)
        async with asyncio.TaskGroup() as under_way:
            due = time.perf_counter()
            while not stop.done():
                under_way.create_task(one(due))
                due += 1 / rate
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
    print(json.dumps({"took_ms": took_ms, "failed": failed}), flush=True)


if __name__ == "__main__":
    port, rate, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    # With priority over the attacker, where the system allows it.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    asyncio.run(publish(int(port), float(rate)))
