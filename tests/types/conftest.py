"""The real TypeScript compiler, which scripts/setup installs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.timeouts import TIMEOUT_S

NODE = Path(sys.executable).with_name("node")
COMPILER = Path(__file__).parents[2] / "browser/node_modules/typescript/bin/tsc"
OPTIONS = ["--strict", "--exactOptionalPropertyTypes", "--verbatimModuleSyntax", "--noEmit"]
OPTIONS += ["--target", "es2022", "--module", "esnext", "--skipLibCheck", "--pretty", "false"]
OPTIONS += ["--ignoreConfig"]

Compile = Callable[..., list[str]]


@pytest.fixture
def errors_of(tmp_path: Path) -> Compile:
    """Compile files given as name=text; the errors, a line each."""

    def errors_of(**files: str) -> list[str]:
        paths = [tmp_path / f"{name}.ts" for name in files]
        for path, text in zip(paths, files.values(), strict=True):
            path.write_text(text, encoding="utf-8")
        command = [str(NODE), str(COMPILER), *OPTIONS, *map(str, paths)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=tmp_path, timeout=2 * TIMEOUT_S
        )
        errors = done.stdout.splitlines()
        assert (done.returncode == 0) == (not errors), done.stderr
        return errors

    return errors_of
