"""``serve --workers N``: processes that share a port and a store. This one serves nobody itself.

Each worker binds the port anew (SO_REUSEPORT), and the kernel spreads connections over them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass

from ..errors import ConfigurationError
from .config import ServerSettings
from .listeners import holding
from .logging import configure

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 30.0
"""A worker that has died is started again after so long: each time twice as long as before."""

HEALTHY_AFTER_S = 10.0
"""One that has lived for so long has died of something new: its delay begins anew."""

MAX_FAILED_STARTS = 5
"""So often in a row a worker may die before it takes connections; then all end."""

EXIT_GRACE_S = 30.0
"""Beside draining (twice ``drain_s`` at most), a worker has so long to end."""

_BAD_SETTINGS = 2  # a worker's exit code, as the command has it


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker is told."""

    settings: ServerSettings
    number: int
    port: int


def run(settings: ServerSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: the port is taken, or cannot be shared on this system.
        SystemExit: the workers cannot serve; it has been said why.
    """
    configure(settings.log_level, settings.log_format)
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigurationError(
            "--workers (SYNAP_REALTIME_WORKERS): on this system processes cannot share a port"
        )
    with holding(settings.host, settings.port) as port:
        code = asyncio.run(_Supervisor(settings, port).run())
    if code:
        raise SystemExit(code)


class _WorkerFailedError(Exception):
    """A worker cannot be kept alive."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Supervisor:
    def __init__(self, settings: ServerSettings, port: int) -> None:
        self._settings = settings
        self._port = port
        self._processes: dict[int, Process] = {}
        self._one_is_ready = asyncio.Event()
        self._ready: set[int] = set()
        self._stop = asyncio.Event()

    async def run(self) -> int:
        """Keep the workers until a signal; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        keepers = [
            loop.create_task(self._supervise(number))
            for number in range(1, self._settings.workers + 1)
        ]
        stop = loop.create_task(self._stop.wait())
        await asyncio.wait([stop, *keepers], return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, *keepers):
            task.cancel()
        ends = await asyncio.gather(*keepers, return_exceptions=True)
        for end in ends:
            if isinstance(end, _WorkerFailedError):
                return end.code
            if isinstance(end, Exception):
                raise end
        logger.info("all workers have stopped")
        return 0

    def _on_signal(self) -> None:
        """The first signal lets all drain, the second waits for nobody."""
        if self._stop.is_set():
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        self._stop.set()

    async def _supervise(self, number: int) -> None:
        """Have this worker running, until this is cancelled.

        Raises:
            _GaveUpError: it dies at each start, or its settings are wrong.
        """
        if number > 1:  # what is wrong with the settings is said once
            await self._one_is_ready.wait()
        loop = asyncio.get_running_loop()
        delay_s, failed = FIRST_DELAY_S, 0
        while True:
            began = loop.time()
            has_served, code = await self._run_once(number)
            failed = 0 if has_served else failed + 1
            if code == _BAD_SETTINGS and not self._one_is_ready.is_set():
                raise _WorkerFailedError(code)
            died = f"signal {-code}" if code < 0 else f"exit code {code}"
            if failed == MAX_FAILED_STARTS:
                logger.error(
                    "worker %d has died at each of %d starts (%s): all end", number, failed, died
                )
                raise _WorkerFailedError(1)
            if loop.time() - began >= HEALTHY_AFTER_S:
                delay_s = FIRST_DELAY_S
            logger.error(
                "worker %d has died (%s); it is started again in %g s", number, died, delay_s
            )
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MAX_DELAY_S)

    async def _run_once(self, number: int) -> tuple[bool, int]:
        """One life of a worker: whether it took connections, and its exit code.

        Cancelled, it lets the worker drain and waits for its end.
        """
        # In a session of its own: Ctrl-C is for this process, which tells the workers.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "synap_realtime.server.worker",
            stdin=PIPE, stdout=PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None  # noqa: S101 - a pipe was asked for
        assert process.stdout is not None  # noqa: S101
        self._processes[number] = process
        try:
            process.stdin.write(pickle.dumps(WorkerConfig(self._settings, number, self._port)))
            has_served = bool(await process.stdout.read(1))
            if has_served:
                self._on_ready(number, process.pid)
            return has_served, await process.wait()
        finally:
            self._ready.discard(number)
            await self._end(process)
            del self._processes[number]

    def _on_ready(self, number: int, pid: int) -> None:
        logger.info("worker %d takes connections: process %d", number, pid)
        self._one_is_ready.set()
        self._ready.add(number)
        if len(self._ready) == self._settings.workers:
            logger.info("all %d workers take connections", self._settings.workers)

    async def _end(self, process: Process) -> None:
        assert process.stdin is not None  # noqa: S101
        process.stdin.close()  # see worker.py
        try:
            async with asyncio.timeout(2 * self._settings.drain_timeout_s + EXIT_GRACE_S):
                await process.wait()
        except TimeoutError:
            logger.error("process %d does not end, and is killed", process.pid)
            process.kill()
            await process.wait()
