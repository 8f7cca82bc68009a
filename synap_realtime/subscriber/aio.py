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
from ..protocol.rooms import Room
from . import connect, core, rooms
from .keepalive import Keepalive
from .options import (
    After,
    OnGap,
    OnStateChange,
    Options,
    RoomsOptions,
    Token,
    brought,
    check_any,
)
from .reconnect import Failure

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection


def subscribe(
    room: str | list[str] | tuple[str, ...],
    url: str | None = None,
    token: Token = None,
    *,
    after: After = None,
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
        room: ``user_42``, ``request_7f3a``, ``workspace_7``. Or up to 128 of them, which share one
            connection; a notification names its ``room``. If the server has no such connections,
            each room has its own.
        url: the room server, ``http(s)://`` or ``ws(s)://``. Default: ``REALTIME_URL``, then
            ``http://127.0.0.1:8787``.
        token: sent as a bearer token. A function (which may be ``async``) is called at each
            connect; an exception that it raises ends the subscription. If it takes over 10 s, the
            connect has failed.
        after: where to start: a cursor, ``earliest`` or ``latest``; for several rooms, a mapping
            from rooms to positions. Default: in a user's room the acknowledged cursor, in a
            request's room the beginning.
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
    options = check_any(
        room,
        url,
        token,
        after=after,
        max_reconnects=max_reconnects,
        acknowledge=acknowledge,
        on_gap=on_gap,
        on_state_change=on_state_change,
    )
    if isinstance(options, RoomsOptions):
        return _notifications_of_rooms(options)
    return _notifications(options)


async def _notifications_of_rooms(options: RoomsOptions) -> AsyncGenerator[Notification, None]:
    try:
        steps = rooms.run(options, time.monotonic, random.random)
        async with contextlib.aclosing(_run(options, steps)) as notifications:
            async for notification in notifications:
                yield notification
    except rooms.OneRoomOnlyError as error:
        options = options.starting_at(error.positions)
    else:
        return
    async with contextlib.aclosing(_merged(options)) as notifications:
        async for notification in notifications:
            yield notification


async def _merged(options: RoomsOptions) -> AsyncGenerator[Notification, None]:
    """Subscribe to each room by a connection of its own."""
    queue: asyncio.Queue[tuple[Notification, asyncio.Event]] = asyncio.Queue()

    async def follow(room: Room) -> None:
        async with contextlib.aclosing(_notifications(options.of(room))) as notifications:
            async for notification in notifications:
                is_processed = asyncio.Event()
                queue.put_nowait((notification, is_processed))
                await is_processed.wait()

    following = [asyncio.ensure_future(follow(room)) for room in options.rooms]
    try:
        while True:
            coming = asyncio.ensure_future(queue.get())
            try:
                await asyncio.wait([coming, *following], return_when=asyncio.FIRST_COMPLETED)
            finally:
                coming.cancel()
            if coming.done() and not coming.cancelled():
                notification, is_processed = coming.result()
                yield notification
                is_processed.set()
            for task in following:
                if task.done():
                    task.result()  # it ends with an error only
    finally:
        for task in following:
            task.cancel()
        await asyncio.wait(following)


def _notifications(options: Options) -> AsyncGenerator[Notification, None]:
    return _run(options, core.run(options, time.monotonic, random.random))


async def _run(
    options: Options | RoomsOptions, steps: core.Steps
) -> AsyncGenerator[Notification, None]:
    running_loop("subscribe()", "iterate subscribe_sync() in a thread")
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
                case core.Send(text):
                    await line.send(text)
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

    def __init__(self, options: Options | RoomsOptions) -> None:
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

    async def send(self, text: str) -> None:
        assert self._ws is not None  # noqa: S101 - the core connects first
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
