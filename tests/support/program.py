"""The real server program on one port, which a test can kill and restart."""

from __future__ import annotations

import asyncio
import os
import socket

from tests.support.command_line import COMMAND
from tests.support.timeouts import TIMEOUT_S


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Program:
    """``synap-realtime serve``, through all its lives.

    Args:
        store: ``sqlite:///path`` outlives it; ``memory://`` does not.
        environment: more settings, ``SYNAP_REALTIME_…``.

    Attributes:
        url: where it listens, in each life.
    """

    def __init__(self, store: str, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._arguments = ("serve", "--port", str(self.port), "--store", store)
        self._environment = {**os.environ, **environment}
        self._process: asyncio.subprocess.Process | None = None
        self._log: asyncio.Task[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process of this life."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            COMMAND, *self._arguments, env=self._environment, stderr=asyncio.subprocess.PIPE
        )
        assert self._process.stderr is not None
        async with asyncio.timeout(TIMEOUT_S):
            while line := await self._process.stderr.readline():
                if b"listening on" in line:
                    # Read on, or a server that logs much would wait for the pipe.
                    self._log = asyncio.create_task(self._process.stderr.read())
                    return
        raise AssertionError("the server did not start")

    async def kill(self) -> None:
        """``kill -9``."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None
        if self._log is not None:
            await self._log
            self._log = None
