"""The relay between a job's process and its child processes, and the children without it."""

from __future__ import annotations

import contextvars
import hashlib
import json
import logging
import os
import pickle
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from synap_realtime import bind_reporter, progress
from synap_realtime.jobs import JobType, Recipient, Reporter, RunNotifications, report_run
from synap_realtime.jobs.extent import Extent, Ticket, entered, extent_of
from synap_realtime.jobs.relay import RelayedReporter
from synap_realtime.testing import RealtimeRecorder
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.waits import SetWaits

REPORT = JobType("report.creation")


@pytest.fixture
def ticket(realtime: RealtimeRecorder) -> Iterator[Ticket]:
    """Of a run that goes on."""
    lifecycle = RunNotifications(REPORT, "run1")
    reporter = Reporter(lifecycle, [Recipient("a")], realtime.broadcaster())
    with report_run(reporter):
        yield ticket_of(bind_reporter(progress))


def ticket_of(bound: Any) -> Ticket:
    _, (_, ticket) = bound.__reduce__()
    assert isinstance(ticket, Ticket)
    return ticket


def connect(ticket: Ticket) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(5)
    connection.connect(str(ticket.address))
    return connection


def hello(ticket: Ticket) -> bytes:
    return f"{hashlib.sha256(ticket.key.encode()).hexdigest()}\n".encode()


CALL = json.dumps({"fraction": 0.5, "label": "forged", "stallAfterS": None}).encode() + b"\n"


@pytest.mark.parametrize("first", ["key", "0" * 64, "", "GET / HTTP/1.1", "x" * 1000])
def test_relay_accepts_only_the_key_of_a_live_run(
    ticket: Ticket, realtime: RealtimeRecorder, first: str
) -> None:
    with connect(ticket) as connection:
        connection.sendall(f"{ticket.key if first == 'key' else first}\n".encode())
        try:
            connection.sendall(CALL + b"flush\n")
            answer = connection.recv(100)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert answer == b""
    assert realtime.types() == [REPORT.started]


@pytest.mark.parametrize("line", [b"[]\n", b"not JSON\n", b"x" * 1_000_000, b"{}\n", b"\xff\n"])
def test_relay_closes_a_connection_that_violates_the_protocol(
    ticket: Ticket, realtime: RealtimeRecorder, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with connect(ticket) as connection:
        connection.sendall(hello(ticket))
        assert connection.recv(100).decode() == f"{ticket.key}\n"
        try:
            connection.sendall(line)
            assert connection.recv(100) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass
    other = RelayedReporter(ticket)
    other.progress(0.5, "good")
    other.close()
    assert [each.data["label"] for each in realtime.sent(REPORT.progress)] == ["good"]
    assert caplog.text == "", "a process may repeat it without end"


def test_relay_closes_an_idle_connection(ticket: Ticket, set_waits: SetWaits) -> None:
    """Each holds a thread."""
    set_waits(relay_timeout_s=0.05)
    with connect(ticket) as connection:
        assert connection.recv(100) == b""


def test_reports_go_to_no_program_that_does_not_know_the_key(tmp_path: Path) -> None:
    """Another may listen at the address of an owner that has gone."""
    ticket = Ticket(str(tmp_path / "relay"), "k" * 32)
    received: list[bytes] = []

    def impersonate() -> None:
        connection, _ = other.accept()
        with connection:
            received.append(connection.recv(1000))
            connection.sendall(b"x" * len(ticket.key) + b"\n")
            received.append(connection.recv(1000))

    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(ticket.address))
        other.listen()
        thread = threading.Thread(target=impersonate)
        thread.start()
        reporter = RelayedReporter(ticket)
        reporter.progress(0.5, "secret")
        reporter.close()
        thread.join()
    assert received == [hello(ticket), b""]


def test_relay_socket_is_private_to_its_user(ticket: Ticket) -> None:
    mode = Path(str(ticket.address)).parent.stat().st_mode
    assert stat.S_IMODE(mode) == 0o700


def test_after_the_attempt_the_key_opens_nothing(realtime: RealtimeRecorder) -> None:
    reporter = Reporter(RunNotifications(REPORT, "run1"), [Recipient("a")], realtime.broadcaster())
    with report_run(reporter):
        ticket = ticket_of(bind_reporter(progress))
        connected = RelayedReporter(ticket)
        connected.progress(0.1, "inside")
    with connect(ticket) as connection:
        connection.sendall(hello(ticket))
        assert connection.recv(100) == b"", "it is forgotten, not only refused"
    late = RelayedReporter(ticket)
    for each in (late, connected):
        each.progress(0.5, "late")
        each.close()
    assert "late" not in str(realtime.sent())


def test_the_key_of_a_part_of_the_attempt_opens_nothing_after_the_attempt(
    realtime: RealtimeRecorder,
) -> None:
    reporter = Reporter(RunNotifications(REPORT, "run1"), [Recipient("a")], realtime.broadcaster())
    with extent_of(reporter) as whole, entered(Extent(reporter, within=whole)):
        ticket = ticket_of(bind_reporter(progress))
        connected = RelayedReporter(ticket)
        connected.progress(0.1, "inside")
    connected.progress(0.5, "late")
    connected.close()
    with connect(ticket) as connection:
        connection.sendall(hello(ticket))
        assert connection.recv(100) == b""
    assert "late" not in str(realtime.sent())


def test_closed_extent_is_released_later() -> None:
    """It may close while another thread makes it known to the relay."""
    released: list[str] = []
    with extent_of(None) as extent:
        inner = Extent(None, within=extent)
    for each in (extent, inner):
        each.on_close(lambda: released.append("released"))
    assert released == ["released", "released"]


