"""The types of ``browser/`` are the output of the command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).with_name("synap-realtime")
TYPES = Path(__file__).parents[2] / "browser" / "src" / "types.ts"


def test_they_are_current(tmp_path: Path) -> None:
    out = tmp_path / "types.ts"
    subprocess.run([COMMAND, "generate-types", "--out", str(out)], check=True, capture_output=True)
    again = "run: synap-realtime generate-types --out browser/src/types.ts"
    assert out.read_text() == TYPES.read_text(), again
