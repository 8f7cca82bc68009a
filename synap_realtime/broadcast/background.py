"""The background client of the SDK: publishing never waits for the network."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from itertools import zip_longest
from types import TracebackType
from typing import Any, Self

import httpx

from ..forks import renew_in_child
from ..protocol.notification import Notification
from ..protocol.rooms import Room, UserId
from . import encoding, per_room, responses, retry
from .endpoint import Endpoint, check_seconds
from .http_client import HttpClient
from .result import BroadcastResult

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Maximum number of notifications queued while the server is unavailable. The oldest are dropped.
"""

MAX_WAITING_BYTES = 64 * 1024 * 1024

BATCH = 100
"""Maximum number of notifications in one request."""

FLUSH_S = 5.0
"""Seconds that the end of a job, and of the process, waits for notifications in flight."""

MAX_PAUSE_S = 15.0
"""Maximum retry interval while the server is unavailable; the first are 0.1, 0.2, 0.4 s, …."""


_THREAD = "synap-realtime"


@dataclass(eq=False, slots=True)
class PendingNotification:
    """A queued notification.

    Attributes:
        due: the earliest time to send it, by the monotonic clock.
        result: None until the server has responded.
    """

    encoded: encoding.EncodedNotification
    due: float = 0.0
    in_flight: bool = False
    result: BroadcastResult | None = None
    waiting: list[Future[None]] = field(default_factory=list)


