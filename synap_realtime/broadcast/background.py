"""The background client: whoever publishes never waits for the network."""

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

from ..protocol.notification import Notification
from ..protocol.rooms import Room, UserId
from . import encoding, forks, retry
from .result import BroadcastResult
from .sync import HttpClient

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Notifications that wait for a server that is away; then the oldest are dropped."""

MAX_WAITING_BYTES = 64 * 1024 * 1024

BATCH = 100
"""Notifications in one request."""

FLUSH_S = 5.0
"""How long the end of a job, and of the process, waits for what is on its way."""

MAX_PAUSE_S = 15.0
"""A server that is away is asked again after 0.1, 0.2, 0.4 s, … and at most this."""


_THREAD = "synap-realtime"


@dataclass(eq=False, slots=True)
class PendingNotification:
    """A notification on its way.

    Attributes:
        due: when it may leave, by the monotonic clock.
        result: what became of it; None until the server has answered.
    """

    encoded: encoding.EncodedNotification
    due: float = 0.0
    in_flight: bool = False
    result: BroadcastResult | None = None
    waiting: list[Future[None]] = field(default_factory=list)


class BackgroundBroadcaster:
    """Publishes from a thread of its own, in order, many notifications in one request.

    Publishing takes microseconds and never waits: not for the network, nor for a server that is
    away. What cannot be sent waits here, bounded, and is sent when the server is back; the log says
    once that it is away and once that it is back. At the end of the process, what is on its way
    gets a few seconds.

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
        """Make a client; nothing is connected yet.

        Args:
            url, api_key, transport: as for :class:`Broadcaster`.
            timeout_s: how long one request may take.
            max_waiting: notifications that are kept for a server that is away.

        Raises:
            ConfigurationError: the URL is not an ``http`` or ``https`` one.
        """
        self._endpoint = encoding.Endpoint(url, api_key)
        self._timeout_s = encoding.check_seconds("timeout_s", timeout_s)
        self._max_pending = max_pending
        self._poster = HttpClient(self._endpoint, transport)
        self._reset()
        _instances.add(self)
        forks.renew_in_child(self)

    def renew(self) -> None:
        """Begin anew in a forked child: what waits here, and the connections, are its parent's."""
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
        self._refusal: str | None = None  # the last answer's
        self._away_since = 0.0
        self._dropped = 0

    @property
    def is_unavailable(self) -> bool:
        """Whether the server could not be reached, or could not answer, the last time."""
        return self._away

    @property
    def pending(self) -> int:
        """How many notifications the server has not answered yet."""
        return len(self._queue) + len(self._delayed) + len(self._in_flight)

    def broadcast_notification(
        self,
        *,
        user_id: UserId | None = None,
        request_id: UserId | None = None,
        message: Notification | Mapping[str, Any],
    ) -> None:
        """Send one notification to a user's room, a request's room, or both, in the background.

        Raises:
            InvalidArgumentError: names the argument that is wrong.
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
        """Queue a notification; never waits.

        Args:
            due: when it may leave, by the monotonic clock.
            after: one that must leave before it, also if it was not due yet.

        Raises:
            InvalidArgumentError: the notification is too large, or cannot be JSON.
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
        """Send this one in the place of one that was posted; False if that has left.

        Raises:
            InvalidArgumentError: the notification is too large, or cannot be JSON.
        """
        parcel = encoding.encode(posted.encoded.rooms, notification)
        with self._changed:
            if posted.in_flight:
                return False
            self._bytes += len(parcel.body) - len(posted.encoded.body)
            posted.encoded = parcel
            return True

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until the server has answered all that was posted.

        A server that is known to be away is not waited for.

        Returns:
            whether nothing waits any more.
        """
        last = self._make_all_due()
        if last is not None:
            self.wait_sent(last, timeout_s)
        return not self.pending

    async def aflush(self, timeout_s: float = FLUSH_S) -> bool:
        """:meth:`flush` for code that awaits."""
        last = self._make_all_due()
        if last is not None:
            await self.await_sent(last, timeout_s)
        return not self.pending

    def wait_sent(self, posted: PendingNotification, timeout_s: float = FLUSH_S) -> None:
        """Let this one leave now, and wait until the server has answered it, or is away."""
        if (future := self._future(posted)) is not None:
            wait([future], timeout_s)

    async def await_sent(self, posted: PendingNotification, timeout_s: float = FLUSH_S) -> None:
        """:meth:`wait_sent` for code that awaits."""
        if (future := self._future(posted)) is not None:
            await asyncio.wait([asyncio.wrap_future(future)], timeout=timeout_s)

    def close(self, timeout_s: float = FLUSH_S) -> None:
        """Send what waits, and end. A server that has just gone may come back in this time."""
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
                logger.error("%d notifications for %s are lost", lost, self._endpoint.redacted)
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(0 if lost else FLUSH_S)

    async def aclose(self, timeout_s: float = FLUSH_S) -> None:
        """:meth:`close` for code that awaits."""
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
        """Make all due; returns the last."""
        with self._changed:
            self._queue.extend(self._delayed)
            self._delayed.clear()
            self._changed.notify_all()
            left = self._queue or self._in_flight
            return left[-1] if left else None

    def _future(self, posted: PendingNotification) -> Future[None] | None:
        with self._changed:
            if posted in self._delayed:  # who waits for it need not wait for its time, too
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
            self._drop(1, f"more than {self._max_pending} notifications wait")

    def _drop(self, count: int, why: str) -> None:
        if not self._dropped:
            logger.error("notifications for %s are dropped: %s", self._endpoint.redacted, why)
        self._dropped += count

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        # Imports and reads here what the thread needs: see requests.Endpoint. What is wrong is
        # the result of each notification, and logged as such.
        with contextlib.suppress(Exception):
            self._poster.open()
        thread = threading.Thread(target=self._run, name=_THREAD, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # From Python 3.12 on, no thread starts while the interpreter shuts down; and a system
            # may have no more of them. What waits is sent by the next call, or by close().
            return
        self._thread = thread

    def _send_here(self) -> None:
        """Send what waits from this thread, once: there is no other, and there may be none."""
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
        """Wait for what is due; None at the end."""
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
        steps = encoding.delivery(self._endpoint, [posted.encoded for posted in batch])
        try:
            results = self._answered(steps)
        except Exception:  # the thread must live on, whatever a transport of one's own does
            logger.exception("notifications for %s are lost", self._endpoint.redacted)
            results = []
        with self._changed:
            self._in_flight = []  # before anybody wakes, and asks whether anything still waits
            for posted, result in zip_longest(batch, results):
                posted.result = result
                _release(posted)
                if result is not None and not self._closing:
                    self._log_refusal(posted.encoded.rooms, result)
            self._changed.notify_all()

    def _answered(self, steps: encoding.Delivery) -> list[BroadcastResult]:
        call = next(steps)
        while True:
            answer = self._call(call)
            try:
                call = steps.send(answer)
            except StopIteration as done:
                results: list[BroadcastResult] = done.value
                return results

    def _call(self, call: encoding.ApiRequest) -> encoding.ApiResponse:
        """Send until there is an answer that stays, or until the end of this broadcaster."""
        from tenacity import Retrying, retry_if_result, stop_never

        answer = encoding.ApiResponse()

        def may_come_back(answer: encoding.ApiResponse) -> bool:
            # Nobody waits here, so what its operator has to mend is waited for as well.
            return retry.is_retriable(answer) or answer.is_misconfigured

        def attempt() -> encoding.ApiResponse:
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

    def _on_unavailable(self, answer: encoding.ApiResponse) -> None:
        with self._changed:
            if self._away:
                return
            self._away, self._away_since = True, time.monotonic()
            for posted in (*self._in_flight, *self._queue, *self._delayed):
                _release(posted)
        logger.warning(
            "%s: notifications wait (at most %d), and jobs go on", answer.error, self._max_pending
        )

    def _on_recovered(self) -> None:
        with self._changed:
            if not self._away:
                return
            self._away = False
            dropped, self._dropped = self._dropped, 0
        logger.warning(
            "%s is back after %.0f s; %d notifications were dropped",
            self._endpoint.redacted,
            time.monotonic() - self._away_since,
            dropped,
        )

    def _log_refusal(self, rooms: Sequence[Room], result: BroadcastResult) -> None:
        """Once for each reason: a wrong key is refused a thousand times alike."""
        if result.error is not None and result.error != self._refusal:
            logger.warning(
                "notification %s for %s was refused: %s", result.id, ", ".join(rooms), result.error
            )
        self._refusal = result.error


class _ClosingError(Exception):
    """There is no time for another attempt."""


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
