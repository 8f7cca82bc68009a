"""Queue notifications, form requests, and apply the responses. Pure; the queue of all clients.

Notifications that arrive while a request is in flight are sent together in the next one. Rules:

- At most one ``POST /broadcast`` is in flight. A server without that route receives up to
  :data:`MAX_CONCURRENT_SINGLES` concurrent requests, one for each room of a notification.
- Notifications of a room are sent in the order of the calls, also while an earlier one is retried.
  Other rooms do not wait for it, unless the policy pauses the whole queue.
- Each notification has its own deadline, its own attempts and its own result.
- A notification that was rejected may be corrected by its sender. It is sent again before the later
  ones of its rooms that wait.
- The queue is bounded by count and bytes. While it is full, a client makes its callers wait, or
  drops the oldest notifications.

A client drives it from a task or a thread: :meth:`~BatchQueue.next_batch` returns notifications,
:meth:`~BatchQueue.begin` their request, and :meth:`~BatchQueue.apply_response` perhaps another one;
:meth:`~BatchQueue.release` ends the batch.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from itertools import chain

from ..protocol.notification import MAX_BATCH_NOTIFICATIONS
from ..protocol.rooms import Room
from . import responses
from .encoding import ApiRequest, BatchBudget, EncodedNotification, batch_request
from .endpoint import Endpoint
from .per_room import PerRoom, publish_per_room
from .responses import ApiResponse, Rejection
from .result import BroadcastResult
from .retry import RetryPolicy, last_error

MAX_CONCURRENT_SINGLES = 32
"""Maximum number of concurrent requests to a server without ``POST /broadcast``."""

MAX_QUEUED = 1000
"""Maximum queue length. Later callers wait for free space."""

MAX_QUEUED_BYTES = 4 * 1024 * 1024

MAX_CORRECTIONS = 8
"""Maximum number of times that one notification is corrected."""

_SPLITTABLE_STATUSES = (None, 400, 413, 422, 429, 500)
"""Statuses of a batch that smaller batches may avoid; None is a timeout."""


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """The bounds of a queue.

    Attributes:
        notifications: maximum number of queued notifications.
        bytes: maximum size of their JSON.
        batch: maximum number of notifications in one request.
        concurrent_singles: maximum number of concurrent requests to a server without
            ``POST /broadcast``.
    """

    notifications: int = MAX_QUEUED
    bytes: int = MAX_QUEUED_BYTES
    batch: int = MAX_BATCH_NOTIFICATIONS
    concurrent_singles: int = MAX_CONCURRENT_SINGLES


Correct = Callable[[EncodedNotification, Mapping[Room, Rejection]], Sequence[EncodedNotification]]
"""Returns what to send instead of a notification that some of its rooms have rejected, in order.
Nothing: the rejection is the result. A piece that the room has already counts as rejected, too. It
is called with the lock of the queue: it must be quick, and must not use the queue."""


class Order(Enum):
    """What a notification waits for, besides the earlier ones of its rooms being sent."""

    FREE = auto()
    """Nothing."""
    PIECE = auto()
    """Nothing, and notifications with :attr:`AFTER_PIECES` wait for its result."""
    AFTER_PIECES = auto()
    """The results of earlier pieces, because it ends their text."""


def _nobody() -> None:
    pass


@dataclass(eq=False, slots=True)
class QueuedNotification:
    """A queued notification.

    Attributes:
        deadline: when its caller stops waiting, by the monotonic clock.
        done: called once with the result or the exception.
        due: the earliest time of the next attempt.
        failure: the error of the last attempt that was retriable.
        batch: the batch that its caller must send, for callers that are threads.
        exception: a non-network error that a transport raised.
        per_room, call: its requests to a server without ``POST /broadcast``, and the current one.
        order: what it waits for.
        correct: corrects it if it is rejected.
        corrections: how often it was corrected.
        before: notifications that were split off by a correction and are sent before it.
    """

    encoded: EncodedNotification
    deadline: float = math.inf
    done: Callable[[], None] = _nobody
    due: float = 0.0
    attempts: int = 0
    abandoned: bool = False
    batch: list[QueuedNotification] = field(default_factory=list)
    failure: str | None = None
    result: BroadcastResult | None = None
    exception: Exception | None = None
    per_room: PerRoom | None = None
    call: ApiRequest | None = None
    order: Order = Order.FREE
    correct: Correct | None = None
    corrections: int = 0
    before: list[QueuedNotification] = field(default_factory=list)

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

    def __init__(
        self,
        endpoint: Endpoint,
        limits: QueueLimits | None = None,
        policy: RetryPolicy | None = None,
    ) -> None:
        self.limits = limits or QueueLimits()
        self._endpoint = endpoint
        self._policy = policy or RetryPolicy()
        self._waiting: deque[QueuedNotification] = deque()
        self._delayed: dict[QueuedNotification, None] = {}  # first attempts that are not due yet
        self._waiting_bytes = 0  # of both
        self._in_flight: dict[QueuedNotification, None] = {}
        self._max_batch = self.limits.batch
        self._paused_until = 0.0

    def __len__(self) -> int:
        """Return the number of notifications without an outcome."""
        return len(self._waiting) + len(self._delayed) + len(self._in_flight)

    def is_sending(self, item: QueuedNotification) -> bool:
        """Whether a request with the notification has not ended."""
        return item in self._in_flight

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._in_flight and not self._delayed

    @property
    def is_full(self) -> bool:
        limits = self.limits
        return len(self._waiting) >= limits.notifications or self._waiting_bytes >= limits.bytes

    @property
    def last(self) -> QueuedNotification | None:
        """The notification that is sent last, apart from delayed ones."""
        return self._waiting[-1] if self._waiting else next(reversed(self._in_flight), None)

    @property
    def _is_busy(self) -> bool:
        """Whether a request in flight must end before the next can start."""
        return len(self._in_flight) >= (
            1 if self._endpoint.has_batch_route else self.limits.concurrent_singles
        )

    def add(self, item: QueuedNotification) -> None:
        """Append a notification to the queue."""
        self._waiting.append(item)
        self._waiting_bytes += len(item.encoded.body)

    def add_delayed(self, item: QueuedNotification) -> None:
        """Append a notification to the queue when it is due. Until then, no other waits for it."""
        self._delayed[item] = None
        self._waiting_bytes += len(item.encoded.body)

    def expedite(self, items: Iterable[QueuedNotification] | None = None) -> None:
        """Append delayed notifications to the queue now; None means all."""
        for item in tuple(self._delayed) if items is None else items:
            if item in self._delayed:
                del self._delayed[item]
                item.due = 0.0
                self._waiting.append(item)

    def replace(self, item: QueuedNotification, encoded: EncodedNotification) -> bool:
        """Replace the content of a notification. Return False if it may have been sent already."""
        if item.attempts or item.is_settled or item in self._in_flight:
            return False
        self._waiting_bytes += len(encoded.body) - len(item.encoded.body)
        item.encoded = encoded
        return True

    def cancel(self, item: QueuedNotification) -> None:
        """Remove a notification whose caller was cancelled. It is not sent again."""
        item.abandoned = True
        if item in self._waiting:
            self._waiting.remove(item)
            self._waiting_bytes -= len(item.encoded.body)

    def evict_oldest(self, why: str) -> list[QueuedNotification]:
        """Fail the oldest notifications until the queue is within its limits, and return them.

        Notifications that were sent before stay, because the server may have them.
        """
        evicted: list[QueuedNotification] = []
        if not self._is_over_limits(0):
            return evicted
        sent = 0  # they come first: release() returns them to the front
        while sent < len(self._waiting) and self._waiting[sent].attempts:
            sent += 1
        while self._is_over_limits(sent):
            if len(self._waiting) > sent:
                item = self._waiting[sent]
                del self._waiting[sent]
            elif self._delayed:
                item = next(iter(self._delayed))
                del self._delayed[item]
            else:
                break
            self._waiting_bytes -= len(item.encoded.body)
            item.resolve(responses.failure_result(item.encoded, 0, why))
            evicted.append(item)
        return evicted

    def _is_over_limits(self, sent: int) -> bool:
        count = len(self._waiting) - sent + len(self._delayed)
        return count > self.limits.notifications or self._waiting_bytes > self.limits.bytes

    def next_batch(self, now: float) -> list[QueuedNotification]:
        """Return the notifications of the next request; empty if none can start. :meth:`release`
        ends it.
        """
        if self._delayed:
            self.expedite([item for item in self._delayed if item.due <= now])
        if not self._waiting or self._is_busy or now < self._paused_until:
            return []
        load = BatchBudget(self._max_batch if self._endpoint.has_batch_route else 1)
        held = {room for item in self._in_flight for room in item.encoded.rooms}
        taken: list[QueuedNotification] = []
        passed: list[QueuedNotification] = []
        with_pieces: set[Room] = set()
        while self._waiting:
            item = self._waiting[0]
            if (
                item.due > now
                or not held.isdisjoint(item.encoded.rooms)
                or (
                    item.order is Order.AFTER_PIECES
                    and not with_pieces.isdisjoint(item.encoded.rooms)
                )
            ):
                held.update(item.encoded.rooms)
                passed.append(item)
            elif load.add(item.encoded):
                taken.append(item)
                self._waiting_bytes -= len(item.encoded.body)
                if item.order is Order.PIECE:
                    with_pieces.update(item.encoded.rooms)
            else:
                break
            self._waiting.popleft()
        self._waiting.extendleft(reversed(passed))
        self._in_flight.update(dict.fromkeys(taken))
        return taken

    def next_due(self, now: float) -> float | None:
        """Return when the next batch is due; None if that depends on a response or a call."""
        if self._is_busy:
            return None
        if self._waiting and now < self._paused_until:
            return self._paused_until
        due = (item.due for item in chain(self._waiting, self._delayed) if item.due > now)
        return min(due, default=None)

    def is_paused(self, now: float) -> bool:
        """Whether the whole queue waits because the server is unreachable or unavailable."""
        return now < self._paused_until

    def expire(self, item: QueuedNotification) -> None:
        """Fail a notification at its deadline, with its last failure or with a timeout."""
        silence = responses.response_from_error(self._endpoint, TimeoutError()).error
        error = silence if item.failure is None else item.failure
        attempts = item.attempts + (item in self._in_flight)
        item.resolve(responses.failure_result(item.encoded, attempts, error))
        self.cancel(item)

    def begin(self, items: Sequence[QueuedNotification]) -> ApiRequest:
        """Return the request for a batch of :meth:`next_batch`."""
        first = items[0]
        if len(items) == 1 and not self._endpoint.has_batch_route:
            if first.per_room is None:
                first.per_room = publish_per_room(self._endpoint, first.encoded)
                first.call = next(first.per_room)
            assert first.call is not None  # noqa: S101 - set with per_room
            return first.call
        for item in items:
            item.per_room = None
        return batch_request([item.encoded for item in items])

    def apply_response(
        self, items: Sequence[QueuedNotification], answer: ApiResponse, now: float
    ) -> ApiRequest | None:
        """Apply the response to the last request; return the request to send next, if any.

        Notifications that are to be retried have a new ``due`` time, or go into the next batch.
        """
        for item in items:
            item.attempts += 1
        if (steps := items[0].per_room) is not None:
            return self._apply_to_room(items[0], steps, answer, now)
        self._apply_to_batch(items, answer, now)
        return None

    def _apply_to_batch(
        self, items: Sequence[QueuedNotification], answer: ApiResponse, now: float
    ) -> None:
        if responses.lacks_batch_route(answer):
            self._endpoint.has_batch_route = False
            return
        if answer.error is None:
            self._max_batch = min(self._max_batch * 2, self.limits.batch)
        elif (
            answer.status in _SPLITTABLE_STATUSES and not answer.is_misconfigured and len(items) > 1
        ):
            # The batch is too large, or one member causes the failure. Isolate it from the others.
            self._max_batch = len(items) // 2
            if not answer.retriable:
                return
        is_failed = answer.error is not None
        is_retriable = is_failed and self._policy.is_retriable(answer)
        delay_s: float | None = None
        given = responses.batch_results(answer, len(items))
        for item, each in zip(items, given, strict=True):
            result = responses.read_result(
                self._endpoint, answer, each, item.encoded, item.attempts
            )
            if is_retriable if is_failed else responses.is_unavailable(each):
                if delay_s is None:
                    delay_s = self._delay_s(answer, max(item.attempts for item in items), now)
                if self._schedule_retry(item, answer, result.error, now, delay_s):
                    continue
                result = replace(result, error=_final_error(item, answer, result.error, now))
            elif (
                not result.success
                and self._correct(item, responses.item_rejections(answer, each, item.encoded))
            ) or (
                result.duplicate
                and item.order is Order.PIECE
                and self._correct(item, dict.fromkeys(item.encoded.rooms, responses.REPEATED))
            ):
                continue
            item.resolve(result)

    def _apply_to_room(
        self, item: QueuedNotification, steps: PerRoom, answer: ApiResponse, now: float
    ) -> ApiRequest | None:
        if answer.error is not None and self._policy.is_retriable(answer):
            delay_s = self._delay_s(answer, item.attempts, now)
            if self._schedule_retry(item, answer, answer.error, now, delay_s):
                return None
            answer = replace(answer, error=_final_error(item, answer, answer.error, now))
        try:
            item.call = steps.send(answer)
        except StopIteration as done:
            result, rejections = done.value
            if self._correct(item, rejections):
                item.per_room = None
            else:
                item.resolve(replace(result, attempts=item.attempts))
            return None
        return item.call

    def _correct(self, item: QueuedNotification, rejections: Mapping[Room, Rejection]) -> bool:
        """Let the sender correct a notification. Return whether it is to be sent again."""
        if not rejections or item.correct is None or item.corrections >= MAX_CORRECTIONS:
            return False
        corrected = item.correct(item.encoded, rejections)
        if not corrected:
            return False
        item.corrections += 1
        *before, item.encoded = corrected
        item.before = [
            QueuedNotification(
                encoded, item.deadline, attempts=item.attempts, order=item.order,
                correct=item.correct, corrections=item.corrections,
            )
            for encoded in before
        ]  # fmt: skip
        return True

    def _delay_s(self, answer: ApiResponse, attempts: int, now: float) -> float:
        delay_s = self._policy.delay_s(answer, attempts)
        if self._policy.pauses_queue:
            self._paused_until = now + delay_s
        return delay_s

    def _schedule_retry(
        self,
        item: QueuedNotification,
        answer: ApiResponse,
        error: str | None,
        now: float,
        delay_s: float,
    ) -> bool:
        """Schedule the next attempt; return False if the deadline does not allow it."""
        if self._policy.stops(answer, delay_s, item.deadline - now):
            return False
        item.due = now + delay_s
        item.failure = error
        return True

    def fail(self, items: Sequence[QueuedNotification], error: Exception, *, is_own: bool) -> None:
        """Fail notifications whose request raised something else than a failure of the network.

        Args:
            is_own: whether the package's own transport raised it, which no caller expects.
        """
        for item in items:
            if is_own:
                item.resolve(responses.unsent(self._endpoint, item.encoded, error))
            else:
                item.fail(error)

    def release(self, items: Sequence[QueuedNotification]) -> None:
        """End a request: return its unfinished notifications to the front of the queue."""
        for item in items:
            self._in_flight.pop(item, None)
        again: list[QueuedNotification] = []
        for item in items:
            if not (item.is_settled or item.abandoned):
                again += (*item.before, item)
                item.before = []
        self._waiting.extendleft(reversed(again))
        self._waiting_bytes += sum(len(item.encoded.body) for item in again)

    def end(self, why: str) -> None:
        """Fail all queued notifications. Those in flight get the result of their request."""
        self.expedite()
        while self._waiting:
            item = self._waiting.popleft()
            item.resolve(responses.failure_result(item.encoded, item.attempts, why))
        self._waiting_bytes = 0


def _final_error(
    item: QueuedNotification, answer: ApiResponse, error: str | None, now: float
) -> str | None:
    """Return the error to report when the deadline allows no further attempt."""
    if answer.status is None and now >= item.deadline and item.failure is not None:
        # The attempt was cut short by the deadline; the previous failure is more specific.
        return item.failure
    return last_error(answer, error)
