"""``deploy/Containerfile``, as far as it can be checked without a container engine."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from synap_realtime.server import create_app
from synap_realtime.server.config import ServerSettings, load_settings
from synap_realtime.server.serve import running_server
from tests.support.timeouts import TIMEOUT_S

from .conftest import DEPLOY, ROOT

FILE = DEPLOY / "Containerfile"
TEXT = re.sub(r"\\\n\s*", "", FILE.read_text())


def test_the_linter_finds_nothing() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), FILE],
        capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")


def test_copied_files_exist_and_the_build_context_is_minimal() -> None:
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE)
        for source in line.split()
    }
    assert copied
    assert all((ROOT / source).exists() for source in copied)
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert sent == copied
    assert ignored[1] == "*"


def test_runs_as_unprivileged_user_with_server_options() -> None:
    assert "\nUSER 10001:10001\n" in TEXT
    names = re.findall(r"SYNAP_REALTIME_([A-Z_]+)=", TEXT)
    assert {name.lower() for name in names} <= set(ServerSettings.model_fields)


def test_installs_the_tested_versions() -> None:
    tested = pins("dev.txt")
    for name in ("server.txt", "build.txt"):
        pinned = pins(name)
        assert pinned
        assert pinned.items() <= tested.items()
    assert {"uvloop", "pyjwt", "typer", "prometheus-client"} <= set(pins("server.txt"))


def pins(name: str) -> dict[str, str]:
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([\w.-]+(?:\[[\w,-]+\])?)==(\S+)", text, re.MULTILINE))


async def test_health_check_detects_a_stopped_server() -> None:
    (line,) = re.findall(r"^HEALTHCHECK .* CMD (\[.+\])$", TEXT, re.MULTILINE)
    _, *arguments = json.loads(line)

    async def asked(port: str) -> int:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env={**os.environ, "SYNAP_REALTIME_PORT": port},
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        return await process.wait()

    async with running_server(create_app(load_settings())) as url:
        assert await asked(url.rpartition(":")[2]) == 0
    with socket.socket() as reserved:  # bound, and nobody listens
        reserved.bind(("127.0.0.1", 0))
        assert await asked(str(reserved.getsockname()[1])) == 1
