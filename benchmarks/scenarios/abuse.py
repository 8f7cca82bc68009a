"""Scenario 8: an honest publisher while one client abuses the server, one attack after the other.

The server has its default limits. The honest publisher (``benchmarks/honest.py``) and the attacker
(``benchmarks/attacks.py``) are separate processes on the load's core.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from .. import machine
from ..attacks import ATTACKS, ROOM, title
from ..ours import Ours
from ..rounds import Options, Stat, print_progress
from ..senders import MissingError
from ..servers import ROOT, Running, Subscriber, running
from ..table import Row, Table

METHOD = """\
The server has its default limits. The honest publisher and the attacker are separate processes on
the load's core. Values are medians of the rounds, with minimum and maximum in brackets."""

RATE = 100
ATTACK_S = 8.0
AFTER_S = 2.0
"""Seconds between the end of an attack and the reading of the memory."""

BUDGET_MS = 20.0
BACKLOG = 6
"""Notifications of 200 KB in the attacker's room."""

COLUMNS = {
    "connections": "connections",
    "sent_kb_s": "sent, KB/s",
    "received_kb_s": "received, KB/s",
    "answers_s": "answers/s",
    "busy": "server busy, %",
    "before_mb": "RSS before, MB",
    "peak_mb": "RSS peak, MB",
    "after_mb": "RSS after, MB",
    "kernel_mb": "socket memory peak, MB",
    "log_kb_s": "log, KB/s",
    "p50_ms": "honest p50, ms",
    "p99_ms": "honest p99, ms",
    "max_ms": "max, ms",
    "failed": "failed",
}


def run(options: Options, names: Sequence[str] = tuple(ATTACKS)) -> list[Table]:
    """Run the attacks.

    Args:
        names: the attacks.
    """
    rows = []
    for name in names:
        row = Row(title(name))
        try:
            rounds = [_measure(name, options.scale) for _ in range(min(options.rounds, 2))]
        except MissingError as error:
            row.note = str(error)
        else:
            row.stats = {name: Stat.of([each[name] for each in rounds]) for name in COLUMNS}
            p99 = row.stats["p99_ms"].median
            print_progress(f"{name}: honest p99 {p99:.1f} ms{'' if p99 < BUDGET_MS else ' (OVER)'}")
        rows.append(row)
    heading = (
        f"Abuse: an honest publisher, {RATE} broadcasts a second with the SDK, during one attack"
    )
    remark = (
        f"An attack lasts {ATTACK_S:g} s; the memory after it is read {AFTER_S:g} s later. The "
        f"honest p99 must stay below {BUDGET_MS:g} ms. Connections, bytes and responses are the "
        "attacker's, which runs on the honest publisher's core with lower priority."
    )
    return [Table("abuse", heading, COLUMNS, [], rows, remark)]


class _Watch:
    """Samples the memory while an attack runs, and keeps the peaks."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_bytes = 0
        self.kernel_bytes = 0

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.05):
            self.peak_bytes = max(self.peak_bytes, _resident_bytes(self._pid))
            self.kernel_bytes = max(self.kernel_bytes, _socket_bytes())


def _measure(name: str, scale: float) -> Mapping[str, float]:
    duration_s = ATTACK_S if scale == 1 else max(0.5, ATTACK_S * scale)
    kind = Ours()
    token = kind.token(Subscriber("1", "user_1"), "subscribe presence")
    with running(kind) as server:
        _fill(server, kind)
        pid, log = server.pid, server.folder / "log"
        core = machine.cores().load
        before, kernel = _resident_bytes(pid), _socket_bytes()
        logged = log.stat().st_size
        honest = _python(
            ["benchmarks.honest", server.port, RATE, core], {"REALTIME_API_KEY": kind.key}
        )
        assert honest.stdout is not None
        if honest.stdout.readline() != "ready\n":
            raise MissingError("the honest publisher does not start")
        used = machine.cpu_s(pid)
        attack = _python(
            ["benchmarks.attacks", name, server.port, duration_s, scale, core],
            {"TOKENS": json.dumps({"token": token})},
        )
        with _Watch(pid) as watch:
            cost = _answer(attack, "", duration_s + 30)
            used = machine.cpu_s(pid) - used
        report = _answer(honest, "", 30)
        time.sleep(AFTER_S if scale == 1 else AFTER_S * scale)
        after = _resident_bytes(pid)
        took_ms = sorted(report["took_ms"]) or [0.0]
        wall_s = cost["wall_s"]
        return {
            "connections": cost["connections"],
            "sent_kb_s": cost["sent_bytes"] / 1024 / wall_s,
            "received_kb_s": cost["received_bytes"] / 1024 / wall_s,
            "answers_s": cost["answers"] / wall_s,
            "busy": 100 * used / wall_s,
            "before_mb": before / 2**20,
            "peak_mb": max(watch.peak_bytes, before) / 2**20,
            "after_mb": after / 2**20,
            "kernel_mb": max(0, watch.kernel_bytes - kernel) / 2**20,
            "log_kb_s": (log.stat().st_size - logged) / 1024 / wall_s,
            "p50_ms": took_ms[len(took_ms) // 2],
            "p99_ms": took_ms[min(len(took_ms) - 1, len(took_ms) * 99 // 100)],
            "max_ms": took_ms[-1],
            "failed": report["failed"],
        }


def _fill(server: Running, kind: Ours) -> None:
    """Fill the attacker's room with 1.2 MB."""
    url = f"http://127.0.0.1:{server.port}/rooms/{ROOM}/broadcast"
    message = {"type": "bench.moved", "data": {"text": "x" * 200_000}}
    with httpx.Client(headers={"Authorization": f"Bearer {kind.key}"}, trust_env=False) as client:
        for _ in range(BACKLOG):
            client.post(url, json=message).raise_for_status()


def _python(words: Sequence[object], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        env={**os.environ, **environment},  # other users of a machine can see arguments
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _answer(process: subprocess.Popen[str], said: str, within_s: float) -> Any:
    """Return the process's final output."""
    try:
        out, _ = process.communicate(said, timeout=within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise MissingError("a client did not exit in time") from None
    if process.returncode:
        raise MissingError(f"a client has failed: {process.returncode}")
    return json.loads(out)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _socket_bytes() -> int:
    """Return the kernel memory of all TCP sockets of this network namespace."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            return int(line.split()[-1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
