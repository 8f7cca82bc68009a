"""The load generator: a C program (``load.c``) on a core of its own, driven from here."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from .. import machine

SOURCE = Path(__file__).with_name("load.c")

Mode = Literal["closed", "paced", "rate"]

SPARE_S = 10.0
"""The program ends each command by itself; it is ended if it is so much later."""


class LoadError(Exception):
    """What was asked for did not happen: connections failed, or deliveries were too few or many."""


@dataclass(frozen=True, slots=True)
class Client:
    """One who listens.

    Attributes:
        request: its handshake.
        hello: texts that it says then, each after a text from the server.
    """

    request: bytes
    hello: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Publish:
    """One request, and how many deliveries it brings."""

    request: bytes
    deliveries: int


@dataclass(frozen=True, slots=True)
class Report:
    """What the load generator counted.

    Attributes:
        live: clients that are connected and subscribed.
        failed: dials that came to nothing; lost: clients that were live.
        delivered: notifications that came; expected: those that had to.
        answered: publishes; refused: those of them whose answer was no success.
        wall_s, cpu_s: how long it took, and what the load generator itself needed.
        first_live_ns, last_live_ns, last_delivered_ns: on CLOCK_MONOTONIC.
        p50_us, p99_us, max_us: from a publish until a client has read it.
    """

    live: int
    failed: int
    lost: int
    delivered: int
    expected: int
    answered: int
    refused: int
    wall_s: float
    cpu_s: float
    first_live_ns: int
    last_live_ns: int
    last_delivered_ns: int
    p50_us: int
    p99_us: int
    max_us: int


class Load:
    """One load generator: its clients stay until it is closed.

    Args:
        core: where it runs.
    """

    def __init__(self, core: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="synap-bench-load-")
        self._process = subprocess.Popen(
            [machine.compile_c(SOURCE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        os.sched_setaffinity(self._process.pid, {core})
        self.clients = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def dial(
        self,
        port: int,
        clients: Iterable[Client],
        *,
        live: str,
        in_flight: int = 100,
        expected: int = 0,
        timeout_s: float = 60.0,
    ) -> Report:
        """Connect more clients, and wait until all are live and ``expected`` notifications came.

        Args:
            live: what a text holds that says so; ``-``: the 101 does.
            in_flight: handshakes at the same time.

        Raises:
            LoadError: not all came.
        """
        records = [
            b"%d %d\n%b%b" % (len(one.request), len(hello), one.request, hello)
            for one in clients
            for hello in ["\n".join(one.hello).encode()]
        ]
        file = self._write("clients", records)
        self._tell(f"dial {port} {file} {len(records)} {in_flight} {expected} {timeout_s} {live}")
        report = self._answer()
        self.clients += len(records)
        if report.live != self.clients or report.delivered != expected:
            raise LoadError(
                f"{report.live} of {self.clients} clients are live, "
                f"{report.delivered} of {expected} notifications came"
            )
        return report

    def publish(
        self,
        port: int,
        requests: Iterable[Publish],
        count: int,
        *,
        mode: Mode,
        publishers: int = 1,
        rate: float = 0.0,
        timeout_s: float = 60.0,
    ) -> Report:
        """Send so many requests, in turn, and wait until all is answered and delivered.

        Raises:
            LoadError: an answer is no success, or the deliveries are not exactly those expected.
        """
        records = [
            b"%d %d\n%b" % (len(one.request), one.deliveries, one.request) for one in requests
        ]
        file = self._write("requests", records)
        self._tell(f"publish {port} {file} {count} {publishers} {mode} {rate} {timeout_s}")
        report = self._answer()
        if (
            report.answered != count
            or report.refused
            or report.lost
            or report.delivered != report.expected
        ):
            raise LoadError(
                f"{report.answered} of {count} publishes were answered, {report.refused} refused; "
                f"{report.delivered} of {report.expected} deliveries; "
                f"{report.lost} clients were lost"
            )
        return report

    def expect_restart(self, *, in_flight: int, timeout_s: float) -> None:
        """Dial anew as soon as the server dies; :meth:`restarted` waits for the end of that."""
        self._tell(f"redial {in_flight} {timeout_s}")

    def restarted(self) -> Report:
        """
        Raises:
            LoadError: not all came back.
        """
        report = self._answer()
        if report.live != self.clients:
            raise LoadError(f"{report.live} of {self.clients} clients came back")
        return report

    def say(self, text: str) -> None:
        """Each client says it."""
        self._tell(f"say {text}")
        self._answer()

    def hangup(self) -> None:
        """Close all clients."""
        self._tell("hangup")
        self._answer()
        self.clients = 0

    def _write(self, name: str, records: list[bytes]) -> Path:
        file = Path(self._folder.name) / name
        file.write_bytes(b"".join(records))
        return file

    def _tell(self, command: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise LoadError("the load generator has ended") from error

    def _answer(self) -> Report:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(f"the load generator has ended: {self._process.wait(SPARE_S)}")
        return Report(**json.loads(line))
