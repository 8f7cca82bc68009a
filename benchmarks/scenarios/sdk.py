"""Scenario 6: a broadcast with the SDK compared with raw httpx, sequential and 1,000 concurrent.

The publisher is a separate process on the load's core: ``benchmarks/publisher.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from .. import machine
from ..rounds import Options, Row, Stat, Table, print_progress, session
from ..servers import ROOT, MissingError, Ours

ONE_BY_ONE = 300
CONCURRENT = 1000
TIMEOUT_S = 300.0

COLUMNS = {"cpu_us": "publisher's CPU, µs a notification", "wall_us": "time, µs a notification"}
_NAMES = {
    "raw": "raw httpx, sequential",
    "sdk": "AsyncBroadcaster, sequential",
    "raw_many": "raw httpx, {n:,} concurrent",
    "sdk_many": "AsyncBroadcaster, {n:,} concurrent",
}


def run(options: Options) -> list[Table]:
    """Run the scenario. The ratios are to sequential raw httpx."""
    one_by_one, concurrent = options.scaled(ONE_BY_ONE), options.scaled(CONCURRENT)
    rows = [Row(name.format(n=concurrent)) for name in _NAMES.values()]
    kind = Ours()
    try:
        with session(kind) as mine:
            rounds = _publish(mine.port, kind.key, options.rounds, one_by_one, concurrent)
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
        print_progress("sdk: done")
    title = "The SDK and raw httpx, on the same room server"
    remark = "Ratios are to sequential raw httpx."
    return [Table("sdk", title, COLUMNS, list(COLUMNS), rows, remark, "raw httpx")]


def _publish(port: int, key: str, rounds: int, one_by_one: int, concurrent: int) -> list[Any]:
    """Return the rounds: for each method, CPU and time of a notification in us."""
    core = machine.cores().load
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.publisher",
            *map(str, (port, rounds, one_by_one, concurrent, core)),
        ],
        env={**os.environ, "REALTIME_API_KEY": key},  # other users of a machine can see arguments
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=TIMEOUT_S,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
