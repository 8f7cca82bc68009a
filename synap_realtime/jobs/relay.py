"""Relay reports from other processes of this machine to the process that runs the job.

A pool process does not publish. It sends a job's reports to the process that owns the job's
reporter. The owner numbers them, limits their rate, and drops them once the attempt has ended.

The two processes exchange lines over a Unix socket in a directory that only this user can read (a
loopback port on systems without Unix sockets). The peer names an extent by the hash of its key. The
owner responds with the key, which proves to the peer that it is the owner. Each further line is one
call as JSON, or ``flush``, to which the owner responds ``ok`` once all earlier calls were handled.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import hmac
import json
import logging
import os
import secrets
import shutil
import socket
import socketserver
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, SupportsFloat

from ..errors import InvalidArgumentError
from .arguments import check_delta, check_progress
from .extent import Extent, Ticket, shared_extents
from .notifications import MAX_TEXT

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
"""Seconds that a process waits for the owner to accept a report before it gives up."""

MAX_LINE = 256 * 1024
"""Maximum size of one call in bytes. A delta has at most 16 Ki characters of up to 12 bytes of
JSON.
"""

MAX_ADDRESS = 100
"""Maximum length of a Unix socket's path in bytes; Linux allows 108."""

FLUSH, DONE = b"flush\n", b"ok\n"

_FAMILY = getattr(socket, "AF_UNIX", socket.AF_INET)

_PREFIX = "synap-realtime-"

_STARTING_S = 60.0
"""Minimum age in seconds of a directory that is removed because its socket refuses connections."""


def _remove_abandoned(parent: Path) -> None:
    """Remove the directories that killed processes of this user have left.

    Children of pools and of prefork servers exit without running :mod:`atexit`, and would leave one
    directory each.
    """
    for directory in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            status = directory.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_mtime < _STARTING_S:
                continue
            with socket.socket(_FAMILY) as probe:
                probe.settimeout(TIMEOUT_S)
                try:
                    probe.connect(str(directory / "relay"))
                except ConnectionRefusedError:
                    shutil.rmtree(directory, ignore_errors=True)


def _name_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


class _Owner:
    """The relay of the process that runs jobs: one for all its extents, created with the first."""

    def __init__(self) -> None:
        self.extents: dict[str, Extent] = {}  # keyed by the hash of their key
        self._directory: str | None = None
        self._server = self._listen()
        self._server.daemon_threads = True
        threading.Thread(
            target=self._server.serve_forever, name="synap-realtime-relay", daemon=True
        ).start()

    def _listen(self) -> socketserver.ThreadingTCPServer:
        owner = self

        class Handler(_Handler):
            extents = owner.extents

        if _FAMILY != socket.AF_INET:
            for parent in (None, "/tmp"):  # noqa: S108 - TMPDIR may be too long for a socket's path
                _remove_abandoned(Path(parent or tempfile.gettempdir()))
                directory = tempfile.mkdtemp(prefix=_PREFIX, dir=parent)
                path = str(Path(directory) / "relay")
                if len(os.fsencode(path)) <= MAX_ADDRESS:
                    self._directory = directory
                    self.address: str | tuple[str, int] = path
                    return _UnixServer(path, Handler)  # type: ignore[arg-type]
                shutil.rmtree(directory, ignore_errors=True)
        server = _Server(("127.0.0.1", 0), Handler)
        self.address = ("127.0.0.1", server.server_address[1])
        return server

    def admit(self, extent: Extent) -> Ticket:
        ticket = Ticket(self.address, secrets.token_hex(16))
        name = _name_of(ticket.key)
        self.extents[name] = extent
        extent.on_close(lambda: self.extents.pop(name, None))
        return ticket

    def forget(self) -> None:
        """Close this forked child's copy of the socket; the parent keeps listening."""
        self._server.socket.close()

    def close(self) -> None:
        self._server.socket.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)


class _Server(socketserver.ThreadingTCPServer):
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        logger.debug("relay: connection of a pool process failed; closing it", exc_info=True)


class _UnixServer(_Server):
    address_family = _FAMILY
    server_address: Any

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)

    def get_request(self) -> tuple[socket.socket, Any]:
        request, _ = self.socket.accept()
        return request, ("", 0)


