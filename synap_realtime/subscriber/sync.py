"""The synchronous driver: runs the subscription core in the caller's thread."""

from __future__ import annotations

import functools
import inspect
import queue
import random
import threading
import time
from collections.abc import Callable, Generator
from typing import TypeVar

from ..errors import InvalidArgumentError
from ..protocol.notification import Notification
from . import connect, core, rooms, sync_pool
from .options import After, OnGap, OnStateChange, Options, RoomsOptions, check_any
from .rooms import OneRoomOnlyError
from .sync_connection import SyncSocket

T = TypeVar("T")


def subscribe_sync(
    room: str | list[str] | tuple[str, ...],
    url: str | None = None,
    token: str | Callable[[], str] | None = None,
    *,
    after: After = None,
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
    Threads keep the connection alive and end with it. All threads of the process share connections;
    a token function is called in a thread of the connection.
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
    for field, function in (
        ("token", token),
        ("on_gap", on_gap),
        ("on_state_change", on_state_change),
    ):
        if inspect.iscoroutinefunction(function):
            raise InvalidArgumentError(field, "expected a plain function; subscribe takes async")
    if isinstance(options, RoomsOptions):
        return _notifications_of_rooms(options)
    return _notifications_of_room(options)


def _notifications_of_rooms(options: RoomsOptions) -> Generator[Notification, None, None]:
    try:
        yield from _run(options, rooms.run(options, time.monotonic, random.random))
    except rooms.OneRoomOnlyError as error:
        options = options.starting_at(error.positions)
    yield from _merged(options)


def _notifications_of_room(options: Options) -> Generator[Notification, None, None]:
    """Subscribe to one room, over a connection that is shared if the server has such ones."""
    try:
        yield from sync_pool.notifications(options)
    except OneRoomOnlyError as error:
        options = options.continuing(error.positions[options.room], error.token)
    yield from _notifications(options)


class _Follower(threading.Thread):
    """Receives the notifications of one room by a connection of its own."""

    def __init__(self, options: Options, arrived: queue.SimpleQueue[_Follower]) -> None:
        """
        Args:
            options: of the room.
            arrived: receives the follower when it has a notification, or has ended.
        """
        super().__init__(name="synap-follower", daemon=True)
        self.notification: Notification | None = None
        self.error: Exception | None = None
        self.calls: list[Callable[[], object]] = []
        self.stop = threading.Event()
        self.is_processed = threading.Event()
        self._arrived = arrived
        self._options = options._replace(
            on_gap=self._in_consumer(options.on_gap),
            on_state_change=self._in_consumer(options.on_state_change),
        )

    def run(self) -> None:
        try:
            for notification in _notifications(self._options, self.stop):
                self.notification = notification
                self._hand_over()
        except Exception as error:  # noqa: BLE001 - raised by the consumer
            self.error = error
        self.notification = None
        self._hand_over()

    def _in_consumer(self, function: Callable[[T], object] | None) -> Callable[[T], None] | None:
        """Return a function that lets the consumer's thread call another one."""
        if function is None:
            return None

        def call(value: T) -> None:
            self.notification = None
            self.calls.append(functools.partial(function, value))
            self._hand_over()

        return call

    def _hand_over(self) -> None:
        """Wait until the consumer has processed what is new."""
        self.is_processed.clear()
        self._arrived.put(self)
        while not self.stop.is_set() and not self.is_processed.wait(STOP_CHECK_INTERVAL_S):
            pass


def _merged(options: RoomsOptions) -> Generator[Notification, None, None]:
    """Subscribe to each room by a connection of its own."""
    arrived: queue.SimpleQueue[_Follower] = queue.SimpleQueue()
    followers = [_Follower(options.of(room), arrived) for room in options.rooms]
    for follower in followers:
        follower.start()
    try:
        while True:
            follower = arrived.get()
            if follower.error is not None:
                raise follower.error
            for call in follower.calls:
                call()
            follower.calls.clear()
            if follower.notification is not None:
                yield follower.notification
            follower.is_processed.set()
    finally:
        for follower in followers:
            follower.stop.set()
            follower.is_processed.set()
        for follower in followers:
            follower.join(2 * connect.CLOSE_TIMEOUT_S)


def _notifications(
    options: Options, stop: threading.Event | None = None
) -> Generator[Notification, None, None]:
    return _run(options, core.run(options, time.monotonic, random.random), stop)


STOP_CHECK_INTERVAL_S = 0.2
"""The interval at which a follower checks whether it should stop."""


def _run(
    options: Options | RoomsOptions, steps: core.Steps, stop: threading.Event | None = None
) -> Generator[Notification, None, None]:
    """Run the steps in this thread.

    Args:
        stop: ends the iteration, soon after it is set by another thread.
    """
    answer: core.EffectResult = None
    sock = SyncSocket(options)
    try:
        while stop is None or not stop.is_set():
            step = steps.send(answer)
            answer = None
            match step:
                case core.Deliver(notification):
                    yield notification
                case core.Connect(after):
                    answer = sock.connect(after)
                case core.StartKeepalive(keepalive):
                    sock.keep(keepalive)
                case core.Receive(timeout_s):
                    if stop is not None:  # to receive nothing for a shorter time is harmless
                        timeout_s = min(timeout_s, STOP_CHECK_INTERVAL_S)
                    answer = sock.receive(timeout_s)
                case core.Send(text):
                    sock.send(text)
                case core.RenewToken():
                    answer = sock.renew_token()
                case core.WakeKeepalive():
                    sock.wake.set()
                case core.Disconnect():
                    sock.disconnect()
                case core.Sleep(delay_s):
                    if stop is None:
                        time.sleep(delay_s)
                    else:
                        stop.wait(delay_s)
                case core.Notify(function, value) if function is not None:
                    function(value)
    finally:
        sock.disconnect()
