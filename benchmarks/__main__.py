"""Measure the server and its peers under the same load, in one run.

Servers run on one core, the load generator on another. Servers take turns in each round. Figures
are medians of the rounds. Server CPU is user and system time of the process with its children.
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

from . import machine, results, table
from .peers import KINDS, ON_REQUEST
from .rounds import Options, Result, print_progress
from .scenarios import SCENARIOS, WITH_OWN_TABLES

RESULTS = Path(__file__).with_name("results.md")

QUICK = 0.1
"""Fraction of the connections, rooms and publishes."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="scenario",
        help=f"of {', '.join(SCENARIOS)}; without it, these; or one of "
        f"{', '.join(WITH_OWN_TABLES)}, which have tables of their own",
    )
    parser.add_argument(
        "--servers", help=f"of {', '.join(KINDS)}; without it, all but {ON_REQUEST[0]}"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds per measurement. Default: 5.")
    parser.add_argument("--quick", action="store_true", help="run a tenth of the work, two rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measurements as JSON")
    parser.add_argument(
        "--results", action="store_true", help="write the section in benchmarks/results.md"
    )
    given = parser.parse_args()
    servers = given.servers.split(",") if given.servers else sorted({*KINDS} - {*ON_REQUEST})
    known = {*SCENARIOS, *WITH_OWN_TABLES}
    for wrong in {*given.scenarios} - known | {*servers} - {*KINDS}:
        parser.error(f"{wrong!r} is neither a scenario nor a server")
    signal.signal(signal.SIGTERM, _stop)
    machine.raise_file_limit()
    options = Options(
        servers=servers,
        rounds=2 if given.quick else given.rounds,
        scale=QUICK if given.quick else 1.0,
    )
    about, begun = machine.describe(), time.monotonic()
    print_progress(about)
    measured, texts = _measure(options, given.scenarios or list(SCENARIOS))
    took_s = time.monotonic() - begun
    print_progress(f"all: {took_s:.0f} s")
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    if given.json:
        result = {"date": date, "machine": about, "results": results.as_json(measured)}
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    if given.results:
        command = " ".join(["scripts/bench", *sys.argv[1:]])
        head = f"## {date}, `{command}`, {about}, {took_s / 60:.0f} minutes"
        name = " ".join(["scripts/bench", *given.scenarios])
        write_section(name, "\n\n".join([head, *texts]))


def _measure(options: Options, names: Sequence[str]) -> tuple[list[Result], list[str]]:
    """Run the scenarios, print what they have measured, and return it as text, too."""
    measured: list[Result] = []
    texts: list[str] = []
    for name in names:
        begun = time.monotonic()
        print_progress(f"{name} …")
        if name in SCENARIOS:
            measured += SCENARIOS[name](options)
        else:
            method, run = WITH_OWN_TABLES[name]
            texts += [method, *map(table.markdown, run(options))]
        print_progress(f"{name}: {time.monotonic() - begun:.0f} s")
    if measured:
        method = results.METHOD.format(rounds=options.rounds)
        missed = f"### What is missed\n\n{results.what_is_missed(measured)}"
        texts = [method, results.one_table(measured), missed, *texts]
    print("\n\n".join(texts), flush=True)
    return measured, texts


def write_section(name: str, section: str) -> None:
    """Replace the previous section of the same scenarios; text outside of it stays."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    before, found, rest = RESULTS.read_text().partition(begin)
    if not found:
        before, rest = before.rstrip() + "\n\n", end + "\n"
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
