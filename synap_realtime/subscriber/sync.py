"""Subscribe in a thread."""

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
from . import connect, one_room, sync_pool
from .options import After, Arguments, OnGap, OnStateChange, Options, RoomOptions, check
from .pool import OneRoomOnlyError
from .steps import Deliver, Notify, StepResult
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
    arguments = Arguments(
        room, url, token, after, max_reconnects, acknowledge, on_gap, on_state_change
    )
    options = check(arguments)
    callbacks = {"token": token, "on_gap": on_gap, "on_state_change": on_state_change}
    for field, function in callbacks.items():
        if inspect.iscoroutinefunction(function):
            raise InvalidArgumentError(field, "expected a plain function; subscribe takes async")
    return _notifications(options)


def _notifications(options: Options) -> Generator[Notification, None, None]:
    """Subscribe over a connection with many rooms, if the server has such ones."""
    try:
        yield from sync_pool.notifications(options)
    except OneRoomOnlyError as error:
        rooms = options.continuing(error.positions, error.token).by_room()
    if len(rooms) == 1:
        yield from _of_room(rooms[0], SyncSocket(rooms[0]))
    else:
        yield from _merged(rooms)


def _merged(rooms: list[RoomOptions]) -> Generator[Notification, None, None]:
    """Subscribe to each room by a connection of its own."""
    arrived: queue.SimpleQueue[_Follower] = queue.SimpleQueue()
    followers = [_Follower(room, arrived) for room in rooms]
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
            follower.stop()
        for follower in followers:
            follower.join(2 * connect.CLOSE_TIMEOUT_S)


class _Follower(threading.Thread):
    """Receives the notifications of one room by a connection of its own."""

    def __init__(self, options: RoomOptions, arrived: queue.SimpleQueue[_Follower]) -> None:
        """
        Args:
            options: of the room.
            arrived: receives the follower when it has a notification, or has ended.
        """
        super().__init__(name="synap-follower", daemon=True)
        self.notification: Notification | None = None
        self.error: Exception | None = None
        self.calls: list[Callable[[], object]] = []
        self.is_processed = threading.Event()
        self._arrived = arrived
        common = options.common
        common = common._replace(
            on_gap=self._in_consumer(common.on_gap),
            on_state_change=self._in_consumer(common.on_state_change),
        )
        self._options = options._replace(common=common)
        self._socket = SyncSocket(self._options)

    def run(self) -> None:
        try:
            for notification in _of_room(self._options, self._socket):
                self.notification = notification
                self._hand_over()
        except Exception as error:  # noqa: BLE001 - raised by the consumer
            self.error = error
        self.notification = None
        self._hand_over()

    def stop(self) -> None:
        """End soon, and wait for nothing: all followers say goodbye at the same time."""
        self._socket.is_over.set()
        self.is_processed.set()
        threading.Thread(target=self._socket.close, daemon=True).start()

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
        if not self._socket.is_over.is_set():
            self.is_processed.wait()


def _of_room(options: RoomOptions, sock: SyncSocket) -> Generator[Notification, None, None]:
    """Subscribe to one room by a connection of its own, in this thread."""
    steps = one_room.run(options, time.monotonic, random.random)
    answer: StepResult = None
    try:
        while not sock.is_over.is_set():
            step = steps.send(answer)
            answer = None
            match step:
                case Deliver(notification):
                    yield notification
                case Notify(function, value):
                    if function is not None:
                        function(value)
                case _:
                    answer = sock.execute(step)
    finally:
        sock.disconnect()
