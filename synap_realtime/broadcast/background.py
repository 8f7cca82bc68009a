"""The background client of the SDK: publishing never waits for the network."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Any, Self

import httpx

from ..forks import renew_in_child
from ..protocol.notification import Notification
from ..protocol.rooms import Room, UserId
from . import encoding, retry
from .batch_queue import BatchQueue, Correct, Order, QueuedNotification, QueueLimits
from .encoding import ApiRequest
from .endpoint import Endpoint, check_seconds
from .http_client import HttpClient
from .responses import failure_result
from .result import BroadcastResult

logger = logging.getLogger(__name__)

MAX_PENDING = 10_000
"""Maximum number of notifications queued while the server is unavailable. The oldest are dropped.
"""

MAX_PENDING_BYTES = 64 * 1024 * 1024

BATCH = 100
"""Maximum number of notifications in one request."""

FLUSH_S = 5.0
"""Seconds that the end of a job, and of the process, waits for notifications in flight."""

MAX_BACKOFF_S = 15.0
"""Maximum retry interval while the server is unavailable; the first are 0.1, 0.2, 0.4 s, …."""

_POLICY = retry.RetryPolicy(
    MAX_BACKOFF_S, MAX_BACKOFF_S, retries_misconfigured=True, pauses_queue=True
)

_CLOSED = "the broadcaster is closed"

_THREAD = "synap-realtime"


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
        max_pending: int = MAX_PENDING,
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
        self._full = f"more than {max_pending} notifications are pending"
        self._poster = HttpClient(self._endpoint, transport)
        self._reset()
        _instances.add(self)
        renew_in_child(self)

    def renew(self) -> None:
        """Reset the client in a forked child; the parent owns the queue and the connections."""
        self._poster = self._poster.renewed()
        self._reset()

    def _reset(self) -> None:
        limits = QueueLimits(self._max_pending, MAX_PENDING_BYTES, BATCH, concurrent_singles=1)
        self._changed = threading.Condition()
        self._queue = BatchQueue(self._endpoint, limits, _POLICY)
        self._waiters: dict[QueuedNotification, list[Future[None]]] = {}
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
        with self._changed:
            return len(self._queue)

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
        after: QueuedNotification | None = None,
        order: Order = Order.FREE,
        correct: Correct | None = None,
    ) -> QueuedNotification:
        """Queue a notification. Never blocks.

        Args:
            due: the earliest time to send it, by the monotonic clock.
            after: a notification that must be sent first, even before its own due time.
            order: what it waits for, besides.
            correct: corrects it if it is rejected.

        Raises:
            InvalidArgumentError: the notification is too large or not JSON-serializable.
        """
        encoded = encoding.encode(rooms, notification)
        posted = QueuedNotification(encoded, due=due, order=order, correct=correct)
        with self._changed:
            if after is not None:
                self._queue.expedite([after])
            if self._closing:
                posted.resolve(failure_result(posted.encoded, 0, _CLOSED))
                self._drop(1, _CLOSED)
                return posted
            if due > time.monotonic():
                self._queue.add_delayed(posted)
            else:
                self._queue.add(posted)
            if evicted := self._queue.evict_oldest(self._full):
                self._drop(len(evicted), self._full)
                self._wake(evicted)
            self._start()
            self._changed.notify_all()
        return posted

    def replace(self, posted: QueuedNotification, notification: Notification) -> bool:
        """Replace a queued notification. Return False if it was sent already.

        Raises:
            InvalidArgumentError: the notification is too large or not JSON-serializable.
        """
        encoded = encoding.encode(posted.encoded.rooms, notification)
        with self._changed:
            return self._queue.replace(posted, encoded)

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

    def wait_sent(self, posted: QueuedNotification, timeout_s: float = FLUSH_S) -> None:
        """Send this notification now, and wait until the server has responded or is unavailable."""
        if (future := self._future(posted)) is not None:
            wait([future], timeout_s)

    async def await_sent(self, posted: QueuedNotification, timeout_s: float = FLUSH_S) -> None:
        """Asynchronous variant of :meth:`wait_sent`."""
        if (future := self._future(posted)) is not None:
            await asyncio.wait([asyncio.wrap_future(future)], timeout=timeout_s)

    def close(self, timeout_s: float = FLUSH_S) -> None:
        """Send the queue, then stop. A server that has just failed may recover in time."""
        with self._changed:
            self._queue.expedite()
            self._changed.notify_all()
            if self._away:
                timeout_s -= time.monotonic() - self._away_since
            is_running = self._thread is not None and self._thread.is_alive()
        if not is_running:
            self._send_here()
        with self._changed:
            if is_running:
                self._changed.wait_for(lambda: self._queue.is_idle, max(0, timeout_s))
            self._closing = True
            lost = len(self._queue)
            self._queue.end(_CLOSED)
            self._wake(tuple(self._waiters))
            if lost:
                logger.error(
                    "lost %d notifications for %s: they could not be sent before close() timed out",
                    lost,
                    self._endpoint.redacted,
                )
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

    def _make_all_due(self) -> QueuedNotification | None:
        """Mark all queued notifications as due; return the last one."""
        with self._changed:
            self._queue.expedite()
            self._changed.notify_all()
            return self._queue.last

    def _future(self, posted: QueuedNotification) -> Future[None] | None:
        """Return a future that ends when the server has responded or is unavailable, and make the
        notification due; None if there is nothing to wait for.
        """
        with self._changed:
            self._queue.expedite([posted])
            self._changed.notify_all()
            # With an outcome, it is still pending until its request ends, which wakes waiters.
            is_done = posted.is_settled and not self._queue.is_sending(posted)
            if is_done or self._away or self._closing:
                return None
            future: Future[None] = Future()
            self._waiters.setdefault(posted, []).append(future)
            return future

    def _wake(self, items: Iterable[QueuedNotification]) -> None:
        for item in items:
            for future in self._waiters.pop(item, ()):
                if future.set_running_or_notify_cancel():
                    future.set_result(None)

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
            self._closing = True
        while batch := self._next_batch():
            self._send_batch(batch)

    def _run(self) -> None:
        while batch := self._take():
            self._send_batch(batch)
        self._poster.close()

    def _take(self) -> list[QueuedNotification]:
        """Wait for due notifications and return them; none when the broadcaster is closed."""
        with self._changed:
            while not self._closing:
                if batch := self._next_batch():
                    return batch
                now = time.monotonic()
                due = self._queue.next_due(now)
                self._changed.wait(None if due is None else max(0.0, due - now))
            return []

    def _next_batch(self) -> list[QueuedNotification]:
        with self._changed:
            return self._queue.next_batch(time.monotonic())

    def _send_batch(self, batch: list[QueuedNotification]) -> None:
        """Make one attempt for a batch."""
        try:
            call: ApiRequest | None = self._queue.begin(batch)
            while call is not None:
                answer = self._poster.post(call, self._timeout_s)
                with self._changed:
                    now = time.monotonic()
                    call = self._queue.apply_response(batch, answer, now)
                    is_paused = self._queue.is_paused(now)
                if is_paused:
                    self._on_unavailable(batch)
                else:
                    self._on_recovered()
        except Exception as error:  # the thread must survive any error of a custom transport
            logger.exception("lost notifications for %s", self._endpoint.redacted)
            with self._changed:
                self._queue.fail(batch, error, is_own=False)
        finally:
            with self._changed:
                self._queue.release(batch)
                settled = [item for item in batch if item.is_settled]
                self._wake(settled)  # after the release: they check whether the queue is empty
                for item in settled:
                    if item.result is not None and not self._closing:
                        self._log_refusal(item.encoded.rooms, item.result)
                self._changed.notify_all()

    def _on_unavailable(self, batch: Sequence[QueuedNotification]) -> None:
        with self._changed:
            if self._away:
                return
            self._away, self._away_since = True, time.monotonic()
            self._wake(tuple(self._waiters))
        error = next((item.failure for item in batch if item.failure and not item.is_settled), None)
        logger.warning("%s; buffering up to %d notifications", error, self._max_pending)

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


_instances: weakref.WeakSet[BackgroundBroadcaster] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    end = time.monotonic() + FLUSH_S
    for instance in list(_instances):
        instance.close(max(0.1, end - time.monotonic()))
