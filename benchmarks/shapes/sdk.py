"""Shape 6: a broadcast with the SDK beside raw httpx, one at a time and 1,000 at once.

The publisher is a process of its own on the load's core: this module, run as a program.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import httpx

from synap_realtime import AsyncBroadcaster

from .. import machine
from ..rounds import Options, Row, Stat, Table, session, told
from ..servers import ROOT, MissingError, Ours

ONE_BY_ONE = 300
AT_ONCE = 1000
TIMEOUT_S = 300.0

COLUMNS = {"cpu_us": "publisher's CPU, µs a notification", "wall_us": "time, µs a notification"}
_NAMES = {
    "raw": "raw httpx, one at a time",
    "sdk": "AsyncBroadcaster, one at a time",
    "raw_many": "raw httpx, {n:,} at once",
    "sdk_many": "AsyncBroadcaster, {n:,} at once",
}


def run(options: Options) -> list[Table]:
    """The ratios are over raw httpx, one at a time."""
    one_by_one, at_once = options.scaled(ONE_BY_ONE), options.scaled(AT_ONCE)
    rows = [Row(name.format(n=at_once)) for name in _NAMES.values()]
    kind = Ours()
    try:
        with session(kind, options) as mine:
            rounds = _publish(mine.port, kind.key, options.rounds, one_by_one, at_once)
    except MissingError as error:
        for row in rows:
            row.note = str(error)
    else:
        bases = {
            name: Stat.of([each["raw"][at] for each in rounds]) for at, name in enumerate(COLUMNS)
        }
        for row, way in zip(rows, _NAMES, strict=True):
            for at, name in enumerate(COLUMNS):
                row.stats[name] = Stat.of([each[way][at] for each in rounds])
                if way != "raw":
                    row.ratios[name] = row.stats[name].over(bases[name])
        told("sdk: done")
    title = "The SDK and raw httpx, on the same room server"
    remark = "Ratios are to raw httpx, one at a time."
    return [Table("sdk", title, COLUMNS, list(COLUMNS), rows, remark)]


def _publish(port: int, key: str, rounds: int, one_by_one: int, at_once: int) -> list[Any]:
    """Each round: by way, CPU and time of a notification in us."""
    core = machine.cores().load
    done = subprocess.run(
        [sys.executable, "-m", __spec__.name, *map(str, (port, rounds, one_by_one, at_once, core))],
        env={**os.environ, "REALTIME_API_KEY": key},  # other users of a machine see arguments
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=TIMEOUT_S,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


async def _publisher(port: int, rounds: int, one_by_one: int, at_once: int) -> None:
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
            # Ways take turns, so that none is always the one after a pause.
            ways = {
                "raw": await _cost(raw, one_by_one, 1),
                "sdk": await _cost(sdk, one_by_one, 1),
                "raw_many": await _cost(raw, at_once, at_once),
                "sdk_many": await _cost(sdk, at_once, at_once),
            }
            if number >= 0:  # the first one warms up
                print(json.dumps(ways), flush=True)


async def _cost(
    publish: Callable[[], Awaitable[None]], count: int, together: int
) -> tuple[float, float]:
    """CPU and time of one, in us: the median of three."""
    costs = []
    for _ in range(3):
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
    asyncio.run(_publisher(*given))
