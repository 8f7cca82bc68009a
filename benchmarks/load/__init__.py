"""Control the load generator: a C program (``load.c``) on a separate core."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from .. import machine

SOURCE = Path(__file__).with_name("load.c")

Mode = Literal["closed", "cold", "paced", "rate"]

SPARE_S = 10.0
"""Extra seconds after a command's own timeout before the program is killed."""


class LoadError(Exception):
    """A command failed: connections failed, or there were too few or too many deliveries."""


@dataclass(frozen=True, slots=True)
class Client:
    """A subscriber.

    Attributes:
        request: its handshake.
        hello: texts that it sends after the handshake, each after a text from the server; one that
            follows an empty text is sent right after the handshake.
    """

    request: bytes
    hello: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Publish:
    """A publish request.

    Attributes:
        deliveries: how many it causes.
        first_bytes: of the request, in a write of their own; 0: one write for all.
    """

    request: bytes
    deliveries: int
    first_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """The counters of the load generator.

    Attributes:
        live: connected and subscribed clients.
        failed: failed connects; lost: clients that were live.
        delivered: received notifications; expected: those required.
        answered: publishes; refused: those with an error response.
        wall_s, cpu_s: duration, and CPU time of the load generator itself.
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
    """One load generator; its clients stay connected until it is closed.

    Args:
        core: the core that it is pinned to.
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
        """Connect more clients; wait until all are live and have received ``expected``
        notifications.

        Args:
            live: a substring of the text that confirms the subscription; ``-``: the 101 response
                does.
            in_flight: concurrent handshakes.

        Raises:
            LoadError: not all were connected or delivered.
        """
        records = [
            b"%d %d\n%b%b" % (len(one.request), len(hello), one.request, hello)
            for one in clients
            for hello in ["\x1e".join(one.hello).encode()]
        ]
        file = self._write("clients", records)
        self._send(f"dial {port} {file} {len(records)} {in_flight} {expected} {timeout_s} {live}")
        report = self._answer()
        self.clients += len(records)
        if report.live != self.clients or report.delivered != expected:
            raise LoadError(
                f"{report.live} of {self.clients} clients are live, "
                f"{report.delivered} of {expected} notifications received"
            )
        return report

    def publish(
        self,
        port: int | Sequence[int],
        requests: Iterable[Publish],
        count: int,
        *,
        mode: Mode,
        publishers: int = 1,
        rate: float = 0.0,
        timeout_s: float = 30.0,
        may_exceed: bool = False,
    ) -> Report:
        """Send this number of requests, and wait for all responses and deliveries.

        Publishers take turns, and cycle through the list. For exactly as many of each, let the
        publishers be as many as divide the list's length, or one.

        Args:
            port: several, to distribute the publishers over them.
            may_exceed: more deliveries than those of the requests are no error: the server joins
                what it delivers, as many as it chooses.

        Raises:
            LoadError: a response is an error, or the number of deliveries is wrong.
        """
        records = [
            b"%d %d %d\n%b" % (len(one.request), one.first_bytes, one.deliveries, one.request)
            for one in requests
        ]
        file = self._write("requests", records)
        self._send(f"publish {_ports(port)} {file} {count} {publishers} {mode} {rate} {timeout_s}")
        report = self._answer()
        if (
            report.answered != count
            or report.refused
            or report.lost
            or report.delivered < report.expected
            or (report.delivered > report.expected and not may_exceed)
        ):
            raise LoadError(
                f"{report.answered} of {count} publishes were answered, {report.refused} refused; "
                f"{report.delivered} of {report.expected} deliveries; "
                f"{report.lost} clients were lost"
            )
        return report

    def expect_restart(
        self, *, in_flight: int, timeout_s: float, expected: int = 0, ports: Sequence[int] = ()
    ) -> None:
        """Reconnect when the server dies; :meth:`restarted` waits for the result.

        Args:
            expected: how many notifications the clients receive afterwards.
            ports: where they reconnect, if not where they were.
        """
        self._send(f"redial {in_flight} {expected} {timeout_s} {_ports(ports) or '-'}")

    def restarted(self) -> Report:
        """Wait until all clients have reconnected.

        Raises:
            LoadError: not all have reconnected, or received what was expected.
        """
        report = self._answer()
        if report.live != self.clients or report.delivered != report.expected:
            raise LoadError(
                f"{report.live} of {self.clients} clients reconnected, "
                f"{report.delivered} of {report.expected} notifications received"
            )
        return report

    def acknowledge(self) -> None:
        """Acknowledge on each client what it has received since the last time.

        The first call acknowledges nothing: cursors are kept from then on.
        """
        self._send("ack")
        self._answer()

    def use_tls(self) -> None:
        """Speak TLS from now on."""
        self._send("tls")
        self._answer()

    def hangup(self) -> None:
        """Close all clients."""
        self._send("hangup")
        self._answer()
        self.clients = 0

    def _write(self, name: str, records: list[bytes]) -> Path:
        file = Path(self._folder.name) / name
        file.write_bytes(b"".join(records))
        return file

    def _send(self, command: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise LoadError("the load generator has exited") from error

    def _answer(self) -> Report:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(f"the load generator has exited: {self._process.wait(SPARE_S)}")
        return Report(**json.loads(line))


def _ports(port: int | Sequence[int]) -> str:
    return str(port) if isinstance(port, int) else ",".join(map(str, port))
