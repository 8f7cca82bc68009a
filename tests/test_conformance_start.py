"""`scripts/conformance` with a wrong argument: one line at once, not some hundred failures."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def suite(server: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--confcutdir=tests/conformance"),
            *("tests/conformance", f"--server={server}", "-k", "test_health"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [[], ["nope"], ["--help"], ["http://"], ["ws://x"]])
def test_another_argument_gets_the_usage(arguments: list[str]) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "conformance", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.returncode == 2
    assert "scripts/conformance memory | sqlite" in done.stderr
    assert "==>" not in done.stderr, "nothing was set up for it"


async def test_an_address_without_a_room_server_is_one_line(rooms: str) -> None:
    for server, said in (
        (f"{rooms}/nowhere", "GET /health was answered 404"),
        ("http://127.0.0.1:1", "no room server answers"),
        ("nope", "expected memory, sqlite or a URL"),
    ):
        done = await asyncio.to_thread(suite, server)
        assert done.returncode == 2
        (line,) = (done.stdout + done.stderr).splitlines()
        assert said in line


async def test_a_room_server_is_checked(rooms: str) -> None:
    done = await asyncio.to_thread(suite, rooms)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
