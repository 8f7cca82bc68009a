"""Publish the lifecycle of a run to its recipients without delaying the run."""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, SupportsFloat

from ..broadcast import BackgroundBroadcaster, background_broadcaster
from ..broadcast.batch_queue import Order, QueuedNotification
from ..errors import InvalidInputError, deciding_error
from ..protocol.notification import Notification, now_as_timestamp
from ..protocol.rooms import Room
from ..tracing import TRACEPARENT, start_span
from .arguments import MAX_DELTA, check_delta, check_progress
from .folding import EventMembers, GrowingText, TextState
from .notifications import RunNotifications
from .recipients import Recipient

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 0.1
"""Minimum interval between progress updates of a job. In a long job it grows to 1 % of its age."""

MAX_PROGRESS_EVERY_S = 5.0


class ReporterState(enum.Enum):
    """The state of a reporter within its attempt."""

    PENDING = enum.auto()
    """Nothing was published yet."""
    RUNNING = enum.auto()
    """The attempt runs. Progress and deltas are published."""
    RETRYING = enum.auto()
    """The attempt has ended and a retry was announced. Only a terminal notification may follow."""
    FINISHED = enum.auto()
    """A terminal notification was published. Nothing may follow."""


@dataclass(slots=True)
class _RecipientStream:
    """The notifications posted to one recipient."""

    recipient: Recipient
    rooms: tuple[Room, ...]
    written: GrowingText
    members: EventMembers = field(default_factory=EventMembers)
    last: QueuedNotification | None = None
    kind: str = ""  # of the last notification; a queued one of the same kind is replaced
    progress_due: float = 0.0  # earliest time of the next progress update
    index: int = -1  # of the last delta
    text: str = ""  # of the last delta


