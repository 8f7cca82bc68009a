"""Run the server in one process, or in several that share a port and a store (``--workers``).

The supervisor of several workers serves no requests. Each worker binds the port (SO_REUSEPORT), and
the kernel distributes connections over them.

The supervisor starts each worker by running this module. It writes a :class:`StartMessage` to
stdin, and closes stdin to stop the worker. Stdin also ends when the supervisor dies, so that no
worker outlives it. The worker writes a byte to stdout when it accepts connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass

from ..errors import ConfigurationError, SynapRealtimeError
from . import serve
from .config import ServerSettings
from .listeners import holding
from .logging.setup import configure
from .stores import check_shared

logger = logging.getLogger(__name__)

FIRST_DELAY_S = 0.1
MAX_DELAY_S = 30.0
"""The delays before a worker that has exited is restarted. Each is twice the previous one."""

HEALTHY_AFTER_S = 10.0
"""The delay starts from the beginning for a worker that has run for this time."""

MAX_FAILED_STARTS = 5
"""How many consecutive starts of a worker may fail. Then the supervisor shuts down."""

EXIT_GRACE_S = 30.0
"""How long a worker may take to exit, in addition to draining (twice ``drain_timeout_s``)."""

_BAD_SETTINGS = 2  # the exit code of a worker, the same as of the command


@dataclass(frozen=True, slots=True)
class StartMessage:
    """What the supervisor writes to the stdin of a worker.

    Attributes:
        settings: of the server.
        number: of the worker, from 1.
        port: the port that all workers share.
    """

    settings: ServerSettings
    number: int
    port: int


def run(settings: ServerSettings) -> None:
    """Serve until SIGINT or SIGTERM, in this process or in ``settings.workers`` processes.

    Raises:
        ConfigurationError: the settings are invalid; the port is in use, or cannot be shared on
            this system; the workers cannot share the store.
        SystemExit: the workers failed, and the cause was logged.
    """
    if settings.workers == 1:
        serve.run(settings)
    else:
        _supervise(settings)


def _supervise(settings: ServerSettings) -> None:
    check_shared(settings.store)
    configure(settings.log_level, settings.log_format)
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigurationError(
            "--workers (SYNAP_REALTIME_WORKERS): this system cannot share a port; use 1"
        )
    with holding(settings.host, settings.port) as port:
        code = asyncio.run(_Supervisor(settings, port).run())
    if code:
        raise SystemExit(code)


class _WorkerFailedError(Exception):
    """The starts of a worker keep failing."""

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
        """Run the workers until a signal. Return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal)
        supervisors = [
            loop.create_task(self._supervise(number))
            for number in range(1, self._settings.workers + 1)
        ]
        stop = loop.create_task(self._stop.wait())
        await asyncio.wait([stop, *supervisors], return_when=asyncio.FIRST_COMPLETED)
        for task in (stop, *supervisors):
            task.cancel()
        ends = await asyncio.gather(*supervisors, return_exceptions=True)
        for end in ends:
            if isinstance(end, _WorkerFailedError):
                return end.code
            if isinstance(end, Exception):
                raise end
        logger.info("all workers stopped")
        return 0

    def _on_signal(self) -> None:
        """Drain the workers at the first signal, and kill them at the second."""
        if self._stop.is_set():
            for process in self._processes.values():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
        self._stop.set()

    async def _supervise(self, number: int) -> None:
        """Keep a worker running until cancelled.

        Raises:
            _WorkerFailedError: its starts keep failing, or its settings are invalid.
        """
        if number > 1:  # one worker reports invalid settings, not each
            await self._one_is_ready.wait()
        loop = asyncio.get_running_loop()
        delay_s, failed = FIRST_DELAY_S, 0
        while True:
            began = loop.time()
            has_served, code = await self._run_once(number)
            failed = 0 if has_served else failed + 1
            if code == _BAD_SETTINGS and not self._one_is_ready.is_set():
                raise _WorkerFailedError(code)
            cause = f"signal {-code}" if code < 0 else f"exit code {code}"
            if failed == MAX_FAILED_STARTS:
                logger.error(
                    "worker %d failed %d consecutive starts (%s); shutting down",
                    number,
                    failed,
                    cause,
                )
                raise _WorkerFailedError(1)
            if loop.time() - began >= HEALTHY_AFTER_S:
                delay_s = FIRST_DELAY_S
            logger.error("worker %d exited (%s); restarting in %g s", number, cause, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, MAX_DELAY_S)

    async def _run_once(self, number: int) -> tuple[bool, int]:
        """Run a worker until it exits. When cancelled, drain it and wait for its exit.

        Returns:
            Whether it accepted connections, and its exit code.
        """
        # A separate session, so that Ctrl-C reaches only this process, which stops the workers.
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "synap_realtime.server.workers",
            stdin=PIPE, stdout=PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        assert process.stdout is not None  # noqa: S101
        self._processes[number] = process
        try:
            process.stdin.write(pickle.dumps(StartMessage(self._settings, number, self._port)))
            has_served = bool(await process.stdout.read(1))
            if has_served:
                self._on_ready(number, process.pid)
            return has_served, await process.wait()
        finally:
            self._ready.discard(number)
            await self._end(process)
            del self._processes[number]

    def _on_ready(self, number: int, pid: int) -> None:
        logger.info("worker %d ready, pid %d", number, pid)
        self._one_is_ready.set()
        self._ready.add(number)
        if len(self._ready) == self._settings.workers:
            logger.info("all %d workers ready", self._settings.workers)

    async def _end(self, process: Process) -> None:
        assert process.stdin is not None  # noqa: S101
        process.stdin.close()  # stops the worker, see _until_stopped
        try:
            async with asyncio.timeout(2 * self._settings.drain_timeout_s + EXIT_GRACE_S):
                await process.wait()
        except TimeoutError:
            logger.error("worker pid %d did not exit in time; killing", process.pid)
            process.kill()
            await process.wait()


def main() -> None:
    """Run one worker."""
    message: StartMessage = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the parent process
    supervisor = os.dup(1)
    os.dup2(2, 1)  # output of application code must not reach the supervisor

    def notify_ready() -> None:
        os.write(supervisor, b"+")
        os.close(supervisor)

    try:
        serve.run(
            message.settings,
            serve.WorkerProcess(message.number, message.port, notify_ready, _until_stopped),
        )
    except SynapRealtimeError as error:
        print(f"synap-realtime: {error}", file=sys.stderr)  # noqa: T201 - like the command
        raise SystemExit(2) from None


async def _until_stopped() -> None:
    """Wait until the supervisor closes stdin, or for SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    closed = asyncio.Event()
    loop.add_reader(0, closed.set)
    waiting = [loop.create_task(closed.wait()), loop.create_task(serve.until_stopped())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(0)
        for each in waiting:
            each.cancel()


if __name__ == "__main__":
    main()
