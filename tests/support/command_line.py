"""Runs ``synap-realtime`` as a user does."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.timeouts import TIMEOUT_S

COMMAND = str(Path(sys.executable).with_name("synap-realtime"))


@asynccontextmanager
async def started(*arguments: str, **environment: str) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(
        COMMAND, *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE, env={**os.environ, **environment}
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def run(*arguments: str, said: str = "", **environment: str) -> tuple[int, str, str]:
    async with started(*arguments, **environment) as process:
        out, errors = await process.communicate(said.encode())
        assert b"Traceback" not in errors
        return int(process.returncode or 0), out.decode(), errors.decode()


def run_blocking(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
