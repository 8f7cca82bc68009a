"""`scripts/conformance` with an invalid argument prints one line instead of failing every case."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.conformance.conftest import OURS
from tests.support.credentials import API_KEY, SECRET
from tests.support.timeouts import TIMEOUT_S

pytestmark = pytest.mark.integration  # it runs the suite itself, against servers of its own

ROOT = Path(__file__).parents[1]


def suite(
    server: str, *, case: str = "test_health", **keys: str
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CONFORMANCE_")}
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--confcutdir=tests/conformance"),
            *("tests/conformance", f"--server={server}", "-k", case),
        ],
        cwd=ROOT,
        env={**environment, **keys},
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize("arguments", [[], ["nope"], ["--help"], ["http://"], ["ws://x"]])
def test_another_argument_gets_the_usage(arguments: list[str]) -> None:
    done = subprocess.run(
        [ROOT / "scripts" / "conformance", *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    assert "scripts/conformance memory | sqlite | memory-keys" in done.stderr
    assert "==>" not in done.stderr, "nothing was set up for it"


async def test_address_without_a_room_server_is_a_one_line_error(rooms: str) -> None:
    for server, said in (
        (f"{rooms}/nowhere", "GET /health was answered 404"),
        ("http://127.0.0.1:1", "no room server answers"),
        ("nope", f"expected {', '.join(OURS)} or a URL, got 'nope'"),
    ):
        done = await asyncio.to_thread(suite, server)
        assert done.returncode == 2
        (line,) = (done.stdout + done.stderr).splitlines()
        assert said in line


async def test_a_room_server_is_checked(rooms: str) -> None:
    done = await asyncio.to_thread(suite, rooms)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


async def test_a_room_server_with_keys_is_checked_with_them() -> None:
    settings = load_settings(
        token_secrets=(SecretStr(SECRET),), api_keys={"jobs": SecretStr(API_KEY)}
    )
    both = {"CONFORMANCE_API_KEY": API_KEY, "CONFORMANCE_TOKEN_SECRET": SECRET}
    async with running_server(create_app(settings)) as url:
        for keys, said in (
            ({}, "it has keys: set CONFORMANCE_API_KEY and CONFORMANCE_TOKEN_SECRET"),
            ({"CONFORMANCE_API_KEY": API_KEY}, "CONFORMANCE_TOKEN_SECRET: expected at least 32"),
            ({**both, "CONFORMANCE_TOKEN_SECRET": "x" * 32}, "TOKEN_SECRET was answered 401"),
            ({**both, "CONFORMANCE_API_KEY": "x" * 32}, "CONFORMANCE_API_KEY was answered 401"),
        ):
            done = await asyncio.to_thread(suite, url, **keys)
            assert done.returncode == 2
            (line,) = (done.stdout + done.stderr).splitlines()
            assert said in line
            assert SECRET not in line
            assert API_KEY not in line
        done = await asyncio.to_thread(suite, url, case="test_one", **both)
        assert done.returncode == 0, done.stdout
        assert "passed" in done.stdout


async def test_keys_for_a_room_server_that_has_none(rooms: str) -> None:
    """A case of servers with keys is skipped where there are none, and says so."""
    keys = {"CONFORMANCE_API_KEY": API_KEY, "CONFORMANCE_TOKEN_SECRET": SECRET}
    done = await asyncio.to_thread(suite, rooms, **keys)
    assert done.returncode == 2
    assert "it has no keys" in done.stdout + done.stderr
    done = await asyncio.to_thread(suite, rooms, case="test_rejects_unauthenticated_client")
    assert done.returncode == 0, done.stdout
    assert "the server has no keys" in done.stdout
