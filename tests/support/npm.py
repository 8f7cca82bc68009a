"""Runs the programs of ``browser/``'s npm packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BROWSER = Path(__file__).parents[2] / "browser"
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "NODE_USE_SYSTEM_CA": "1",
}


def run(*command: str | Path, cwd: Path = BROWSER, timeout_s: float = 120) -> str:
    """A command that has to succeed; what it printed."""
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout_s,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tool(name: str, *arguments: str | Path, cwd: Path = BROWSER) -> str:
    return run(BIN / "node", BROWSER / "node_modules" / ".bin" / name, *arguments, cwd=cwd)
