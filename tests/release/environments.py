"""Virtual environments without the repository, in which a test installs the wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.timeouts import TIMEOUT_S

BIN = Path(sys.executable).parent
CONSTRAINTS = Path(__file__).parents[2] / "requirements" / "dev.txt"


class Environment:
    """A virtual environment.

    Args:
        folder: an existing folder. Programs run there.

    Attributes:
        bin: the folder of its programs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        venv = str(folder / "venv")
        subprocess.run([BIN / "uv", "venv", "-q", "--python", sys.executable, venv], check=True)

    def install(self, *requirements: str | Path) -> None:
        """Install packages: those that the tests use, in the versions that they use."""
        options = ["-q", "--python", str(self.bin / "python"), "-c", str(CONSTRAINTS)]
        command = [str(BIN / "uv"), "pip", "install", *options, *map(str, requirements)]
        subprocess.run(command, check=True, timeout=20 * TIMEOUT_S)

    def run(
        self, *command: str, folder: Path | None = None, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment.

        Args:
            folder: the working directory; default: :attr:`folder`.
            variables: added to the process's environment.
        """
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=folder or self.folder, env=self.variables() | variables, capture_output=True,
            text=True, timeout=4 * TIMEOUT_S, check=False,
        )  # fmt: skip

    def start(self, *command: str, folder: Path | None = None) -> subprocess.Popen[str]:
        """Start a program of the environment, in a process group of its own. Its output is text."""
        return subprocess.Popen(
            [self.bin / command[0], *command[1:]],
            cwd=folder or self.folder, env=self.variables(), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def has(self, package: str) -> bool:
        return self.run("python", "-c", f"import {package}").returncode == 0

    def variables(self) -> dict[str, str]:
        """Return variables of which none leads to the repository."""
        return self.variables_of(self.bin)

    @staticmethod
    def variables_of(folder: Path) -> dict[str, str]:
        """Return variables of which none leads to the repository; the folder leads the path."""
        names = ("HOME", "LANG", "PATH", "SSL_CERT_FILE", "XDG_CACHE_HOME")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        kept["PATH"] = os.pathsep.join([str(folder), kept["PATH"]])
        return kept | {
            key: value for key, value in os.environ.items() if key.startswith(("PIP_", "UV_"))
        }
