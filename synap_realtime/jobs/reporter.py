"""Telling the people who wait for a run how it stands, without making the run wait for it."""

from __future__ import annotations

import enum
import logging
import os
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import SupportsFloat

from ..broadcast import BackgroundBroadcaster, background_broadcaster
from ..broadcast.background import PendingNotification
from ..errors import InvalidInputError, deciding_error
from ..protocol.notification import Notification, format_timestamp
from ..protocol.rooms import Room
from ..tracing import TRACEPARENT, start_span
from .arguments import MAX_DELTA, check_delta, check_progress
from .notifications import RunNotifications
from .recipients import Recipient

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 0.1
"""At most so often a job's progress is sent; that of a long job every hundredth of its age."""

MAX_PROGRESS_EVERY_S = 5.0


class ReporterState(enum.Enum):
    """Where a reporter is in the life of its attempt."""

    PENDING = enum.auto()
    """Nothing was published."""
    RUNNING = enum.auto()
    """The attempt runs: progress and text are published."""
    RETRYING = enum.auto()
    """The attempt is over and another was announced: only a terminal notification may follow."""
    FINISHED = enum.auto()
    """A terminal notification was published: nothing may follow."""


@dataclass(slots=True)
class _RecipientStream:
    """What was posted to one of the people."""

    recipient: Recipient
    rooms: tuple[Room, ...]
    last: PendingNotification | None = None
    kind: str = ""  # of the last: what may take its place while it waits
    progress_due: float = 0.0  # when the next may leave
    index: int = -1  # of the last delta
    text: str = ""  # of the last delta


