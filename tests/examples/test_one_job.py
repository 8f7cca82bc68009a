"""The example prints what its docstring says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from examples import one_job
from tests.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent.parent


def test_it_prints_what_it_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.one_job"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"^    (report\S+ +\w+)", one_job.__doc__ or "", re.MULTILINE)
    assert len(shown) == 3
    assert [line[: len(shown[0])].rstrip() for line in done.stdout.splitlines()] == shown
    assert '{"url": "/reports/7.pdf"}' in done.stdout
    assert "The printer is busy." in done.stdout
