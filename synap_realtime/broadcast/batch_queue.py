"""Queue notifications for the next request and apply its response. Pure; shared by both clients.

Notifications that arrive while a request is in flight are sent together in the next one. Rules:

- At most one ``POST /broadcast`` is in flight. A server without that route receives up to
  :data:`MAX_CONCURRENT_SINGLES` concurrent single notifications.
- Notifications of a room are sent in the order of the calls, also while an earlier one is retried.
  Other rooms do not wait for it.
- Each notification has its own deadline, its own attempts and its own result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..protocol.notification import MAX_BATCH_NOTIFICATIONS
from . import encoding, responses, retry
from .endpoint import Endpoint
from .result import BroadcastResult

MAX_CONCURRENT_SINGLES = 32
"""Maximum number of concurrent requests to a server without ``POST /broadcast``."""

MAX_WAITING = 1000
"""Maximum queue length. Later callers wait for free space."""

MAX_WAITING_BYTES = 4 * 1024 * 1024


def _nobody() -> None:
    pass


@dataclass(eq=False, slots=True)
class QueuedNotification:
    """A queued notification whose caller waits for the result.

    Attributes:
        deadline: when its caller stops waiting, by the monotonic clock.
        settled: called once with the result or the exception.
        due: the earliest time of the next attempt.
        failure: the response to the last attempt, while another may follow.
        leads: the batch that its caller must send, for callers that are threads.
        exception: a non-network error that a transport raised.
    """

    encoded: encoding.EncodedNotification
    deadline: float
    done: Callable[[], None] = _nobody
    due: float = 0.0
    attempts: int = 0
    abandoned: bool = False
    batch: list[QueuedNotification] = field(default_factory=list)
    failure: BroadcastResult | None = None
    result: BroadcastResult | None = None
    exception: Exception | None = None

    @property
    def is_settled(self) -> bool:
        return self.result is not None or self.exception is not None

    def resolve(self, result: BroadcastResult) -> None:
        """Set the result. Only the first counts, and only while the caller waits."""
        if not (self.is_settled or self.abandoned):
            self.result = result
            self.done()

    def fail(self, exception: Exception) -> None:
        """Set an exception that the transport raised; see :meth:`resolve`."""
        if not (self.is_settled or self.abandoned):
            self.exception = exception
            self.done()

    def outcome(self) -> BroadcastResult:
        """Return the result once there is one.

        Raises:
            Exception: the exception that the transport raised.
        """
        if self.exception is not None:
            raise self.exception
        assert self.result is not None  # noqa: S101 - only called once there is a result
        return self.result


class BatchQueue:
    """The queue of one client to one server."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._waiting: deque[QueuedNotification] = deque()
        self._waiting_bytes = 0
        self._in_flight: set[QueuedNotification] = set()
        self._max_batch = MAX_BATCH_NOTIFICATIONS

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._in_flight

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES

    @property
    def _is_busy(self) -> bool:
        """Whether a request in flight must end before the next can start."""
        return len(self._in_flight) >= (
            1 if self._endpoint.has_batch_route else MAX_CONCURRENT_SINGLES
        )

    def add(self, item: QueuedNotification) -> None:
        """Append a notification to the queue."""
        self._waiting.append(item)
        self._waiting_bytes += len(item.encoded.body)

    def cancel(self, item: QueuedNotification) -> None:
        """Remove a notification whose caller was cancelled. It is not sent again."""
        item.abandoned = True
        if item in self._waiting:
            self._waiting.remove(item)
            self._waiting_bytes -= len(item.encoded.body)

    def next_batch(self, now: float) -> list[QueuedNotification]:
        """Return the notifications of the next request; empty if none can start. :meth:`release`
        ends it.
        """
        if not self._waiting or self._is_busy:
            return []
        load = encoding.BatchBudget(self._max_batch if self._endpoint.has_batch_route else 1)
        held = {room for item in self._in_flight for room in item.encoded.rooms}
        taken: list[QueuedNotification] = []
        passed: list[QueuedNotification] = []
        while self._waiting:
            item = self._waiting[0]
            if item.due > now or not held.isdisjoint(item.encoded.rooms):
                held.update(item.encoded.rooms)
                passed.append(item)
            elif load.add(item.encoded):
                taken.append(item)
                self._waiting_bytes -= len(item.encoded.body)
            else:
                break
            self._waiting.popleft()
        self._waiting.extendleft(reversed(passed))
        self._in_flight.update(taken)
        return taken

    def next_due(self, now: float) -> float | None:
        """Return when the next batch is due; None if that depends on a response or a call."""
        if self._is_busy:
            return None
        return min((item.due for item in self._waiting if item.due > now), default=None)

    def expire(self, item: QueuedNotification) -> None:
        """Fail a notification at its deadline, with its last failure or with a timeout."""
        silence = responses.response_from_error(self._endpoint, TimeoutError()).error
        error = silence if item.failure is None else item.failure.error
        attempts = item.attempts + (item in self._in_flight)
        item.resolve(responses.failure_result(item.encoded, attempts, error))
        self.cancel(item)

    def apply_response(
        self, items: Sequence[QueuedNotification], answer: responses.ApiResponse, now: float
    ) -> None:
        """Apply the response to a ``POST /broadcast``; return members to retry to the queue."""
        for item in items:
            item.attempts += 1
        if responses.lacks_batch_route(answer):
            self._endpoint.has_batch_route = False
            return
        if answer.error is None:
            self._max_batch = min(self._max_batch * 2, MAX_BATCH_NOTIFICATIONS)
        elif (
            answer.status in _SPLITTABLE_STATUSES and not answer.is_misconfigured and len(items) > 1
        ):
            # The batch is too large, or one member causes the failure. Isolate it from the others.
            self._max_batch = len(items) // 2
            if not answer.retriable:
                return
        results = responses.read_batch(self._endpoint, answer, [item.encoded for item in items])
        attempts = max(item.attempts for item in items)
        for n, (item, result) in enumerate(zip(items, results, strict=True)):
            outcome = replace(result, attempts=item.attempts)
            if not responses.is_item_retryable(answer, n):
                item.resolve(outcome)
            elif (
                pause_s := retry.retry_delay_s(answer, attempts, item.deadline - now)
            ) is not None:
                item.due = now + pause_s
                item.failure = outcome
            elif answer.status is None and now >= item.deadline and item.failure is not None:
                # The attempt was cut short by the deadline; the previous failure is more specific.
                item.resolve(replace(outcome, error=item.failure.error))
            else:
                item.resolve(replace(outcome, error=retry.last_error(answer, outcome.error)))

    def release(self, items: Sequence[QueuedNotification]) -> None:
        """End a request: return its unfinished notifications to the front of the queue."""
        self._in_flight.difference_update(items)
        again = [item for item in items if not (item.is_settled or item.abandoned)]
        self._waiting.extendleft(reversed(again))
        self._waiting_bytes += sum(len(item.encoded.body) for item in again)

    def end(self, why: str) -> None:
        """Fail all queued notifications; nothing is sent any more."""
        while self._waiting:
            item = self._waiting.popleft()
            item.resolve(responses.failure_result(item.encoded, item.attempts, why))
        self._waiting_bytes = 0


_SPLITTABLE_STATUSES = (None, 400, 413, 422, 429, 500)
"""Statuses of a batch that smaller batches may avoid; None is a timeout."""
