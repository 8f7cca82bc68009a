"""The steps of ``deploy/Containerfile`` in a root folder, since no image can be pulled here.

The base image's Python is replaced by Debian's, which has the same minor version.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.docs.tutorial import ROOT
from tests.support.program import free_port
from tests.support.timeouts import TIMEOUT_S

from .conftest import CHROOT

pytestmark = pytest.mark.timeout(60 * TIMEOUT_S)

TEXT = re.sub(r"\\\n\s*", "", (ROOT / "deploy" / "Containerfile").read_text())
UNPRIVILEGED = 10001


@dataclass
class Image:
    """An image whose stages share one root folder."""

    root: Path
    folder: str = "/"
    user: str = "0:0"
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": "/usr/local/bin:/usr/bin"})

    def build(self) -> None:
        """Do each instruction."""
        for line in TEXT.splitlines():
            name, _, rest = line.partition(" ")
            match name:
                case "FROM":
                    self.folder, self.environment = "/", {"PATH": "/usr/local/bin:/usr/bin"}
                case "ENV":
                    for each in shlex.split(rest):
                        key, _, value = each.partition("=")
                        old = self.environment["PATH"]
                        self.environment[key] = value.replace("$PATH", old)
                case "WORKDIR":
                    self.folder = rest
                    self.path(rest).mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self._copy(shlex.split(rest))
                case "RUN":
                    done = self.run("sh", "-ec", rest)
                    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
                case "USER":
                    self.user = rest
                case "CMD":
                    self.command = json.loads(rest)
                case "HEALTHCHECK":
                    self.health = json.loads(rest.partition(" CMD ")[2])

    def _copy(self, words: list[str]) -> None:
        *sources, target = words
        if sources[0].startswith("--from"):
            assert sources[1] == target  # both stages are in this root
            return
        for source in sources:
            into = self.path(self.folder) / target
            given = ROOT / source
            if given.is_dir():
                shutil.copytree(given, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(given, into)

    def path(self, inside: str) -> Path:
        return self.root / inside.removeprefix("/")

    def arguments(self, *command: str) -> list[str]:
        inside = f'cd "{self.folder}" && exec "$@"'
        chroot = [CHROOT, f"--userspec={self.user}", "--groups=", str(self.root)]
        return [*chroot, "sh", "-c", inside, "sh", *command]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.arguments(*command), env=self.variables(), capture_output=True, text=True,
            timeout=20 * TIMEOUT_S, check=False,
        )  # fmt: skip

    def variables(self) -> dict[str, str]:
        passed = {name: os.environ[name] for name in os.environ if name.startswith("PIP_")}
        return {**passed, **self.environment}


@pytest.fixture
def image(debian: Callable[[str], Path]) -> Image:
    root = debian("bookworm")
    made = ("build", "opt", "run/secrets", "src", "var/lib/synap-realtime", "wheels")
    for folder in made:
        shutil.rmtree(root / folder, ignore_errors=True)
    python = root / "usr/local/bin/python"
    python.unlink(missing_ok=True)
    python.symlink_to("/usr/bin/python3")
    image = Image(root)
    image.build()
    return image


def test_the_image_serves_as_an_unprivileged_user(image: Image) -> None:
    assert image.user == f"{UNPRIVILEGED}:{UNPRIVILEGED}"
    image.environment["SYNAP_REALTIME_PORT"] = port = str(free_port())
    image.path("/run/secrets").mkdir(parents=True)
    image.user = "0:0"
    made = image.run("synap-realtime", "generate-keys", "--out", "/run/secrets/keys.toml")
    assert made.returncode == 0, made.stderr
    os.chown(image.path("/run/secrets/keys.toml"), UNPRIVILEGED, UNPRIVILEGED)
    image.user = f"{UNPRIVILEGED}:{UNPRIVILEGED}"

    server = subprocess.Popen(
        image.arguments(*image.command), env=image.variables(), stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stderr is not None
        assert any("listening on" in line for line in server.stderr), "it has ended"
        assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200
        assert image.run(*image.health).returncode == 0
        assert httpx.get(f"http://127.0.0.1:{port}/rooms/user_1/events").status_code == 401
        database = image.path("/var/lib/synap-realtime/rooms.db").stat()
        assert (database.st_uid, database.st_mode & 0o777) == (UNPRIVILEGED, 0o600)
        server.terminate()
        assert server.wait(TIMEOUT_S) == 0
    finally:
        server.kill()
        server.communicate()
    assert image.run(*image.health).returncode != 0
