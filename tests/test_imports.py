"""Who may import whom: the contracts in pyproject.toml, "tool.importlinter"."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_imports_only_go_down() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_the_package_loads_no_server_and_no_job_framework() -> None:
    code = "import sys, synap_realtime; print(' '.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = set(done.stdout.split())
    assert "synap_realtime.broadcast.aio" in loaded
    frameworks = {"celery", "inngest", "taskiq"}
    servers = {"starlette", "synap_realtime.server", "uvicorn", "websockets"}
    assert not loaded & (frameworks | servers | {"typer"})
