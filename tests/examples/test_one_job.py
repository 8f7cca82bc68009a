"""The example prints the output in its docstring."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from examples import one_job
from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent.parent


def test_prints_its_documented_output() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.one_job"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"^    (report.*)", one_job.__doc__ or "", re.MULTILINE)
    assert len(shown) == 3
    for line, pattern in zip(done.stdout.splitlines(), shown, strict=True):
        assert re.fullmatch(re.escape(pattern).replace("…", ".*"), line)
    assert "The printer is busy." in done.stdout
