"""What waits for the next request, and what becomes of it: pure, shared by both clients.

While a request is under way, what comes waits, and goes together in the next one. Rules:

- One ``POST /broadcast`` at a time; a server without that route gets :data:`MAX_CONCURRENT_SINGLES`
  single notifications at once, as it always did.
- What was asked for first leaves first in its room: nothing overtakes an earlier one there, also
  while that is being tried again. Other rooms do not wait for it.
- Each notification has its own deadline, its own attempts and its own result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..protocol.notification import MAX_BATCH_NOTIFICATIONS
from . import encoding, retry
from .result import BroadcastResult

MAX_CONCURRENT_SINGLES = 32
"""Requests under way at once to a server that takes one notification each."""

MAX_WAITING = 1000
"""Notifications that wait; whoever comes then waits until there is room."""

MAX_WAITING_BYTES = 4 * 1024 * 1024


def _nobody() -> None:
    pass


@dataclass(eq=False, slots=True)
class QueuedNotification:
    """One notification on its way, for the caller who waits for it.

    Attributes:
        deadline: when its caller stops waiting, by the monotonic clock.
        settled: called once there is a result, or an exception.
        due: not to be sent again before.
        failure: what the last attempt came to, while there may be another.
        leads: what its caller is to send; for callers that are threads.
        exception: what a transport raised that is no failure of the network.
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
        """The first result counts, and only while somebody waits for it."""
        if not (self.is_settled or self.abandoned):
            self.result = result
            self.done()

    def fail(self, exception: Exception) -> None:
        """:meth:`resolve`, for what a transport raised."""
        if not (self.is_settled or self.abandoned):
            self.exception = exception
            self.done()

    def outcome(self) -> BroadcastResult:
        """Once it is settled.

        Raises:
            Exception: what the transport raised.
        """
        if self.exception is not None:
            raise self.exception
        assert self.result is not None  # noqa: S101 - asked for once it is settled
        return self.result


class BatchQueue:
    """The queue of one client to one server."""

    def __init__(self, endpoint: encoding.Endpoint) -> None:
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
        """Whether another request has to end before the next can begin."""
        return len(self._in_flight) >= (
            1 if self._endpoint.has_batch_route else MAX_CONCURRENT_SINGLES
        )

    def add(self, item: QueuedNotification) -> None:
        """Put one at the end of the queue."""
        self._waiting.append(item)
        self._waiting_bytes += len(item.encoded.body)

    def cancel(self, item: QueuedNotification) -> None:
        """Its caller has gone: it is not sent (again), and nobody hears what comes of it."""
        item.abandoned = True
        if item in self._waiting:
            self._waiting.remove(item)
            self._waiting_bytes -= len(item.encoded.body)

    def next_batch(self, now: float) -> list[QueuedNotification]:
        """What the next request holds; empty while there can be none. :meth:`release` ends it."""
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
        """When there is more to take though nothing happens; None if something has to."""
        if self._is_busy:
            return None
        return min((item.due for item in self._waiting if item.due > now), default=None)

    def expire(self, item: QueuedNotification) -> None:
        """Its deadline has passed: its caller hears of the last failure, or of the silence."""
        silence = encoding.response_from_error(self._endpoint, TimeoutError()).error
        error = silence if item.failure is None else item.failure.error
        attempts = item.attempts + (item in self._in_flight)
        item.resolve(encoding.failure_result(item.encoded, attempts, error))
        self.cancel(item)

    def apply_response(
        self, items: Sequence[QueuedNotification], answer: encoding.ApiResponse, now: float
    ) -> None:
        """Settle what the answer to their ``POST /broadcast`` settles; the others wait again."""
        for item in items:
            item.attempts += 1
        if encoding.lacks_batch_route(answer):
            self._endpoint.has_batch_route = False
            return
        if answer.error is None:
            self._max_batch = min(self._max_batch * 2, MAX_BATCH_NOTIFICATIONS)
        elif (
            answer.status in _SPLITTABLE_STATUSES and not answer.is_misconfigured and len(items) > 1
        ):
            # Too much at once, or one of them is the trouble: the others are not to share it.
            self._max_batch = len(items) // 2
            if not answer.retriable:
                return
        results = encoding.read_batch(self._endpoint, answer, [item.encoded for item in items])
        attempts = max(item.attempts for item in items)
        for n, (item, result) in enumerate(zip(items, results, strict=True)):
            told = replace(result, attempts=item.attempts)
            if not encoding.is_item_retryable(answer, n):
                item.resolve(told)
            elif (
                pause_s := retry.retry_delay_s(answer, attempts, item.deadline - now)
            ) is not None:
                item.due = now + pause_s
                item.failure = told
            elif answer.status is None and now >= item.deadline and item.failure is not None:
                # Cut short by the deadline, it says less than the attempt before it.
                item.resolve(replace(told, error=item.failure.error))
            else:
                item.resolve(replace(told, error=retry.last_error(answer, told.error)))

    def release(self, items: Sequence[QueuedNotification]) -> None:
        """Their request is over: what is not settled waits again, before all the others."""
        self._in_flight.difference_update(items)
        again = [item for item in items if not (item.is_settled or item.abandoned)]
        self._waiting.extendleft(reversed(again))
        self._waiting_bytes += sum(len(item.encoded.body) for item in again)

    def end(self, why: str) -> None:
        """Nothing will be sent any more: all that wait fail."""
        while self._waiting:
            item = self._waiting.popleft()
            item.resolve(encoding.failure_result(item.encoded, item.attempts, why))
        self._waiting_bytes = 0


_SPLITTABLE_STATUSES = (None, 400, 413, 422, 429, 500)
"""Answers to many that fewer of them might not get; None is that none came in time."""
