"""The asynchronous driver: runs the subscription core on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import time
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from ..event_loops import running_loop
from ..protocol.notification import Notification
from . import connect, core
from .keepalive import Keepalive
from .options import OnGap, OnStateChange, Options, Token, brought, check
from .reconnect import Failure

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection


def subscribe(
    room: str,
    url: str | None = None,
    token: Token = None,
    *,
    after: str | None = None,
    max_reconnects: int | None = 5,
    acknowledge: bool = True,
    on_gap: OnGap = None,
    on_state_change: OnStateChange = None,
) -> AsyncGenerator[Notification, None]:
    """Subscribe to a room. Yields each notification once, in order, across reconnects.

    ::

        async with aclosing(subscribe("user_42")) as notifications:
            async for notification in notifications:
                print(notification.type, notification.data)

    Leaving the ``async with`` closes the connection. A notification is acknowledged when the next
    one is requested. After a ``break`` or an error in the loop body, the next subscription without
    a cursor receives the notification again, so each is delivered at least once. A slow consumer
    loses nothing: the connection is kept alive while the consumer is busy, and resumed if the
    server closes it.

    Args:
        room: ``user_42``, ``request_7f3a``, ``workspace_7``.
        url: the room server, ``http(s)://`` or ``ws(s)://``. Default: ``REALTIME_URL``, then
            ``http://127.0.0.1:8787``.
        token: sent as a bearer token. A function (which may be ``async``) is called at each
            connect; an exception that it raises ends the subscription. If it takes over 10 s, the
            connect has failed.
        after: where to start: a cursor, ``earliest`` or ``latest``. Default: in a user's room the
            acknowledged cursor, in a request's room the beginning.
        max_reconnects: maximum number of consecutive reconnects, after about 1, 2, 4, 8, 16, 16, …
            s; None for no limit.
        acknowledge: advance the room's acknowledged cursor (servers with ``synap.v1``).
        on_gap: called with the room when notifications were missed that are no longer retained. The
            retained ones have been delivered before.
        on_state_change: called with a :class:`SubscriptionState` at each connect and disconnect,
            while the consumer waits for the next notification. Both callbacks may be ``async``; an
            exception that they raise ends the subscription.

    Raises:
        InvalidArgumentError: at the call: an argument is invalid; names it.
        ConfigurationError: at the call, for the URL; from the iteration, if ``websockets`` is not
            installed or no asyncio event loop is running.
        SubscriptionError: from the iteration: the server rejected the subscription permanently, or
            ``max_reconnects`` is exhausted.

    See PROTOCOL.md, "Subscribing" and "Clients".
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
    return _notifications(options)


async def _notifications(options: Options) -> AsyncGenerator[Notification, None]:
    running_loop("subscribe()", "iterate subscribe_sync() in a thread")
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
                    answer = await line.connect(after)
                case core.StartKeepalive(keepalive):
                    line.keep(keepalive)
                case core.Receive(timeout_s):
                    answer = await line.receive(timeout_s)
                case core.WakeKeepalive():
                    line.wake.set()
                case core.Disconnect():
                    await line.disconnect()
                case core.Sleep(delay_s):
                    await asyncio.sleep(delay_s)
                case core.Notify(function, value) if function is not None:
                    returned = function(value)
                    if inspect.isawaitable(returned):
                        await returned
    finally:
        await line.disconnect()


class _Connection:
    """The current connection and its keepalive task."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._ws: ClientConnection | None = None
        self._keepalive: Keepalive | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()

    async def connect(self, after: str | None) -> str | Failure | None:
        open_websocket = connect.library("asyncio.client").connect
        token = self._options.token
        if callable(token):
            given = token()
            if inspect.isawaitable(given):
                try:
                    async with asyncio.timeout(connect.OPEN_TIMEOUT_S) as limit:
                        given = await given
                except TimeoutError:
                    if not limit.expired():
                        raise  # raised by the function itself
                    return Failure("the token function timed out")
            token = brought(given)
        arguments = connect.dial_arguments("asyncio.client", self._options, after, token)
        try:
            ws: ClientConnection = await open_websocket(**arguments)
        except connect.dial_errors() as error:
            return connect.read_dial_error(error)
        self._ws = ws
        return ws.subprotocol

    def keep(self, keepalive: Keepalive) -> None:
        assert self._ws is not None  # noqa: S101 - the core connects first
        self._keepalive = keepalive
        self._keeper = asyncio.create_task(self._keep(self._ws, keepalive))

    async def receive(self, timeout_s: float) -> core.EffectResult:
        assert self._ws is not None  # noqa: S101 - the core connects first
        from websockets.exceptions import ConnectionClosed

        try:
            async with asyncio.timeout(timeout_s):
                return await self._ws.recv()
        except TimeoutError:
            return None
        except ConnectionClosed as error:
            return connect.read_closed(error)

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