class Reporter:
    """Publishes one run's notifications, in order, to everyone who waits for it.

    An adapter makes one for each call of a job's code and says what happened. Nothing waits but
    :meth:`flush`, which belongs to the end of the call: what was told in this process must be out
    before another goes on with the run. Telling never raises for the network's sake.
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
        """Make a reporter; nothing is sent yet.

        Args:
            people: who waits: one, or those of a batch.
            broadcaster: default: the server of ``REALTIME_URL``.
            call: tells this call of the code from others of the same attempt.
            is_replaying: whether the code goes through what it has done before: then what it says
                about itself is no news.
        """
        self._lifecycle = lifecycle
        self._broadcaster = broadcaster or background_broadcaster()
        self._call = invocation_id
        self._is_replaying = is_replay
        self._streams = []
        self._problems = []
        for recipient in dict.fromkeys(recipients):
            rooms, problems = recipient.rooms()
            self._problems += problems
            if rooms:
                self._streams.append(_RecipientStream(recipient, rooms))
        # A job may report from several threads, and a handler that runs in the middle of it (a
        # signal's, a finalizer) must not wait for the lock that its own thread holds.
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
        """Which attempt is told, from 1."""
        return self._lifecycle.attempt

    @property
    def state(self) -> ReporterState:
        """FINISHED in every process but the one that made it."""
        return ReporterState.FINISHED if self._is_foreign else self._state

    @property
    def _is_foreign(self) -> bool:
        """Whether this is a forked child's copy. Its lock may be held for ever: nobody takes it."""
        return self._pid != os.getpid()

    def started(self) -> None:
        """See :meth:`Lifecycle.started`. What is wrong with who waits is logged now, once a run."""
        for problem in self._problems:
            logger.warning(
                "run %s of %s: %s; it runs, and %d others are told",
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
        """See :func:`synap_realtime.progress`.

        Args:
            is_replay: whether the code goes through what it has done before, where the caller
                knows; default: as ``is_replaying`` says.
        """
        checked = check_progress(fraction, label, stall_after_s)
        if checked is None or self._is_foreign:
            return
        number, text, seconds = checked
        what = zlib.crc32(f"{number}:{text}".encode(errors="replace"))
        with self._lock:
            if not self._accepts_updates(is_replay):
                return
            self._progresses += 1
            n = f"{self._lifecycle.attempt}:{self._call}:{self._progresses}:{what:08x}"
            told = self._lifecycle.progress(n, number, text, seconds)
            now = time.monotonic()
            pause_s = min(max((now - self._began) / 100, PROGRESS_EVERY_S), MAX_PROGRESS_EVERY_S)
            for line in self._streams:
                if line.kind == "progress" and self._replace(line, told):
                    continue
                due = max(now, line.progress_due)
                line.progress_due = due + pause_s
                self._post(line, told, due=due)
                line.kind = "progress"

    def suspended(self, what: str) -> None:
        """The job waits for something that may take any time: no silence is too long."""
        self._publish(self._lifecycle.suspended(what))

    def delta(self, text: str, *, is_replay: bool | None = None) -> None:
        """See :func:`synap_realtime.delta`. Pieces that wait for the network become one.

        Args:
            is_replay: as for :meth:`progress`.
        """
        pieces = check_delta(text)
        if self._is_foreign:
            return
        with self._lock:
            if not self._accepts_updates(is_replay):
                return
            for line in self._streams:
                for piece in pieces:
                    self._append_delta(line, piece)

    def retrying(
        self,
        error: BaseException | str,
        *,
        step: str = "run",
        retry_in_s: float | None = None,
        max_attempts: int | None = None,
    ) -> None:
        """See :meth:`Lifecycle.retrying`.

        Args:
            max_attempts: as it is from here on, if this attempt has changed it.
        """
        self._problem = "failed, and will be tried again"
        lifecycle = self._lifecycle
        if max_attempts is not None:
            lifecycle = replace(lifecycle, max_attempts=max_attempts)
        notification = lifecycle.retrying(error, step=step, retry_in_s=retry_in_s)
        self._publish(notification, ReporterState.RETRYING)

    def attempt_failed(self, error: Exception, *, retry_in_s: float | None) -> bool:
        """An attempt failed, where the adapter itself decides whether another comes.

        Args:
            again_in_s: when the next attempt would come; None if there is none left.

        Returns:
            whether to try again: not after an :class:`InvalidInputError`, alone or in a group.
        """
        if retry_in_s is None or isinstance(deciding_error(error), InvalidInputError):
            self.failed(error)
            return False
        self.retrying(error, retry_in_s=retry_in_s)
        return True

    def completed(self, result: object) -> None:
        """See :meth:`Lifecycle.completed`."""
        self._publish(self._lifecycle.completed(result), ReporterState.FINISHED)

    def completed_batch(self, results: Mapping[Recipient, object]) -> None:
        """:meth:`completed`, with a result for each person: nobody reads another's."""
        if self._is_foreign:
            return
        with self._lock:
            if self._state is ReporterState.FINISHED:
                return
            for line in self._streams:
                self._post(line, self._lifecycle.completed(results.get(line.recipient)))
            self._state = ReporterState.FINISHED

    def failed(self, error: BaseException | str) -> None:
        """See :meth:`Lifecycle.failed`."""
        self._problem = "failed"
        self._publish(self._lifecycle.failed(error), ReporterState.FINISHED)

    def cancelled(self) -> None:
        """See :meth:`Lifecycle.cancelled`."""
        self._problem = "cancelled"
        self._publish(self._lifecycle.cancelled(), ReporterState.FINISHED)

    def flush(self) -> None:
        """Wait until the server has what was told: a few seconds, and not for one that is away."""
        for posted in self._unflushed():
            self._broadcaster.wait_sent(posted)

    async def aflush(self) -> None:
        """:meth:`flush` for code that awaits."""
        for posted in self._unflushed():
            await self._broadcaster.await_sent(posted)

    def _unflushed(self) -> list[PendingNotification]:
        if self._is_foreign:
            return []  # a forked child's parent sends them, and nothing here would ever answer
        self.span.end(self._problem)
        return [line.last for line in self._streams if line.last is not None]

    def _accepts_updates(self, is_replay: bool | None) -> bool:
        if self._state not in (ReporterState.PENDING, ReporterState.RUNNING):
            return False
        if is_replay if is_replay is not None else self._is_replaying():
            return False
        self._state = ReporterState.RUNNING
        return True

    def _publish(
        self, notification: Notification, state: ReporterState = ReporterState.RUNNING
    ) -> None:
        if self._is_foreign:
            return
        with self._lock:
            refused_in = [ReporterState.FINISHED]
            if state is ReporterState.RUNNING:
                refused_in.append(ReporterState.RETRYING)
            if self._state in refused_in:
                return
            for line in self._streams:
                self._post(line, notification)
            self._state = state

    def _append_delta(self, line: _RecipientStream, piece: str) -> None:
        joined = line.text + piece
        if line.kind == "delta" and len(joined) <= MAX_DELTA:
            told = self._lifecycle.delta(self._stream, line.index, joined)
            if self._replace(line, told):
                line.text = joined
                return
        line.index += 1
        line.text = piece
        # Only to who asked for it: a room keeps so many notifications, and these are many.
        told = self._lifecycle.delta(self._stream, line.index, piece)
        self._post(line, told, rooms=line.rooms[-1:])
        line.kind = "delta"

    def _post(
        self,
        line: _RecipientStream,
        notification: Notification,
        *,
        due: float = 0.0,
        rooms: tuple[Room, ...] = (),
    ) -> None:
        line.kind = ""
        try:
            line.last = self._broadcaster.post(
                rooms or line.rooms,
                self._for_recipient(line, notification),
                due=due,
                after=line.last,
            )
        except Exception:  # noqa: BLE001 - it is logged with its traceback
            self._log_unpublished(notification)

    def _replace(self, line: _RecipientStream, notification: Notification) -> bool:
        if line.last is None:
            return False
        try:
            return self._broadcaster.replace(line.last, self._for_recipient(line, notification))
        except Exception:  # noqa: BLE001 - it is logged with its traceback
            self._log_unpublished(notification)
            return True

    def _log_unpublished(self, notification: Notification) -> None:
        """A job must not fail because a notification about it does."""
        logger.exception(
            "run %s: %s cannot be published; the job goes on",
            self._lifecycle.run_id,
            notification.type,
        )

    def _for_recipient(self, line: _RecipientStream, notification: Notification) -> Notification:
        now = format_timestamp(datetime.now(UTC))
        members = {"request_id": line.recipient.request_id, "timestamp": now}
        if (traceparent := self.span.traceparent) is not None:
            members[TRACEPARENT] = traceparent
        return notification.model_copy(update=members)
