"""The SDK compared with raw httpx: the publisher's CPU and time, and the import.

The publisher is a separate process on the load's core: ``benchmarks/publisher.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from .. import machine
from ..ours import Ours
from ..rounds import Options, Result, Stat, print_progress, session
from ..senders import MissingError
from ..servers import ROOT

ONE_BY_ONE = 300
CONCURRENT = 1000
TIMEOUT_S = 300.0

IMPORTS = 7
_TIMED = """\
import time
begin = time.process_time()
{}
print(time.process_time() - begin)
"""
_OURS = "from synap_realtime import AsyncBroadcaster, Broadcaster"
_BARE = "import httpx, pydantic"


def run(options: Options) -> list[Result]:
    """Run the scenario. The values are ratios to raw httpx, one by one."""
    concurrent = options.scaled(CONCURRENT)
    sequential = Result(
        "sdk-sequential", "publishing with the SDK: the publisher's CPU, times raw httpx"
    )
    together = Result(
        "sdk-concurrent", f"the same, {concurrent:,} publishes at once, times one by one with httpx"
    )
    importing = Result("sdk-import", "importing the SDK: CPU, times httpx and pydantic")
    kind = Ours()
    try:
        with session(kind) as mine:
            rounds = _publish(mine.port, kind.key, options, concurrent)
    except MissingError as error:
        sequential.notes["ours"] = together.notes["ours"] = str(error)
    else:
        for result, way in ((sequential, "sdk"), (together, "sdk_many")):
            result.stats["ours"] = Stat.of([each[way][0] / each["raw"][0] for each in rounds])
    count = min(options.rounds, IMPORTS)
    importing.stats["ours"] = Stat.of([_import_s(_OURS) / _import_s(_BARE) for _ in range(count)])
    print_progress("sdk: done")
    return [sequential, together, importing]


def _import_s(statement: str) -> float:
    done = subprocess.run(
        [sys.executable, "-c", _TIMED.format(statement)], check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def _publish(port: int, key: str, options: Options, concurrent: int) -> list[Any]:
    """Return the rounds: for each method, CPU and time of a notification in us."""
    numbers = (port, options.rounds, options.scaled(ONE_BY_ONE), concurrent, machine.cores().load)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.publisher", *map(str, numbers)],
        env={**os.environ, "REALTIME_API_KEY": key},  # other users of a machine can see arguments
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=TIMEOUT_S,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
