"""docs/projects.md shows what the commands print."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.command_line import COMMAND
from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```console\n(.*?)^```$", (ROOT / "docs/projects.md").read_text(), re.M | re.S
)


def shown(command: str) -> str:
    """Return what the page shows as the output of a command."""
    (block,) = (block for block in BLOCKS if block.partition("\n")[0].endswith(command))
    return str(block).partition("\n")[2]


def test_what_the_demo_prints(tmp_path: Path) -> None:
    expected = shown("synap-realtime demo").splitlines()
    process = subprocess.Popen(
        [COMMAND, "demo", "--port", "0", "--data", tmp_path],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        printed = [process.stdout.readline().rstrip("\n") for _ in expected]
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)
    port = re.compile(r"127\.0\.0\.1:\d+")
    assert [port.sub("", line) for line in printed] == [port.sub("", line) for line in expected]


def test_what_init_prints(tmp_path: Path) -> None:
    done = subprocess.run(
        [COMMAND, "init", "fastapi-celery", "reports"],
        cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.stdout == shown("init fastapi-celery reports")
    tests = "".join(path.read_text() for path in (tmp_path / "reports/tests").glob("test_*.py"))
    assert f"{len(re.findall('^def test_', tests, re.M))} passed" in shown("pytest -q")