class BackgroundBroadcaster:
    """Publishes from its own thread, in order, with many notifications in one request.

    Publishing takes microseconds and never blocks, neither for the network nor for an unavailable
    server. Notifications that cannot be sent are kept in a bounded queue and sent when the server
    is available again. The log reports the outage once and the recovery once. At exit, the process
    waits a few seconds for the queue.

    One instance serves all threads, event loops and forked children of a process.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = retry.TIMEOUT_S,
        max_pending: int = MAX_WAITING,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Create a client; nothing is connected yet.

        Args:
            url, api_key, transport: as for :class:`Broadcaster`.
            timeout_s: timeout of one request in seconds.
            max_pending: maximum number of notifications queued while the server is unavailable.

        Raises:
            ConfigurationError: the URL is not an ``http`` or ``https`` URL.
        """
        self._endpoint = Endpoint(url, api_key)
        self._timeout_s = check_seconds("timeout_s", timeout_s)
        self._max_pending = max_pending
        self._poster = HttpClient(self._endpoint, transport)
        self._reset()
        _instances.add(self)
        renew_in_child(self)

    def renew(self) -> None:
        """Reset the client in a forked child; the parent owns the queue and the connections."""
        self._poster = self._poster.renewed()
        self._reset()

    def _reset(self) -> None:
        self._changed = threading.Condition()
        self._queue: deque[PendingNotification] = deque()
        self._delayed: dict[PendingNotification, None] = {}  # not due yet
        self._in_flight: list[PendingNotification] = []
        self._bytes = 0
        self._thread: threading.Thread | None = None
        self._closing = False
        self._away = False
        self._refusal: str | None = None  # of the last response
        self._away_since = 0.0
        self._dropped = 0

    @property
    def is_unavailable(self) -> bool:
        """Whether the last request failed because the server was unreachable or unavailable."""
        return self._away

    @property
    def pending(self) -> int:
        """Number of notifications to which the server has not responded yet."""
        return len(self._queue) + len(self._delayed) + len(self._in_flight)

    def broadcast_notification(
        self,
        *,
        user_id: UserId | None = None,
        request_id: UserId | None = None,
        message: Notification | Mapping[str, Any],
    ) -> None:
        """Publish one notification to a user's room, a request's room, or both, in the background.

        Raises:
            InvalidArgumentError: an argument is invalid; names it.
        """
        rooms = encoding.rooms_for(user_id, request_id)
        self.post(rooms, encoding.normalize(message, request_id))

    def post(
        self,
        rooms: tuple[Room, ...],
        notification: Notification,
        *,
        due: float = 0.0,
        after: PendingNotification | None = None,
    ) -> PendingNotification:
        """Queue a notification. Never blocks.

        Args:
            due: the earliest time to send it, by the monotonic clock.
            after: a notification that must be sent first, even before its own due time.

        Raises:
            InvalidArgumentError: the notification is too large or not JSON-serializable.
        """
        parcel = encoding.encode(rooms, notification)
        with self._changed:
            if after is not None and after in self._delayed:
                del self._delayed[after]
                self._queue.append(after)
            posted = PendingNotification(parcel, due)
            if self._closing:
                posted.in_flight = True
                self._drop(1, "the broadcaster is closed")
                return posted
            if due > time.monotonic():
                self._delayed[posted] = None
            else:
                self._queue.append(posted)
            self._bytes += len(parcel.body)
            self._evict_oldest()
            self._start()
            self._changed.notify_all()
        return posted

    def replace(self, posted: PendingNotification, notification: Notification) -> bool:
        """Replace a queued notification. Return False if it was sent already.

        Raises:
            InvalidArgumentError: the notification is too large or not JSON-serializable.
        """
        parcel = encoding.encode(posted.encoded.rooms, notification)
        with self._changed:
            if posted.in_flight:
                return False
            self._bytes += len(parcel.body) - len(posted.encoded.body)
            posted.encoded = parcel
            return True

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until the server has responded to all queued notifications.

        It does not wait for a server that is known to be unavailable.

        Returns:
            whether the queue is empty.
        """
        last = self._make_all_due()
        if last is not None:
            self.wait_sent(last, timeout_s)
        return not self.pending

    async def aflush(self, timeout_s: float = FLUSH_S) -> bool:
        """Asynchronous variant of :meth:`flush`."""
        last = self._make_all_due()
        if last is not None:
            await self.await_sent(last, timeout_s)
        return not self.pending

    def wait_sent(self, posted: PendingNotification, timeout_s: float = FLUSH_S) -> None:
        """Send this notification now, and wait until the server has responded or is unavailable."""
        if (future := self._future(posted)) is not None:
            wait([future], timeout_s)

    async def await_sent(self, posted: PendingNotification, timeout_s: float = FLUSH_S) -> None:
        """Asynchronous variant of :meth:`wait_sent`."""
        if (future := self._future(posted)) is not None:
            await asyncio.wait([asyncio.wrap_future(future)], timeout=timeout_s)

    def close(self, timeout_s: float = FLUSH_S) -> None:
        """Send the queue, then stop. A server that has just failed may recover in time."""
        with self._changed:
            self._queue.extend(self._delayed)
            self._delayed.clear()
            self._changed.notify_all()
            if self._away:
                timeout_s -= time.monotonic() - self._away_since
            is_running = self._thread is not None and self._thread.is_alive()
        if not is_running:
            self._send_here()
        with self._changed:
            self._changed.wait_for(lambda: not self.pending, max(0, timeout_s))
            self._closing = True
            lost = self.pending
            self._queue.clear()
            self._delayed.clear()
            if lost:
                logger.error("lost %d notifications for %s", lost, self._endpoint.redacted)
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(0 if lost else FLUSH_S)

    async def aclose(self, timeout_s: float = FLUSH_S) -> None:
        """Asynchronous variant of :meth:`close`."""
        await asyncio.to_thread(self.close, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _make_all_due(self) -> PendingNotification | None:
        """Mark all queued notifications as due; return the last one."""
        with self._changed:
            self._queue.extend(self._delayed)
            self._delayed.clear()
            self._changed.notify_all()
            left = self._queue or self._in_flight
            return left[-1] if left else None

    def _future(self, posted: PendingNotification) -> Future[None] | None:
        with self._changed:
            if posted in self._delayed:  # a caller waits for it, so ignore its due time
                del self._delayed[posted]
                self._queue.append(posted)
                self._changed.notify_all()
            if posted.result is not None or self._away or self._closing:
                return None
            future: Future[None] = Future()
            posted.waiting.append(future)
            return future

    def _evict_oldest(self) -> None:
        while len(self._queue) > self._max_pending or self._bytes > MAX_WAITING_BYTES:
            if not self._queue:
                return
            oldest = self._queue.popleft()
            oldest.in_flight = True
            self._bytes -= len(oldest.encoded.body)
            _release(oldest)
            self._drop(1, f"more than {self._max_pending} notifications are pending")

    def _drop(self, count: int, why: str) -> None:
        if not self._dropped:
            logger.error("dropping notifications for %s: %s", self._endpoint.redacted, why)
        self._dropped += count

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        # Import and read here what the thread needs: see Endpoint. A configuration error
        # becomes the result of each notification and is logged as such.
        with contextlib.suppress(Exception):
            self._poster.open()
        thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # Since Python 3.12, no thread starts while the interpreter shuts down, and the system
            # may be out of threads. The next call or close() sends the queue.
            return
        self._thread = thread

    def _send_here(self) -> None:
        """Send the queue once from the calling thread, because no other thread can be started."""
        with self._changed:
            batch = self._next_batch() if self._queue else []
            self._closing = True
        while batch:
            self._deliver(batch)
            with self._changed:
                batch = self._next_batch() if self._queue else []

    def _run(self) -> None:
        while (batch := self._take()) is not None:
            self._deliver(batch)
        self._poster.close()

    def _take(self) -> list[PendingNotification] | None:
        """Wait for due notifications and return them; None when the broadcaster is closed."""
        with self._changed:
            while True:
                now = time.monotonic()
                for posted in [posted for posted in self._delayed if posted.due <= now]:
                    del self._delayed[posted]
                    self._queue.append(posted)
                if self._queue:
                    break
                if self._closing:
                    return None
                due = min((posted.due for posted in self._delayed), default=None)
                self._changed.wait(None if due is None else due - now)
            return self._next_batch()

    def _next_batch(self) -> list[PendingNotification]:
        load = encoding.BatchBudget(BATCH)
        while self._queue and load.add(self._queue[0].encoded):
            posted = self._queue.popleft()
            posted.in_flight = True
            self._bytes -= len(posted.encoded.body)
            self._in_flight.append(posted)
        return self._in_flight

    def _deliver(self, batch: list[PendingNotification]) -> None:
        steps = per_room.delivery(self._endpoint, [posted.encoded for posted in batch])
        try:
            results = self._answered(steps)
        except Exception:  # the thread must survive any error of a custom transport
            logger.exception("lost notifications for %s", self._endpoint.redacted)
            results = []
        with self._changed:
            self._in_flight = []  # before waiters wake and check whether the queue is empty
            for posted, result in zip_longest(batch, results):
                posted.result = result
                _release(posted)
                if result is not None and not self._closing:
                    self._log_refusal(posted.encoded.rooms, result)
            self._changed.notify_all()

    def _answered(self, steps: per_room.Delivery) -> list[BroadcastResult]:
        call = next(steps)
        while True:
            answer = self._call(call)
            try:
                call = steps.send(answer)
            except StopIteration as done:
                results: list[BroadcastResult] = done.value
                return results

    def _call(self, call: encoding.ApiRequest) -> responses.ApiResponse:
        """Send until the response is final or the broadcaster is closed."""
        from tenacity import Retrying, retry_if_result, stop_never

        answer = responses.ApiResponse()

        def may_come_back(answer: responses.ApiResponse) -> bool:
            # No caller waits here, so retry a misconfigured server, too, until its operator has
            # fixed it.
            return retry.is_retriable(answer) or answer.is_misconfigured

        def attempt() -> responses.ApiResponse:
            nonlocal answer
            answer = self._poster.post(call, self._timeout_s)
            if may_come_back(answer):
                self._on_unavailable(answer)
            else:
                self._on_recovered()
            return answer

        def pause(pause_s: float) -> None:
            with self._changed:
                if self._changed.wait_for(lambda: self._closing, pause_s):
                    raise _ClosingError

        retrying = Retrying(
            retry=retry_if_result(may_come_back),
            wait=retry.wait_at_most_s(MAX_PAUSE_S),
            stop=stop_never,
            sleep=pause,
        )
        with contextlib.suppress(_ClosingError):
            retrying(attempt)
        return retry.with_attempts(answer, retrying.statistics["attempt_number"])

    def _on_unavailable(self, answer: responses.ApiResponse) -> None:
        with self._changed:
            if self._away:
                return
            self._away, self._away_since = True, time.monotonic()
            for posted in (*self._in_flight, *self._queue, *self._delayed):
                _release(posted)
        logger.warning("%s; buffering up to %d notifications", answer.error, self._max_pending)

    def _on_recovered(self) -> None:
        with self._changed:
            if not self._away:
                return
            self._away = False
            dropped, self._dropped = self._dropped, 0
        logger.warning(
            "reconnected to %s after %.0f s; %d notifications were dropped",
            self._endpoint.redacted,
            time.monotonic() - self._away_since,
            dropped,
        )

    def _log_refusal(self, rooms: Sequence[Room], result: BroadcastResult) -> None:
        """Log a rejection once for each reason: an invalid key fails every notification."""
        if result.error is not None and result.error != self._refusal:
            logger.warning(
                "notification %s for %s was rejected: %s", result.id, ", ".join(rooms), result.error
            )
        self._refusal = result.error


class _ClosingError(Exception):
    """The broadcaster is closing and has no time for another attempt."""


def _release(posted: PendingNotification) -> None:
    for future in posted.waiting:
        if future.set_running_or_notify_cancel():
            future.set_result(None)
    posted.waiting.clear()


_instances: weakref.WeakSet[BackgroundBroadcaster] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    end = time.monotonic() + FLUSH_S
    for instance in list(_instances):
        instance.close(max(0.1, end - time.monotonic()))
