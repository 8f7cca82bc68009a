"""A connection of the synchronous drivers: executes the steps that concern it."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from . import connect
from .keepalive import Keepalive
from .options import brought
from .reconnect import Failure
from .steps import (
    Connect,
    Disconnect,
    Receive,
    RenewToken,
    Send,
    Sleep,
    StartKeepalive,
    Step,
    StepResult,
    WakeKeepalive,
)

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


class SyncSocket:
    """The current connection of a driver, and its keepalive thread.

    Attributes:
        token: the one that was sent last.
        wake: wakes the keepalive.
        is_over: whether :meth:`close` was called.
    """

    def __init__(self, options: connect.Dialed) -> None:
        self._options = options
        self.token: str | None = None
        self._stack = contextlib.ExitStack()
        self._ws: ClientConnection | None = None
        self._keepalive: Keepalive | None = None
        self._keeper: threading.Thread | None = None
        self._closing = threading.Lock()
        self.wake = threading.Event()
        self.is_over = threading.Event()

    def execute(self, step: Step) -> StepResult:
        """Execute a step that concerns the connection, and return its result."""
        match step:
            case Connect(after):
                return self._connect(after)
            case StartKeepalive(keepalive):
                self._keep_alive(keepalive)
            case Receive(timeout_s):
                return self._receive(timeout_s)
            case Send(text):
                self._send(text)
            case RenewToken():
                return self._renew_token()
            case WakeKeepalive():
                self.wake.set()
            case Disconnect():
                self.disconnect()
            case Sleep(delay_s):
                self.is_over.wait(delay_s)
        return None

    def _connect(self, after: str | None) -> str | Failure | None:
        open_websocket = connect.library("sync.client").connect
        self.token = token = self._call_token()
        arguments = connect.dial_arguments("sync.client", self._options, after, token)
        try:
            connect.dial_socket(arguments, self._options)
            ws: ClientConnection = self._stack.enter_context(open_websocket(**arguments))
        except connect.dial_errors() as error:
            return connect.read_dial_error(error)
        self._ws = ws
        return ws.subprotocol

    def _renew_token(self) -> str | None:
        """Return a new token; None if the function has none."""
        if not callable(self._options.token):
            return None
        try:
            token = self._call_token()
        except Exception as error:  # noqa: BLE001 - the next connect raises it again
            connect.log_failed_renewal(error)
            return None
        if not token or token == self.token:
            return None
        self.token = token
        return token

    def _call_token(self) -> str | None:
        token = self._options.token
        return brought(token()) if callable(token) else token

    def _keep_alive(self, keepalive: Keepalive) -> None:
        with self._closing:
            if self._ws is None:  # disconnected by another thread
                return
            self._keepalive = keepalive
            self._keeper = threading.Thread(
                target=self._keep, args=(self._ws, keepalive), name="synap-keepalive", daemon=True
            )
            self._keeper.start()

    def _receive(self, timeout_s: float) -> StepResult:
        from websockets.exceptions import ConnectionClosed

        if (ws := self._ws) is None:
            return Failure("disconnected by another thread")
        try:
            return ws.recv(timeout=timeout_s)
        except TimeoutError:
            return None
        except ConnectionClosed as error:
            return connect.read_closed(error)

    def _send(self, text: str) -> None:
        if (ws := self._ws) is not None:  # it may have been disconnected by another thread
            _send_all(ws, [text])

    def close(self) -> bool:
        """Let the thread that executes steps end soon, which another thread may request.

        Return False if there is no connection.
        """
        self.is_over.set()
        return self.disconnect()

    def disconnect(self) -> bool:
        """Close the connection and its threads. Return False if there is none."""
        with self._closing:
            ws, keeper, keepalive = self._ws, self._keeper, self._keepalive
            self._ws = self._keeper = self._keepalive = None
        if ws is None:
            return False
        self.wake.set()
        if keeper is not None:
            keeper.join(connect.CLOSE_TIMEOUT_S)
            if keeper.is_alive():  # it is blocked in a send to a peer that does not read
                with contextlib.suppress(OSError):
                    ws.socket.shutdown(socket.SHUT_RDWR)
                keeper.join()
        if keepalive is not None:
            _send_all(ws, keepalive.pending_ack())
        self._stack.close()
        return True

    def _keep(self, ws: ClientConnection, keepalive: Keepalive) -> None:
        while self._ws is ws and _send_all(ws, keepalive.due()):
            self.wake.wait(keepalive.next_wakeup_s())
            self.wake.clear()


def _send_all(ws: ClientConnection, texts: list[str]) -> bool:
    """Send messages; return False if the connection is closed, which the receiver reports."""
    from websockets.exceptions import ConnectionClosed

    try:
        for text in texts:
            ws.send(text)
    except ConnectionClosed:
        return False
    return True
