"""``synap-realtime demo`` as a process that a test can kill and start again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx

from .program import free_port
from .timeouts import TIMEOUT_S


class Demo:
    """The demo with a folder and an address of its own, through all its lives.

    Args:
        folder: where it keeps everything.
        options: more options of ``synap-realtime demo``.

    Attributes:
        url: the address of the page, in each life.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._options = ["--data", str(folder), "--port", str(port), *options]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it, and wait until the page is served."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "synap_realtime", "demo", *self._options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("notes app"):
                assert line.split()[-1] == self.url
                return
        raise AssertionError("the demo did not start")

    def kill(self) -> None:
        """``kill -9``."""
        assert self._process is not None
        self._process.kill()
        self._process.communicate()

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.communicate(timeout=TIMEOUT_S)

    @property
    def realtime_url(self) -> str:
        """The address of its room server in this life."""
        return str(httpx.get(f"{self.url}/api/config").json()["realtimeUrl"])
