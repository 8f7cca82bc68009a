"""The entry point: quiet on Ctrl-C, and quick for ``--help``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.support.timeouts import TIMEOUT_S


@pytest.mark.parametrize("module", ["pydantic", "synap_realtime.server.serve"])
def test_ctrl_c_while_the_program_is_loaded_is_quiet(tmp_path: Path, module: str) -> None:
    """A module that takes long to import is interrupted in the middle."""
    (tmp_path / "sitecustomize.py").write_text(
        f"""
import importlib.abc, os, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "synap_realtime", "serve", "--port", "0"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        capture_output=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_the_command_begins_where_ctrl_c_is_safe() -> None:
    entries = metadata.entry_points(group="console_scripts", name="synap-realtime")
    assert [entry.value for entry in entries] == ["synap_realtime.__main__:main"]


@pytest.mark.parametrize("arguments", ["--version", "--help", "token --help", "subscribe --help"])
def test_help_loads_no_server_and_no_client(arguments: str) -> None:
    code = (
        "import sys; from synap_realtime.cli import main; "
        f"sys.argv[1:] = {arguments.split()}\n"
        "try: main()\nfinally: print('loaded', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=TIMEOUT_S
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "synap_realtime.cli.app" in loaded
    assert not loaded & {"celery", "httpx", "inngest", "uvicorn", "websockets"}
    assert not loaded & {"synap_realtime.broadcast", "synap_realtime.server"}


def test_serve_loads_only_what_a_server_needs() -> None:
    """A server with clients that wait for it to come back starts fast."""
    code = (
        "import sys; from synap_realtime.cli import main; "
        "sys.argv[1:] = ['serve', '--host', '192.0.2.1', '--port=0', '--no-io-uring']\n"
        "try: main()\nfinally: print('loaded', *sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SYNAP_REALTIME_TOKEN_SECRETS": "s" * 43},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    assert "could not listen on 192.0.2.1:0" in done.stderr
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "synap_realtime.server.serve" in loaded
    assert not loaded & {"click", "cryptography", "httpx", "jwt", "starlette", "typer", "uvicorn"}