class Reporter:
    """Publishes one run's notifications, in order, to all its recipients.

    An adapter creates one reporter for each invocation of a job's code and reports the outcome to
    it. Only :meth:`flush` blocks. Call it at the end of the invocation, so that all notifications
    of this process are sent before another process continues the run. No method raises for a
    network failure.
    """

    def __init__(
        self,
        lifecycle: RunNotifications,
        recipients: Iterable[Recipient],
        broadcaster: BackgroundBroadcaster | None = None,
        *,
        invocation_id: str = "",
        is_replay: Callable[[], bool] = lambda: False,
    ) -> None:
        """Create a reporter; nothing is sent yet.

        Args:
            recipients: one recipient, or those of a batch.
            broadcaster: default: the server of ``REALTIME_URL``.
            invocation_id: distinguishes this invocation of the code from others of the same
                attempt.
            is_replay: returns whether the code is replaying completed steps. Progress and deltas of
                a replay are not published.
        """
        self._lifecycle = lifecycle
        self._broadcaster = broadcaster or background_broadcaster()
        self._invocation_id = invocation_id
        self._is_replay = is_replay
        self._streams = []
        self._problems = []
        for recipient in dict.fromkeys(recipients):
            rooms, problems = recipient.rooms()
            self._problems += problems
            if rooms:
                written = GrowingText(lifecycle.text_key, lifecycle.fence)
                self._streams.append(_RecipientStream(recipient, rooms, written))
        # Reentrant: a job may report from several threads, and a signal handler or finalizer that
        # interrupts it must not wait for the lock that its own thread holds.
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._began = time.monotonic()
        self._progresses = 0
        self._stream = uuid.uuid4().hex[:12]
        self._state = ReporterState.PENDING
        self._problem: str | None = None
        self.span = start_span(
            lifecycle.job_type.name,
            "consumer",
            synap_realtime__run__id=lifecycle.run_id,
            synap_realtime__attempt=lifecycle.attempt,
        )

    @property
    def attempt(self) -> int:
        """The attempt that is reported, counted from 1."""
        return self._lifecycle.attempt

    @property
    def state(self) -> ReporterState:
        """The current state. It is FINISHED in a forked child's copy."""
        return ReporterState.FINISHED if self._is_foreign else self._state

    @property
    def _is_foreign(self) -> bool:
        """Whether this is a forked child's copy. Its lock may be held forever, so nothing acquires
        it.
        """
        return self._pid != os.getpid()

    def started(self) -> None:
        """Publish :meth:`RunNotifications.started`, and log invalid recipients once."""
        for problem in self._problems:
            logger.warning(
                "run %s of %s: %s; continuing; notifying %d remaining recipients",
                self._lifecycle.run_id,
                self._lifecycle.job_type.name,
                problem,
                len(self._streams),
            )
        self._publish(self._lifecycle.started())

    def progress(
        self,
        fraction: SupportsFloat | None,
        label: str | None = None,
        *,
        stall_after_s: SupportsFloat | timedelta | None = None,
        is_replay: bool | None = None,
    ) -> None:
        """Publish progress; see :func:`synap_realtime.progress`."""
        checked = check_progress(fraction, label, stall_after_s)
        if checked is None or self._is_foreign:
            return
        number, text, seconds = checked
        what = zlib.crc32(f"{number}:{text}".encode(errors="replace"))
        with self._lock:
            if not self._accepts_updates(is_replay):
                return
            self._progresses += 1
            n = f"{self._lifecycle.attempt}:{self._invocation_id}:{self._progresses}:{what:08x}"
            notification = self._lifecycle.progress(n, number, text, seconds)
            now = time.monotonic()
            pause_s = min(max((now - self._began) / 100, PROGRESS_EVERY_S), MAX_PROGRESS_EVERY_S)
            for stream in self._streams:
                if not stream.members.reports_progress:
                    continue
                if stream.kind == "progress" and self._replace(stream, notification):
                    continue
                due = max(now, stream.progress_due)
                stream.progress_due = due + pause_s
                self._post(stream, notification, due=due)
                stream.kind = "progress"

    def suspended(self, what: str) -> None:
        """Report that the job waits for an event that may take any time, so it never counts as
        stalled.
        """
        self._publish(self._lifecycle.suspended(what))

    def delta(self, text: str, *, is_replay: bool | None = None) -> None:
        """Publish a piece of text (:func:`synap_realtime.delta`). Queued pieces are coalesced."""
        pieces = check_delta(text)
        if self._is_foreign:
            return
        with self._lock:
            if not self._accepts_updates(is_replay):
                return
            for stream in self._streams:
                for piece in pieces:
                    self._append_delta(stream, piece)

    def retrying(
        self,
        error: BaseException | str,
        *,
        step: str = "run",
        retry_in_s: float | None = None,
        max_attempts: int | None = None,
    ) -> None:
        """Publish :meth:`RunNotifications.retrying`."""
        self._problem = "failed; a retry follows"
        lifecycle = self._lifecycle
        if max_attempts is not None:
            lifecycle = replace(lifecycle, max_attempts=max_attempts)
        notification = lifecycle.retrying(error, step=step, retry_in_s=retry_in_s)
        self._publish(notification, ReporterState.RETRYING)

    def attempt_failed(self, error: Exception, *, retry_in_s: float | None) -> bool:
        """Publish the failure of an attempt for an adapter that decides about retries itself."""
        if retry_in_s is None or isinstance(deciding_error(error), InvalidInputError):
            self.failed(error)
            return False
        self.retrying(error, retry_in_s=retry_in_s)
        return True

    def completed(self, result: object) -> None:
        """Publish :meth:`RunNotifications.completed`."""
        self._publish(self._lifecycle.completed(result), ReporterState.FINISHED)

    def completed_batch(self, results: Mapping[Recipient, object]) -> None:
        """Publish :meth:`completed` with a separate result for each recipient of a batch."""
        if self._is_foreign:
            return
        with self._lock:
            if self._state is ReporterState.FINISHED:
                return
            for stream in self._streams:
                self._post(stream, self._lifecycle.completed(results.get(stream.recipient)))
            self._state = ReporterState.FINISHED

    def failed(self, error: BaseException | str) -> None:
        """Publish :meth:`RunNotifications.failed`."""
        self._problem = "failed"
        self._publish(self._lifecycle.failed(error), ReporterState.FINISHED)

    def cancelled(self) -> None:
        """Publish :meth:`RunNotifications.cancelled`."""
        self._problem = "cancelled"
        self._publish(self._lifecycle.cancelled(), ReporterState.FINISHED)

    def flush(self) -> None:
        """Wait a few seconds until the server has all notifications; do not wait if it is
        unavailable.
        """
        for posted in self._unflushed():
            self._broadcaster.wait_sent(posted)

    async def aflush(self) -> None:
        """Asynchronous variant of :meth:`flush`."""
        for posted in self._unflushed():
            await self._broadcaster.await_sent(posted)

    def _unflushed(self) -> list[QueuedNotification]:
        if self._is_foreign:
            return []  # the parent of a forked child sends them; waiting here would never end
        self.span.end(self._problem)
        return [stream.last for stream in self._streams if stream.last is not None]

    def _accepts_updates(self, is_replay: bool | None) -> bool:
        if self._state not in (ReporterState.PENDING, ReporterState.RUNNING):
            return False
        if is_replay if is_replay is not None else self._is_replay():
            return False
        self._state = ReporterState.RUNNING
        return True

    def _publish(
        self, notification: Notification, state: ReporterState = ReporterState.RUNNING
    ) -> None:
        if self._is_foreign:
            return
        with self._lock:
            final_states = [ReporterState.FINISHED]
            if state is ReporterState.RUNNING:
                final_states.append(ReporterState.RETRYING)
            if self._state in final_states:
                return
            for stream in self._streams:
                self._post(stream, notification)
            self._state = state

    def _append_delta(self, stream: _RecipientStream, piece: str) -> None:
        if stream.written.state is TextState.STOPPED:
            return
        offset = stream.written.append(piece)
        joined = stream.text + piece
        if stream.kind == "delta" and len(joined) <= MAX_DELTA:
            notification = self._lifecycle.delta(self._stream, stream.index, joined)
            placed = stream.written.placed(notification, offset - len(stream.text))
            if self._replace(stream, notification, placed):
                stream.text = joined
                return
        stream.index += 1
        stream.text = piece
        notification = self._lifecycle.delta(self._stream, stream.index, piece)
        self._post(stream, notification, placed=stream.written.placed(notification, offset))
        stream.kind = "delta"

    def _post(
        self,
        stream: _RecipientStream,
        notification: Notification,
        *,
        due: float = 0.0,
        placed: Mapping[str, Any] | None = None,
    ) -> None:
        """Queue a notification.

        Args:
            due: the earliest time to send it, by the monotonic clock.
            placed: for a piece of the text: :meth:`GrowingText.placed`.
        """
        stream.kind = ""
        is_piece = placed is not None
        # The end of the run ends its text, so all pieces must have been taken before. Deltas go to
        # the request's room only: a server that does not fold them retains a limited number of
        # notifications for a room, and deltas are numerous.
        order = Order.PIECE if is_piece else Order.FREE
        if notification.status in ("success", "error"):
            order = Order.AFTER_PIECES
        try:
            stream.last = self._broadcaster.post(
                stream.rooms[-1:] if is_piece else stream.rooms,
                self._for_recipient(stream, notification, placed),
                due=due,
                after=stream.last,
                order=order,
                correct=stream.written.correct if is_piece else stream.members.correct,
            )
        except Exception:  # noqa: BLE001 - logged with its traceback
            self._log_unpublished(notification)

    def _replace(
        self,
        stream: _RecipientStream,
        notification: Notification,
        placed: Mapping[str, Any] | None = None,
    ) -> bool:
        if stream.last is None:
            return False
        try:
            complete = self._for_recipient(stream, notification, placed)
            return self._broadcaster.replace(stream.last, complete)
        except Exception:  # noqa: BLE001 - logged with its traceback
            self._log_unpublished(notification)
            return True

    def _log_unpublished(self, notification: Notification) -> None:
        """Log a notification that could not be published. It must not fail the job."""
        logger.exception(
            "run %s: publishing %s failed; the job continues",
            self._lifecycle.run_id,
            notification.type,
        )

    def _for_recipient(
        self,
        stream: _RecipientStream,
        notification: Notification,
        placed: Mapping[str, Any] | None,
    ) -> Notification:
        members: dict[str, Any] = {
            "request_id": stream.recipient.request_id,
            "timestamp": now_as_timestamp(),
            **(placed or {}),
        }
        if (traceparent := self.span.traceparent) is not None:
            members[TRACEPARENT] = traceparent
        user_id, _ = stream.recipient.ids
        return stream.members.complete(notification, members, user_id)
