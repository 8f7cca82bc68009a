"""The machine: its cores, and the resources that processes use."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import resource
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

_programs = tempfile.TemporaryDirectory(prefix="synap-bench-")


FILES = 65_536


@dataclass(frozen=True, slots=True)
class Cores:
    """The cores of both sides.

    Attributes:
        server: the core of each server, with all its threads and children.
        load: the core of the load generator; the same one on a machine with one core.
    """

    server: int
    load: int


def cores() -> Cores:
    """Return the first and the last core that this process may use."""
    allowed = sorted(os.sched_getaffinity(0))
    return Cores(allowed[0], allowed[-1])


def raise_file_limit() -> None:
    """Raise the limit of open files to the maximum, also for child processes.

    workerd uses two descriptors for each WebSocket: 10,000 connections need more than the 20,000 of
    some systems, which only root may raise.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(hard, FILES), hard):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return


def tree(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    found = [pid]
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [each for child in file.read_text().split() for each in tree(int(child))]
    return found


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and its children in seconds: user and system, all threads.

    It is read from each process's CPU clock (clock_getcpuclockid(3)), which counts in ns where
    ``/proc/<pid>/stat`` counts in ticks of 10 ms.
    """
    total = 0.0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~each << 3) | 2)
    return total


def max_memory_bytes(pid: int) -> int:
    """Return the memory of a process and its children: PSS, which counts shared pages once."""
    total = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{each}/smaps_rollup").read_text()
            found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
            total += int(found[1]) * 1024 if found else 0
    return total


def describe() -> str:
    """Describe the machine in one line for the results."""
    model = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    name = model[1] if model else platform.machine()
    return (
        f"{os.cpu_count()} cores ({name}), Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f} at the start"
    )


@functools.cache
def compile_c(source: Path) -> Path:
    """Compile one file with the system's C compiler; the program exists as long as this process.

    Raises:
        FileNotFoundError: there is no compiler.
        subprocess.CalledProcessError: compiling failed.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("no C compiler: install gcc or clang")
    program = Path(_programs.name) / source.stem
    subprocess.run([compiler, "-O2", "-w", "-o", program, source], check=True, timeout=60)
    return program
