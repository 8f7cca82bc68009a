"""The example prints the output in its docstring."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from examples import away
from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent.parent


def test_prints_its_documented_output() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.away"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in (away.__doc__ or "").splitlines()]
    assert done.stdout.splitlines() == lines[lines.index("received step 1") :][:4]
