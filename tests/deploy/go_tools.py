"""The programs that ``scripts/setup`` builds with Go, for what is in ``deploy/``."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.timeouts import TIMEOUT_S

from .conftest import ROOT

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "synap-realtime"
_OPERATOR = "github.com/prometheus-operator/prometheus-operator@v0.85.0"


@functools.cache
def _versions() -> dict[str, str]:
    lines = (ROOT / "scripts/go-tools").read_text().splitlines()
    return {name: version for name, _, version in map(str.split, lines)}


def run_go_tool(
    name: str, *arguments: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program in the pinned version. Skip the test where it could not be built."""
    program = _CACHE / f"{name}@{_versions()[name]}" / name
    if not program.exists():
        pytest.skip(f"{name} is missing: scripts/setup dev builds it if Go is installed")
    return subprocess.run(
        [program, *arguments],
        cwd=cwd, capture_output=True, text=True, timeout=4 * TIMEOUT_S, check=False,
    )  # fmt: skip


@functools.cache
def prometheus_operator() -> Path | None:
    """Return the folder with the sources of the Prometheus Operator, if Go can get them."""
    if shutil.which("go") is None:
        return None
    done = subprocess.run(
        ["go", "mod", "download", "-json", _OPERATOR],
        capture_output=True, text=True, timeout=4 * TIMEOUT_S, check=False,
    )  # fmt: skip
    return Path(json.loads(done.stdout)["Dir"]) if done.returncode == 0 else None
