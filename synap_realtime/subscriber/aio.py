"""The asynchronous driver: runs the subscription core on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import time
from collections.abc import AsyncGenerator

from ..event_loops import running_loop
from ..protocol.notification import Notification
from ..protocol.rooms import Room
from . import aio_pool, core, rooms
from .aio_connection import AsyncSocket
from .options import (
    After,
    OnGap,
    OnStateChange,
    Options,
    RoomsOptions,
    Token,
    check_any,
)
from .rooms import OneRoomOnlyError


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

    Leaving the ``async with`` ends the subscription. Subscriptions on one event loop with the same
    ``url`` and ``token`` share a connection, if the server has such ones. A notification is
    acknowledged when the next one is requested. After a ``break`` or an error in the loop body, the
    next subscription without a cursor receives the notification again, so each is delivered at
    least once. A slow consumer loses nothing, and delays no other subscription: the connection is
    kept alive while the consumer is busy, and resumed if the server closes it.

    Args:
        room: ``user_42``, ``request_7f3a``, ``workspace_7``. Or up to 128 of them, which share one
            connection; a notification names its ``room``. If the server has no such connections,
            each room has its own.
        url: the room server, ``http(s)://`` or ``ws(s)://``. Default: ``REALTIME_URL``, then
            ``http://127.0.0.1:8787``.
        token: sent as a bearer token. A function (which may be ``async``) is called at each
            connect, and before the token expires; an exception that it raises at a connect ends the
            subscription. If it takes over 10 s, the
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
    return _notifications_of_room(options)


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


async def _notifications_of_room(options: Options) -> AsyncGenerator[Notification, None]:
    """Subscribe to one room, over a connection that is shared if the server has such ones."""
    running_loop("subscribe()", "iterate subscribe_sync() in a thread")
    try:
        async with contextlib.aclosing(aio_pool.notifications(options)) as notifications:
            async for notification in notifications:
                yield notification
    except OneRoomOnlyError as error:
        options = options.continuing(error.positions[options.room], error.token)
    else:
        return
    async with contextlib.aclosing(_notifications(options)) as notifications:
        async for notification in notifications:
            yield notification


def _notifications(options: Options) -> AsyncGenerator[Notification, None]:
    return _run(options, core.run(options, time.monotonic, random.random))


async def _run(
    options: Options | RoomsOptions, steps: core.Steps
) -> AsyncGenerator[Notification, None]:
    running_loop("subscribe()", "iterate subscribe_sync() in a thread")
    answer: core.EffectResult = None
    sock = AsyncSocket(options)
    try:
        while True:
            step = steps.send(answer)
            answer = None
            match step:
                case core.Deliver(notification):
                    yield notification
                case core.Connect(after):
                    answer = await sock.connect(after)
                case core.StartKeepalive(keepalive):
                    sock.keep(keepalive)
                case core.Receive(timeout_s):
                    answer = await sock.receive(timeout_s)
                case core.Send(text):
                    await sock.send(text)
                case core.RenewToken():
                    answer = await sock.renew_token()
                case core.WakeKeepalive():
                    sock.wake.set()
                case core.Disconnect():
                    await sock.disconnect()
                case core.Sleep(delay_s):
                    await asyncio.sleep(delay_s)
                case core.Notify(function, value) if function is not None:
                    returned = function(value)
                    if inspect.isawaitable(returned):
                        await returned
    finally:
        await sock.disconnect()
