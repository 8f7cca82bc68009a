"""Run the fuzz targets, each in its own process, one after the other or concurrently."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from . import worker
from .merge import merge
from .target import CORPUS, kept_inputs
from .targets import NAMES

FOUND = Path(__file__).parents[2] / ".venv" / "fuzz"
"""Inputs that cover something new, and those that break a rule."""

SPARE_S = 180.0
"""A process that is so much late is ended."""


@dataclass(frozen=True, slots=True)
class Run:
    """A target that is being fuzzed, in a process of its own."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path
    last_input: Path
    begun: float


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz",
        description="Feed mutated inputs to the parsers of untrusted data: "
        + ", ".join(NAMES)
        + ". Exit status 1 if an input breaks a rule; the input is printed and kept.",
    )
    parser.add_argument(
        "seconds", nargs="?", type=float, help="for each target (60; with --fixed, at most 60)"
    )
    parser.add_argument(
        "--fixed",
        action="store_true",
        help="the same inputs in each run: the corpus, and a number of mutations of it; inputs "
        "that there was no time for are reported",
    )
    parser.add_argument(
        "--target", action="append", choices=NAMES, help="only this one; repeatable"
    )
    parser.add_argument("--jobs", type=int, default=2, help="targets at the same time (2)")
    parser.add_argument(
        "--driver",
        choices=("atheris", "mutation"),
        help="atheris is guided by coverage (default where it is installed: Linux on x86-64); "
        "mutation runs everywhere",
    )
    parser.add_argument("--seed", type=int, help="of the random mutations (default: the time)")
    parser.add_argument(
        "--reproduce", nargs=2, metavar=("TARGET", "FILE"), help="feed one input, then stop"
    )
    parser.add_argument(
        "--merge",
        action="store_true",
        help="add to tests/fuzz/covered what earlier explorations found and no kept input covers",
    )
    given = parser.parse_args()
    if given.reproduce:
        name, file = given.reproduce
        return worker.reproduce(name, Path(file).read_bytes())
    if given.merge:
        for name in given.target or NAMES:
            before, after = merge(name, _prepare_covered(name))
            print(f"{name}: {before} inputs were kept, now {after}", flush=True)
        return 0
    if given.fixed:
        driver, seed, seconds = "fixed", worker.FIXED_SEED, given.seconds or 60.0
        print(f"fixed inputs, at most {seconds:g} s for each target", flush=True)
    else:
        driver = given.driver or ("atheris" if worker.has_atheris() else "mutation")
        seed = int(time.time()) if given.seed is None else given.seed
        seconds = given.seconds or 60.0
        print(f"driver: {driver}, seed: {seed}, {seconds:g} s for each target", flush=True)
    waiting = list(given.target or NAMES)
    passed = failed = 0
    with tempfile.TemporaryDirectory(prefix="synap-fuzz-") as folder:
        runs: list[Run] = []
        while waiting or runs:
            while waiting and len(runs) < given.jobs:
                runs.append(_start(waiting.pop(0), driver, seconds, seed, Path(folder)))
            time.sleep(0.1)
            for run in [each for each in runs if _has_ended(each, seconds)]:
                runs.remove(run)
                if _report(run):
                    passed += 1
                else:
                    failed += 1
    print(f"fuzz: {passed} passed, {failed} failed")
    return 1 if failed else 0


def _start(name: str, driver: str, duration_s: float, seed: int, folder: Path) -> Run:
    output, last_input = folder / f"{name}.log", folder / f"{name}.input"
    covered = _prepare_covered(name)
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz.worker"]
    command += [name, driver, str(duration_s), str(seed), str(last_input), str(covered)]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    return Run(name, process, output, last_input, time.monotonic())


def _prepare_covered(name: str) -> Path:
    """Return the folder of what explorations found, with the kept inputs in it."""
    folder = FOUND / "covered" / name
    folder.mkdir(parents=True, exist_ok=True)
    for data in kept_inputs(name):
        (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return folder


def _has_ended(run: Run, duration_s: float) -> bool:
    if run.process.poll() is not None:
        return True
    if time.monotonic() - run.begun < duration_s + SPARE_S:
        return False
    run.process.kill()
    run.process.wait()
    return True


def _report(run: Run) -> bool:
    """Print how it ended. Returns whether all was right."""
    text = run.output.read_text(errors="replace")
    done = re.search(r"^Done (\d+) runs in (\d+) second", text, re.MULTILINE)
    summary = re.findall(r"^(?:left out|memory|digest): .*$", text, re.MULTILINE)
    took_s = time.monotonic() - run.begun
    if run.process.returncode == 0 and done:
        count = int(done[1])
        print(f"{run.name}: {count} inputs in {took_s:.0f} s, {', '.join(summary)}", flush=True)
        return True
    data = worker.last_input(run.last_input)
    file = FOUND / "broken" / f"{run.name}-{hashlib.sha256(data).hexdigest()[:16]}"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    shown = repr(data if len(data) <= 2000 else data[:2000] + b"...")
    print(
        f"{run.name}: FAILED after {took_s:.0f} s (exit status {run.process.returncode})\n"
        f"{worker.without_noise(text)[-4000:]}\n"
        f"input ({len(data)} bytes): {shown}\n"
        f"reproduce: scripts/fuzz --reproduce {run.name} {os.path.relpath(file)}\n"
        f"keep it:   cp {os.path.relpath(file)} {os.path.relpath(CORPUS / run.name)}/",
        flush=True,
    )
    return False


if __name__ == "__main__":
    sys.exit(main())
