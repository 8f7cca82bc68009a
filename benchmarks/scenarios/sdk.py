"""Shape 6: a broadcast with the SDK beside raw httpx, one at a time and 1,000 at once.

The publisher is a process of its own on the load's core: ``benchmarks/publisher.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

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
        with session(kind) as mine:
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
        [
            sys.executable,
            "-m",
            "benchmarks.publisher",
            *map(str, (port, rounds, one_by_one, at_once, core)),
        ],
        env={**os.environ, "REALTIME_API_KEY": key},  # other users of a machine see arguments
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=TIMEOUT_S,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
