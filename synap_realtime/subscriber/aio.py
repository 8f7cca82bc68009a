"""Subscribe on an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
import time
from collections.abc import AsyncGenerator

from ..event_loops import running_loop
from ..protocol.notification import Notification
from . import aio_pool, one_room
from .aio_connection import AsyncSocket
from .options import After, Arguments, OnGap, OnStateChange, Options, RoomOptions, Token, check
from .pool import OneRoomOnlyError
from .steps import Deliver, Notify, StepResult


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

    Leaving the ``async with`` ends the subscription. Subscriptions to one room each, on one event
    loop and with the same ``url`` and ``token``, share a connection, if the server has such ones. A
    notification is acknowledged when the next one is requested. After a ``break`` or an error in
    the loop body, the next subscription without a cursor receives the notification again, so each
    is delivered at least once. A slow consumer loses nothing, and delays no other subscription: the
    connection is kept alive while the consumer is busy, and resumed if the server closes it.

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
    arguments = Arguments(
        room, url, token, after, max_reconnects, acknowledge, on_gap, on_state_change
    )
    return _notifications(check(arguments))


async def _notifications(options: Options) -> AsyncGenerator[Notification, None]:
    """Subscribe over a connection with many rooms, if the server has such ones."""
    running_loop("subscribe()", "iterate subscribe_sync() in a thread")
    try:
        async with contextlib.aclosing(aio_pool.notifications(options)) as notifications:
            async for notification in notifications:
                yield notification
    except OneRoomOnlyError as error:
        rooms = options.continuing(error.positions, error.token).by_room()
    else:
        return
    alone = _of_room(rooms[0]) if len(rooms) == 1 else _merged(rooms)
    async with contextlib.aclosing(alone) as notifications:
        async for notification in notifications:
            yield notification


async def _merged(rooms: list[RoomOptions]) -> AsyncGenerator[Notification, None]:
    """Subscribe to each room by a connection of its own."""
    queue: asyncio.Queue[tuple[Notification, asyncio.Event]] = asyncio.Queue()

    async def follow(options: RoomOptions) -> None:
        async with contextlib.aclosing(_of_room(options)) as notifications:
            async for notification in notifications:
                is_processed = asyncio.Event()
                queue.put_nowait((notification, is_processed))
                await is_processed.wait()

    following = [asyncio.ensure_future(follow(room)) for room in rooms]
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


async def _of_room(options: RoomOptions) -> AsyncGenerator[Notification, None]:
    """Subscribe to one room by a connection of its own."""
    steps = one_room.run(options, time.monotonic, random.random)
    answer: StepResult = None
    sock = AsyncSocket(options)
    try:
        while True:
            step = steps.send(answer)
            answer = None
            match step:
                case Deliver(notification):
                    yield notification
                case Notify(function, value):
                    if function is not None:
                        returned = function(value)
                        if inspect.isawaitable(returned):
                            await returned
                case _:
                    answer = await sock.execute(step)
    finally:
        await sock.disconnect()
