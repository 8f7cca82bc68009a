"""``scripts/bench``: ours and the peers, the same work, one run.

Servers run on one core, the load generator on another. Each server is measured in turn with the
limit, a C program that does nothing but ``send(2)``; figures are medians of the rounds, with the
least and the most. Server CPU is user and system time of the process with its children.
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
from .rounds import Options, Table, told
from .scenarios import SCENARIOS
from .servers import KINDS, ON_REQUEST

RESULTS = Path(__file__).with_name("results.md")
BEGIN, END = "<!-- begin scripts/bench -->", "<!-- end scripts/bench -->"

QUICK = 0.1
"""Of the connections, rooms and publishes."""

_WHAT = """\
Peers are small programs of `benchmarks/baselines/` with the settings of production. They neither
validate, nor dedupe, keep a log (but nchan keeps 100 messages a room) or ask for a key. Ours does
all that: a publisher's key, a token for each subscriber, the memory store, the log at its default
level; rate limits are off. Server CPU is user and system of the process and its children, pinned to
one core; the load generator (C, epoll, one thread) is pinned to the other. "busy" says how much of
its core each side used while a round lasted: where the load has time left, it was not what limited
the server. Medians of {rounds} rounds, the least and the most in brackets; ratios are of pairs of
rounds, server and limit in turn."""


def measure(options: Options, names: Sequence[str]) -> list[Table]:
    """Run these shapes, and print each table when it is there."""
    tables = []
    for name in names:
        begun = time.monotonic()
        told(f"{name} …")
        for each in SCENARIOS[name](options):
            tables.append(each)
            print(table.markdown(each), end="\n\n", flush=True)
        told(f"{name}: {time.monotonic() - begun:.0f} s")
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "scenarios", nargs="*", metavar="scenario", help=f"of {', '.join(SCENARIOS)}; all"
    )
    parser.add_argument(
        "--baselines", help=f"{', '.join(list(KINDS)[1:])}; without it, all but {ON_REQUEST[0]}"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each measure (5)")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work, two rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    parser.add_argument(
        "--results", action="store_true", help="write the section of benchmarks/results.md"
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
    told(about)
    tables = measure(options, names)
    told(f"all: {time.monotonic() - begun:.0f} s")
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
        text = [f"## {date}, `{command}`, {about}", _WHAT.format(rounds=options.rounds)]
        _write("\n\n".join([*text, *map(table.markdown, tables)]))


def _write(section: str) -> None:
    """Put it into the place of the one before."""
    text = RESULTS.read_text()
    before, found, rest = text.partition(BEGIN)
    if not found:
        before, rest = text.rstrip() + "\n\n", END + "\n"
    _, _, after = rest.partition(END)
    RESULTS.write_text(f"{before}{BEGIN}\n{section}\n{END}{after}")


def _stop(_number: int, _frame: FrameType | None) -> None:
    """Ends as Ctrl-C does: what was started is ended on the way out."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