class _Handler(socketserver.StreamRequestHandler):
    extents: dict[str, Extent]

    def handle(self) -> None:
        self.request.settimeout(TIMEOUT_S)
        extent = self.extents.get(self.rfile.readline(128).decode("ascii", "replace").strip())
        if extent is None or extent.ticket is None:
            return  # unknown or closed
        self.wfile.write(f"{extent.ticket.key}\n".encode())
        self.request.settimeout(None)
        while (line := self.rfile.readline(MAX_LINE)).endswith(b"\n") and extent.is_live:
            if line == FLUSH:
                self.wfile.write(DONE)
            else:
                self._report(extent, json.loads(line))

    def _report(self, extent: Extent, call: dict[str, Any]) -> None:
        assert extent.sink is not None  # noqa: S101 - bind_reporter() binds no other extent
        with contextlib.suppress(InvalidArgumentError):  # the peer has validated the call
            if "delta" in call:
                extent.sink.delta(call["delta"], is_replay=extent.is_replay)
            else:
                extent.sink.progress(
                    call["fraction"],
                    call["label"],
                    stall_after_s=call["stallAfterS"],
                    is_replay=extent.is_replay,
                )


_owner: _Owner | None = None
_lock = threading.Lock()


def ticket_for(extent: Extent) -> Ticket | None:
    """Return a ticket with which other processes reach an extent of this process."""
    global _owner
    if extent.ticket is not None or not extent.is_live:
        return extent.ticket
    with _lock:
        if extent.ticket is None:
            try:
                _owner = _owner or _Owner()
            # No socket available, or no thread can start at exit.
            except (OSError, RuntimeError) as error:
                logger.warning(
                    "cannot listen for reports of pool processes: %s; ignoring their reports", error
                )
                return None
            extent.ticket = _owner.admit(extent)
    return extent.ticket


class RelayedReporter:
    """The reporter of a pool process. It connects on the first report."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket
        self._socket: socket.socket | None = None
        self._is_over = ticket.address in _unreachable
        self._lock = threading.RLock()

    def progress(
        self,
        fraction: SupportsFloat | None,
        label: str | None = None,
        *,
        stall_after_s: SupportsFloat | timedelta | None = None,
        is_replay: bool | None = None,  # noqa: ARG002 - the owner decides
    ) -> None:
        if (checked := check_progress(fraction, label, stall_after_s)) is not None:
            number, text, seconds = checked
            if text is not None:
                # Long enough for the owner to detect that it is too long.
                text = text[: MAX_TEXT + 1]
            self._send({"fraction": number, "label": text, "stallAfterS": seconds})

    def delta(self, text: str, *, is_replay: bool | None = None) -> None:  # noqa: ARG002
        for piece in check_delta(text):
            self._send({"delta": piece})

    def close(self) -> None:
        """Wait until the owner has handled all calls, so that the job's result cannot overtake
        them.
        """
        with self._lock:
            if self._socket is not None and not self._is_over:
                with self._giving_up():
                    self._socket.sendall(FLUSH)
                    self._receive(len(DONE))
            self._is_over = True
            if self._socket is not None:
                self._socket.close()

    def _send(self, call: dict[str, Any]) -> None:
        with self._lock:
            if self._is_over:
                return
            with self._giving_up():
                if self._socket is None:
                    self._socket = self._connect()
                self._socket.sendall(json.dumps(call).encode() + b"\n")

    def _connect(self) -> socket.socket:
        address = self._ticket.address
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        try:
            connection.settimeout(TIMEOUT_S)
            connection.connect(address)
            self._socket = connection
            connection.sendall(f"{_name_of(self._ticket.key)}\n".encode())
            proof = self._receive(len(self._ticket.key) + 1)
            if not hmac.compare_digest(proof, f"{self._ticket.key}\n".encode()):
                raise ConnectionError("another program listens on its address")
        except BaseException:
            connection.close()
            self._socket = None
            raise
        return connection

    def _receive(self, size: int) -> bytes:
        assert self._socket is not None  # noqa: S101 - the caller has connected
        received = b""
        while len(received) < size:
            if not (chunk := self._socket.recv(size - len(received))):
                raise EOFError("the job has ended")
            received += chunk
        return received

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Drop all reports after the first failure, so that a job waits at most once."""
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._is_over = True
            logger.debug("progress() or delta() called after the end of the job's attempt; ignored")
        except OSError as error:
            self._is_over = True
            if self._ticket.address not in _unreachable:
                _unreachable.add(self._ticket.address)
                logger.warning(
                    "the process that runs the job does not respond: %s; "
                    "ignoring progress() and delta() in this process",
                    error,
                )


_unreachable: set[str | tuple[str, int]] = set()
"""Addresses of owners that did not respond to this process."""


def _before_fork() -> None:
    # A forked child inherits bound functions instead of unpickling them.
    for extent in tuple(shared_extents):
        ticket_for(extent)


def _after_fork() -> None:
    global _owner, _lock
    _lock = threading.Lock()
    if _owner is not None:
        _owner.forget()
        _owner = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork)


@atexit.register
def _at_exit() -> None:
    if _owner is not None:  # never the parent's owner: _after_fork() clears it
        _owner.close()
