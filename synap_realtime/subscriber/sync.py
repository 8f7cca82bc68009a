"""The synchronous driver: runs the subscription core in the caller's thread."""

from __future__ import annotations

import contextlib
import inspect
import random
import socket
import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING

from ..errors import InvalidArgumentError
from ..protocol.notification import Notification
from . import connect, core
from .keepalive import Keepalive
from .options import OnGap, OnStateChange, Options, brought, check
from .reconnect import Failure

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection


def subscribe_sync(
    room: str,
    url: str | None = None,
    token: str | Callable[[], str] | None = None,
    *,
    after: str | None = None,
    max_reconnects: int | None = 5,
    acknowledge: bool = True,
    on_gap: OnGap = None,
    on_state_change: OnStateChange = None,
) -> Generator[Notification, None, None]:
    """Synchronous variant of :func:`subscribe`: a plain iterator.

    ::

        with closing(subscribe_sync("user_42")) as notifications:
            for notification in notifications:
                print(notification.type, notification.data)

    The arguments and errors are those of :func:`subscribe`; callbacks must be plain functions.
    Threads keep the connection alive and end with it.
    """
    options = check(
        room,
        url,
        token,
        after=after,
        max_reconnects=max_reconnects,
        acknowledge=acknowledge,
        on_gap=on_gap,
        on_state_change=on_state_change,
    )
    for field, function in (
        ("token", token),
        ("on_gap", on_gap),
        ("on_state_change", on_state_change),
    ):
        if inspect.iscoroutinefunction(function):
            raise InvalidArgumentError(field, "expected a plain function; subscribe takes async")
    return _notifications(options)


def _notifications(options: Options) -> Generator[Notification, None, None]:
    steps = core.run(options, time.monotonic, random.random)
    answer: core.EffectResult = None
    line = _Connection(options)
    try:
        while True:
            step = steps.send(answer)
            answer = None
            match step:
                case core.Deliver(notification):
                    yield notification
                case core.Connect(after):
                    answer = line.connect(after)
                case core.StartKeepalive(keepalive):
                    line.keep(keepalive)
                case core.Receive(timeout_s):
                    answer = line.receive(timeout_s)
                case core.WakeKeepalive():
                    line.wake.set()
                case core.Disconnect():
                    line.disconnect()
                case core.Sleep(delay_s):
                    time.sleep(delay_s)
                case core.Notify(function, value) if function is not None:
                    function(value)
    finally:
        line.disconnect()


class _Connection:
    """The current connection and its keepalive thread."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._stack = contextlib.ExitStack()
        self._ws: ClientConnection | None = None
        self._keepalive: Keepalive | None = None
        self._keeper: threading.Thread | None = None
        self.wake = threading.Event()

    def connect(self, after: str | None) -> str | Failure | None:
        open_websocket = connect.library("sync.client").connect
        token = self._options.token
        given = brought(token()) if callable(token) else token
        arguments = connect.dial_arguments("sync.client", self._options, after, given)
        try:
            connect.dial_socket(arguments, self._options)
            ws: ClientConnection = self._stack.enter_context(open_websocket(**arguments))
        except connect.dial_errors() as error:
            return connect.read_dial_error(error)
        self._ws = ws
        return ws.subprotocol

    def keep(self, keepalive: Keepalive) -> None:
        assert self._ws is not None  # noqa: S101 - the core connects first
        self._keepalive = keepalive
        self._keeper = threading.Thread(
            target=self._keep, args=(self._ws, keepalive), name="synap-keepalive", daemon=True
        )
        self._keeper.start()

    def receive(self, timeout_s: float) -> core.EffectResult:
        assert self._ws is not None  # noqa: S101 - the core connects first
        from websockets.exceptions import ConnectionClosed

        try:
            return self._ws.recv(timeout=timeout_s)
        except TimeoutError:
            return None
        except ConnectionClosed as error:
            return connect.read_closed(error)

    def disconnect(self) -> None:
        """Close the connection and its threads; do nothing if there is none."""
        ws, keeper, keepalive = self._ws, self._keeper, self._keepalive
        self._ws = self._keeper = self._keepalive = None
        if ws is None:
            return
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
