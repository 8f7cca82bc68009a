"""A connection of the asynchronous drivers: executes the steps that concern it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
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
    from websockets.asyncio.client import ClientConnection


class AsyncSocket:
    """The current connection of a driver, and its keepalive task."""

    def __init__(self, options: connect.Dialed) -> None:
        self._options = options
        self.token: str | None = None  # the one that was sent last
        self._ws: ClientConnection | None = None
        self._keepalive: Keepalive | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()

    async def execute(self, step: Step) -> StepResult:
        """Execute a step that concerns the connection, and return its result."""
        match step:
            case Connect(after):
                return await self._connect(after)
            case StartKeepalive(keepalive):
                self._keep_alive(keepalive)
            case Receive(timeout_s):
                return await self._receive(timeout_s)
            case Send(text):
                await self._send(text)
            case RenewToken():
                return await self._renew_token()
            case WakeKeepalive():
                self.wake.set()
            case Disconnect():
                await self.disconnect()
            case Sleep(delay_s):
                await asyncio.sleep(delay_s)
        return None

    async def _connect(self, after: str | None) -> str | Failure | None:
        open_websocket = connect.library("asyncio.client").connect
        token = await self._call_token()
        if isinstance(token, Failure):
            return token
        self.token = token
        arguments = connect.dial_arguments("asyncio.client", self._options, after, token)
        try:
            ws: ClientConnection = await open_websocket(**arguments)
        except connect.dial_errors() as error:
            return connect.read_dial_error(error)
        self._ws = ws
        return ws.subprotocol

    async def _renew_token(self) -> str | None:
        """Return a new token; None if the function has none."""
        if not callable(self._options.token):
            return None
        try:
            token = await self._call_token()
        except Exception as error:  # noqa: BLE001 - the next connect raises it again
            connect.log_failed_renewal(error)
            return None
        if not token or isinstance(token, Failure) or token == self.token:
            return None
        self.token = token
        return token

    async def _call_token(self) -> str | Failure | None:
        token = self._options.token
        if not callable(token):
            return token
        given = token()
        if inspect.isawaitable(given):
            try:
                async with asyncio.timeout(connect.OPEN_TIMEOUT_S) as limit:
                    given = await given
            except TimeoutError:
                if not limit.expired():
                    raise  # raised by the function itself
                return Failure("the token function timed out")
        return brought(given)

    def _keep_alive(self, keepalive: Keepalive) -> None:
        assert self._ws is not None  # noqa: S101 - the steps begin with Connect
        self._keepalive = keepalive
        self._keeper = asyncio.create_task(self._keep(self._ws, keepalive))

    async def _receive(self, timeout_s: float) -> StepResult:
        assert self._ws is not None  # noqa: S101 - the steps begin with Connect
        from websockets.exceptions import ConnectionClosed

        try:
            async with asyncio.timeout(timeout_s):
                return await self._ws.recv()
        except TimeoutError:
            return None
        except ConnectionClosed as error:
            return connect.read_closed(error)

    async def _send(self, text: str) -> None:
        assert self._ws is not None  # noqa: S101 - the steps begin with Connect
        await _send_all(self._ws, [text])

    async def disconnect(self) -> None:
        """Close the connection and its task; do nothing if there is none."""
        ws, keeper, keepalive = self._ws, self._keeper, self._keepalive
        self._ws = self._keeper = self._keepalive = None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait([keeper])
        if ws is None:
            return
        try:
            async with asyncio.timeout(connect.CLOSE_TIMEOUT_S):
                if keepalive is not None:
                    await _send_all(ws, keepalive.pending_ack())
                await ws.close()
        except TimeoutError:
            pass
        finally:
            ws.transport.abort()  # does nothing to a connection that was closed cleanly

    async def _keep(self, ws: ClientConnection, keepalive: Keepalive) -> None:
        while await _send_all(ws, keepalive.due()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(keepalive.next_wakeup_s()):
                    await self.wake.wait()
            self.wake.clear()


async def _send_all(ws: ClientConnection, texts: list[str]) -> bool:
    """Send messages; return False if the connection is closed, which the receiver reports."""
    from websockets.exceptions import ConnectionClosed

    try:
        for text in texts:
            await ws.send(text)
    except ConnectionClosed:
        return False
    return True
