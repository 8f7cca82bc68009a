"""Measure the cost of reporting for a job: 100 conversations with 60 pieces a second; a dead
server.

The room server runs in a separate process. The comparison awaits each piece as a separate httpx
request, as a handler without this package would.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
import time
from statistics import median
from typing import Any

import httpx

from synap_realtime import BackgroundBroadcaster
from synap_realtime.jobs import JobType, Recipient, Reporter, RunNotifications

FAMILY = JobType("conversation.message", delta="conversation.response.delta")
CONVERSATIONS = 100
PER_SECOND = 60


def reporter(broadcaster: BackgroundBroadcaster, name: str) -> Reporter:
    return Reporter(RunNotifications(FAMILY, f"run-{name}"), [Recipient(name, name)], broadcaster)


async def ours(url: str, seconds: float, tag: str) -> dict[str, Any]:
    """Run all conversations through one background broadcaster."""
    call_s = 0.0

    async def converse(name: str) -> None:
        nonlocal call_s
        run = reporter(broadcaster, name)
        run.started()
        begin = time.perf_counter()
        for n in range(int(seconds * PER_SECOND)):
            await asyncio.sleep(max(0, begin + n / PER_SECOND - time.perf_counter()))
            before = time.perf_counter()
            run.delta(f"{n} ")
            call_s += time.perf_counter() - before
        run.completed({})
        await run.aflush()

    with BackgroundBroadcaster(url) as broadcaster:
        cpu, begin = time.process_time(), time.perf_counter()
        await asyncio.gather(*(converse(f"{tag}-{n}") for n in range(CONVERSATIONS)))
        took = time.perf_counter() - begin
        cpu = time.process_time() - cpu
    pieces = CONVERSATIONS * int(seconds * PER_SECOND)
    return {
        "seconds": round(took, 2),
        "cpu_us_a_piece": round(cpu / pieces * 1e6, 1),
        "call_us_a_piece": round(call_s / pieces * 1e6, 1),
        "in_order": await in_order(url, tag, int(seconds * PER_SECOND)),
    }


async def in_order(url: str, tag: str, count: int) -> bool:
    """Return whether each room holds its whole text, or the end of it, in order."""
    async with httpx.AsyncClient() as client:
        for n in range(CONVERSATIONS):
            room = f"{url}/rooms/request_{tag}-{n}/history?limit=1000"
            notifications = (await client.get(room)).json()["notifications"]
            pieces = [m["data"] for m in notifications if m["type"].endswith(".delta")]
            numbers = [int(word) for piece in pieces for word in piece["delta"].split()]
            if numbers != list(range(count))[-len(numbers) :] or numbers[-1] != count - 1:
                return False
            if notifications[-1]["status"] != "success":
                return False
    return True


async def awaited(url: str, seconds: float, tag: str) -> dict[str, Any]:
    """Publish the same pieces, each with an awaited request."""

    async def converse(client: httpx.AsyncClient, name: str) -> None:
        begin = time.perf_counter()
        for n in range(int(seconds * PER_SECOND)):
            await asyncio.sleep(max(0, begin + n / PER_SECOND - time.perf_counter()))
            body = {"type": FAMILY.delta, "data": {"index": n, "delta": f"{n} "}}
            await client.post(f"{url}/rooms/request_{name}/broadcast", json=body)

    limits = httpx.Limits(max_connections=CONVERSATIONS)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:
        cpu, begin = time.process_time(), time.perf_counter()
        await asyncio.gather(*(converse(client, f"{tag}-{n}") for n in range(CONVERSATIONS)))
        took = time.perf_counter() - begin
        cpu = time.process_time() - cpu
    pieces = CONVERSATIONS * int(seconds * PER_SECOND)
    return {"seconds": round(took, 2), "cpu_us_a_piece": round(cpu / pieces * 1e6, 1)}


def dead(url: str, what: str) -> dict[str, Any]:
    """Return how long a job with 101 notifications waits for an unreachable server."""
    with BackgroundBroadcaster(url, timeout_s=1) as broadcaster:
        first = reporter(broadcaster, "first")
        begin = time.perf_counter()
        first.completed({})
        first.flush()
        first_ms = (time.perf_counter() - begin) * 1e3
        each_ms = []
        for n in range(50):
            run = reporter(broadcaster, f"job-{n}")
            begin = time.perf_counter()
            run.started()
            run.completed({})
            run.flush()
            each_ms.append((time.perf_counter() - begin) * 1e3 / 2)
    return {
        "server": what,
        "first_job_ms": round(first_ms, 1),
        "ms_a_notification": round(median(each_ms), 3),
        "most_ms_a_notification": round(max(each_ms), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    code = "from synap_realtime.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", "--port", "0"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        lines = iter(server.stderr.readline, "")
        url = next(line.split()[-1] for line in lines if "listening on" in line)
        for n in range(options.rounds):
            mine = asyncio.run(ours(url, options.seconds, f"o{n}"))
            theirs = asyncio.run(awaited(url, 1, f"a{n}"))
            ratio = round(theirs["cpu_us_a_piece"] / mine["cpu_us_a_piece"], 1)
            print(json.dumps({"ours": mine, "awaited httpx": theirs, "cpu ratio": ratio}))
    finally:
        server.terminate()
        server.wait(10)
    with socket.socket() as silent:  # it accepts connections, and never responds
        silent.bind(("127.0.0.1", 0))
        silent.listen(128)
        port = silent.getsockname()[1]
        print(json.dumps(dead("http://127.0.0.1:9", "refuses")))
        print(json.dumps(dead(f"http://127.0.0.1:{port}", "never answers")))
    print(json.dumps({"python": platform.python_version(), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