def test_two_runs_have_two_keys(realtime: RealtimeRecorder) -> None:
    tickets = []
    for _ in range(2):
        reporter = Reporter(
            RunNotifications(REPORT, "run1"), [Recipient("a")], realtime.broadcaster()
        )
        with report_run(reporter):
            tickets.append(ticket_of(bind_reporter(progress)))
    assert tickets[0].address == tickets[1].address
    assert tickets[0].key != tickets[1].key


@pytest.mark.parametrize("is_listening", [True, False])
def test_process_continues_when_its_owner_does_not_respond(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_listening: bool
) -> None:
    """Stopped, or gone and its socket left behind: one short wait and one line in the log."""
    with socket.socket(socket.AF_UNIX) as deaf, caplog.at_level(logging.WARNING):
        deaf.bind(str(tmp_path / "relay"))
        if is_listening:
            deaf.listen()
        ticket = Ticket(str(tmp_path / "relay"), "key")
        begin = time.monotonic()
        for _ in range(5):
            reporter = RelayedReporter(ticket)
            with extent_of(reporter):
                for n in range(100):
                    progress(n / 100)
            reporter.close()
        assert time.monotonic() - begin < scaled(4)
    assert caplog.text.count("does not respond") == 1


def test_function_runs_when_no_socket_can_be_opened(
    realtime: RealtimeRecorder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_socket() -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr("synap_realtime.jobs.relay._owner", None)
    monkeypatch.setattr("synap_realtime.jobs.relay._Owner", no_socket)
    reporter = Reporter(RunNotifications(REPORT, "run1"), [Recipient("a")], realtime.broadcaster())
    with caplog.at_level(logging.WARNING), report_run(reporter):
        taken = pickle.loads(pickle.dumps(bind_reporter(label)))  # noqa: S301
        assert contextvars.Context().run(taken, "x") == "x"
    assert "read-only file system" in caplog.text
    assert realtime.types() == [REPORT.started]


def label(text: str) -> str:
    progress(0.5, text)
    return text


def test_a_label_of_any_length_reaches_the_owner(
    ticket: Ticket, realtime: RealtimeRecorder
) -> None:
    """What comes after it does, too."""
    reporter = RelayedReporter(ticket)
    reporter.progress(0.1, "x" * 1_000_000)
    reporter.delta("after")
    reporter.close()
    (notification,) = realtime.sent(REPORT.progress)
    assert notification.data["label"].endswith("x…")
    assert [each.data["delta"] for each in realtime.sent(REPORT.delta)] == ["after"]


def test_an_owner_removes_the_directories_of_killed_ones(
    realtime: RealtimeRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The children of a prefork server end by ``os._exit()``."""
    monkeypatch.setattr("synap_realtime.jobs.relay._owner", None)
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp())
    parent = Path(tempfile.gettempdir())
    kept = [parent / f"synap-realtime-{name}" for name in ("starting", "live", "other")]
    for directory in (killed := parent / "synap-realtime-killed", *kept):
        directory.mkdir()
    with socket.socket(socket.AF_UNIX) as live:
        for directory in (killed, kept[0]):
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(directory / "relay"))
        live.bind(str(kept[1] / "relay"))
        live.listen()
        for directory in (killed, *kept[1:]):
            os.utime(directory, (0, 0))
        reporter = Reporter(
            RunNotifications(REPORT, "run1"), [Recipient("a")], realtime.broadcaster()
        )
        with report_run(reporter):
            own = Path(str(ticket_of(bind_reporter(progress)).address)).parent
        assert set(parent.iterdir()) == {own, *kept}
    shutil.rmtree(parent)


def test_an_owner_leaves_the_directories_of_other_users(
    realtime: RealtimeRecorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Root could remove them."""
    monkeypatch.setattr("synap_realtime.jobs.relay._owner", None)
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp())
    others = Path(tempfile.gettempdir()) / "synap-realtime-others"
    others.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(others / "relay"))
    os.utime(others, (0, 0))
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    reporter = Reporter(RunNotifications(REPORT, "run1"), [Recipient("a")], realtime.broadcaster())
    with report_run(reporter):
        ticket_of(bind_reporter(progress))
    assert others.exists()
    shutil.rmtree(others.parent)


def test_a_long_tmpdir_does_not_keep_the_relay_from_listening(
    realtime: RealtimeRecorder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The path of a Unix socket has at most 108 bytes."""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("synap_realtime.jobs.relay._owner", None)
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    reporter = Reporter(RunNotifications(REPORT, "run1"), [Recipient("a")], realtime.broadcaster())
    with report_run(reporter):
        taken = RelayedReporter(ticket_of(bind_reporter(progress)))
        taken.progress(0.5, "inside")
        taken.close()
    assert [each.data["label"] for each in realtime.sent(REPORT.progress)] == ["inside"]
    assert not list(long.iterdir())


FORK_DURING_A_TICKET = """
import os, signal, threading
from synap_realtime.jobs import relay
from synap_realtime.jobs.extent import extent_of

held, release = threading.Event(), threading.Event()

def hold():
    with relay._lock:
        held.set()
        release.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
if (child := os.fork()) == 0:
    signal.alarm(int({timeout_s}))
    with extent_of(None) as extent:
        os._exit(0 if relay.ticket_for(extent) is not None else 1)
release.set()
thread.join()
print(os.waitpid(child, 0)[1])
"""


def test_child_forked_while_another_thread_gets_a_ticket_can_get_one() -> None:
    """A lock that is held during a fork is held forever in the child."""
    code = FORK_DURING_A_TICKET.format(timeout_s=TIMEOUT_S / 3)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True,
        timeout=TIMEOUT_S,
    )  # fmt: skip
    assert done.stdout == "0\n"
