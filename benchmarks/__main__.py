"""Measure the server and the baselines under the same load, in one run.

Servers run on one core, the load generator on another. Each server alternates with the lower bound,
a C program that only calls ``send(2)``. Figures are medians of the rounds, with the minimum and the
maximum. Server CPU is user and system time of the process with its children.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from . import machine, table
from .rounds import Options, Table, print_progress
from .scenarios import SCENARIOS
from .servers import KINDS, ON_REQUEST

RESULTS = Path(__file__).with_name("results.md")

QUICK = 0.1
"""Fraction of the connections, rooms and publishes."""

_WHAT = """\
Baselines are small programs of `benchmarks/baselines/` with production settings. They do not
validate, deduplicate, authenticate or keep a log (except nchan: 100 messages per room).
synap-realtime does all of that: a publisher's key, a token for each subscriber, the memory store,
logging at the default level; rate limits are off. Server CPU is user and system time of the process
and its children, pinned to one core. The load generator (C, epoll, one thread) is pinned to the
other. "busy" is the share of its core that each side used during a round: below 100 %, the load
generator was not the bottleneck. Values are medians of {rounds} rounds, with minimum and maximum in
brackets. Ratios are of pairs of rounds, which alternate between the server and the lower bound."""


_WHAT_NODES = """\
Both run at the same time, each with a Valkey of its own, and take turns. The nodes share one core;
Valkey, which writes nothing to disk, and the load generator (C, epoll, one thread) the other. CPU
is user and system time. synap-realtime validates, deduplicates and logs, with keys, tokens and its
default limits, and receives what its SDK sends. Centrifugo keeps a history of the same size, and
has recovery, idempotency keys and a token for each user. Values are medians of {rounds} rounds,
with minimum and maximum in brackets. Ratios are of pairs of rounds."""


def measure(options: Options, names: Sequence[str]) -> list[Table]:
    """Run the scenarios, and print each table when it is complete."""
    tables = []
    for name in names:
        begun = time.monotonic()
        print_progress(f"{name} …")
        for each in SCENARIOS[name](options):
            tables.append(each)
            print(table.markdown(each), end="\n\n", flush=True)
        print_progress(f"{name}: {time.monotonic() - begun:.0f} s")
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}; all"
    )
    parser.add_argument(
        "--baselines", help=f"{', '.join(list(KINDS)[1:])}; without it, all but {ON_REQUEST[0]}"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds per measurement. Default: 5.")
    parser.add_argument("--quick", action="store_true", help="run a tenth of the work, two rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements as JSON")
    parser.add_argument(
        "--results",
        action="store_true",
        help="write the section of these scenarios in benchmarks/results.md",
    )
    given = parser.parse_args()
    names = given.scenarios or list(SCENARIOS)
    baselines = given.baselines.split(",") if given.baselines else sorted({*KINDS} - {*ON_REQUEST})
    for wrong in {*names} - {*SCENARIOS} | {*baselines} - {*KINDS}:
        parser.error(f"{wrong!r} is neither a scenario nor a baseline")
    signal.signal(signal.SIGTERM, _stop)
    about = machine.describe()
    machine.raise_file_limit()
    begun = time.monotonic()
    options = Options(
        kinds=[KINDS[name]() for name in KINDS if name in baselines and name != "limit"],
        rounds=2 if given.quick else given.rounds,
        scale=QUICK if given.quick else 1.0,
    )
    print_progress(about)
    tables = measure(options, names)
    print_progress(f"all: {time.monotonic() - begun:.0f} s")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    if given.json:
        result = {
            "date": date,
            "machine": about,
            "tables": [table.as_json(each) for each in tables],
        }
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    if given.results:
        words = ["scripts/bench", *given.scenarios, *(["--quick"] if given.quick else [])]
        words += ["--baselines", given.baselines] if given.baselines else []
        command = " ".join(words)
        what = _WHAT_NODES if names == ["nodes"] else _WHAT
        text = [f"## {date}, `{command}`, {about}", what.format(rounds=options.rounds)]
        name = " ".join(["scripts/bench", *given.scenarios])
        write_section(name, "\n\n".join([*text, *map(table.markdown, tables)]))


def write_section(name: str, section: str) -> None:
    """Replace the previous section of the same scenarios."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    text = RESULTS.read_text()
    before, found, rest = text.partition(begin)
    if not found:
        before, rest = text.rstrip() + "\n\n", end + "\n"
    _, _, after = rest.partition(end)
    RESULTS.write_text(f"{before}{begin}\n{section}\n{end}{after}")


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Exit as on Ctrl-C, so that child processes are stopped."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
