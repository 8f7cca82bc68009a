"""Telling the people who wait for a run how it stands, without making the run wait for it."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ..broadcast import BackgroundBroadcaster, background_broadcaster
from ..broadcast.background import Posted
from ..errors import InvalidArgumentError, InvalidInputError
from ..protocol.notification import Notification, format_timestamp
from ..protocol.rooms import Room
from ..tracing import TRACEPARENT, begin
from .lifecycle import Lifecycle
from .people import Person

logger = logging.getLogger(__name__)

PROGRESS_EVERY_S = 0.1
"""At most so often a job's progress is sent; that of a long job every hundredth of its age."""

MAX_PROGRESS_EVERY_S = 5.0

MAX_DELTA = 16 * 1024
"""Characters of one delta; a longer text is more than one."""


@dataclass(slots=True)
class _Line:
    """What was posted to one of the people."""

    person: Person
    rooms: tuple[Room, ...]
    last: Posted | None = None
    kind: str = ""  # of the last: what may take its place while it waits
    progress_due: float = 0.0  # when the next may leave
    index: int = -1  # of the last delta
    text: str = ""  # of the last delta


class Reporter:
    """Publishes one run's notifications, in order, to everyone who waits for it.

    An adapter makes one for each call of a job's code and says what happened. Nothing waits but
    :meth:`settle`, which belongs to the end of the call: what was told in this process must be out
    before another goes on with the run. Telling never raises for the network's sake.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        people: Iterable[Person],
        broadcaster: BackgroundBroadcaster | None = None,
        *,
        call: str = "",
        is_replaying: Callable[[], bool] = lambda: False,
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
        self._call = call
        self._is_replaying = is_replaying
        self._lines = []
        self._problems = []
        for person in dict.fromkeys(people):
            rooms, problems = person.rooms()
            self._problems += problems
            if rooms:
                self._lines.append(_Line(person, rooms))
        self._lock = threading.Lock()  # a job may tell from several threads
        self._began = time.monotonic()
        self._progresses = 0
        self._stream = uuid.uuid4().hex[:12]
        self._ended = False
        self._problem: str | None = None
        self.span = begin(
            lifecycle.family.name,
            "consumer",
            synap_realtime__run__id=lifecycle.run_id,
            synap_realtime__attempt=lifecycle.attempt,
        )

    @property
    def attempt(self) -> int:
        """Which attempt is told, from 1."""
        return self._lifecycle.attempt

    def started(self) -> None:
        """See :meth:`Lifecycle.started`. What is wrong with who waits is logged now, once a run."""
        for problem in self._problems:
            logger.warning(
                "run %s of %s: %s; it runs, and %d others are told",
                self._lifecycle.run_id,
                self._lifecycle.family.name,
                problem,
                len(self._lines),
            )
        self._tell(self._lifecycle.started())

    def progress(
        self,
        fraction: float | None,
        label: str | None = None,
        *,
        stall_after_s: float | None = None,
    ) -> None:
        """See :func:`synap_realtime.progress`."""
        fraction = _fraction(fraction)
        if not isinstance(label, str | None):
            raise InvalidArgumentError("label", f"expected text, got {type(label).__name__}")
        what = zlib.crc32(f"{fraction}:{label}".encode(errors="replace"))
        with self._lock:
            if self._ended or self._is_replaying():
                return
            self._progresses += 1
            n = f"{self._lifecycle.attempt}:{self._call}:{self._progresses}:{what:08x}"
            told = self._lifecycle.progress(n, fraction, label, _seconds(stall_after_s))
            now = time.monotonic()
            pause_s = min(max((now - self._began) / 100, PROGRESS_EVERY_S), MAX_PROGRESS_EVERY_S)
            for line in self._lines:
                if line.kind == "progress" and self._replace(line, told):
                    continue
                due = max(now, line.progress_due)
                line.progress_due = due + pause_s
                self._post(line, told, due=due)
                line.kind = "progress"

    def waits(self, what: str) -> None:
        """The job waits for something that may take any time: no silence is too long."""
        self._tell(self._lifecycle.waits(what))

    def delta(self, text: str) -> None:
        """See :func:`synap_realtime.delta`. Pieces that wait for the network become one."""
        if not isinstance(text, str):
            raise InvalidArgumentError("text", f"expected text, got {type(text).__name__}")
        text = text.encode(errors="replace").decode()
        pieces = [text[start : start + MAX_DELTA] for start in range(0, len(text), MAX_DELTA)]
        with self._lock:
            if self._ended or self._is_replaying():
                return
            for line in self._lines:
                for piece in pieces:
                    self._add(line, piece)

    def retrying(
        self, error: BaseException | str, *, part: str = "run", in_s: float | None = None
    ) -> None:
        """See :meth:`Lifecycle.retrying`."""
        self._problem = "failed, and will be tried again"
        self._tell(self._lifecycle.retrying(error, part=part, in_s=in_s))

    def raised(self, error: Exception, *, again_in_s: float | None) -> bool:
        """An attempt failed, where the adapter itself decides whether another comes.

        Args:
            again_in_s: when the next attempt would come; None if there is none left.

        Returns:
            whether to try again: not after an :class:`InvalidInputError`.
        """
        if again_in_s is None or isinstance(error, InvalidInputError):
            self.failed(error)
            return False
        self.retrying(error, in_s=again_in_s)
        return True

    def completed(self, result: object) -> None:
        """See :meth:`Lifecycle.completed`."""
        self._end(self._lifecycle.completed(result))

    def completed_each(self, results: Mapping[Person, object]) -> None:
        """:meth:`completed`, with a result for each person: nobody reads another's."""
        with self._lock:
            for line in self._lines if not self._ended else ():
                self._post(line, self._lifecycle.completed(results.get(line.person)))
            self._ended = True

    def failed(self, error: BaseException | str) -> None:
        """See :meth:`Lifecycle.failed`."""
        self._problem = "failed"
        self._end(self._lifecycle.failed(error))

    def cancelled(self) -> None:
        """See :meth:`Lifecycle.cancelled`."""
        self._problem = "cancelled"
        self._end(self._lifecycle.cancelled())

    def settle(self) -> None:
        """Wait until the server has what was told: a few seconds, and not for one that is away."""
        self.span.end(self._problem)
        for line in self._lines:
            if line.last is not None:
                self._broadcaster.wait_for(line.last)

    async def asettle(self) -> None:
        """:meth:`settle` for code that awaits."""
        self.span.end(self._problem)
        for line in self._lines:
            if line.last is not None:
                await self._broadcaster.await_for(line.last)

    def _end(self, notification: Notification) -> None:
        self._tell(notification)
        self._ended = True

    def _tell(self, notification: Notification) -> None:
        with self._lock:
            for line in self._lines if not self._ended else ():
                self._post(line, notification)

    def _add(self, line: _Line, piece: str) -> None:
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
        line: _Line,
        notification: Notification,
        *,
        due: float = 0.0,
        rooms: tuple[Room, ...] = (),
    ) -> None:
        line.last = self._broadcaster.post(
            rooms or line.rooms, self._addressed(line, notification), due=due, after=line.last
        )
        line.kind = ""

    def _replace(self, line: _Line, notification: Notification) -> bool:
        assert line.last is not None  # noqa: S101 - there is a kind only if there is a last
        return self._broadcaster.replace(line.last, self._addressed(line, notification))

    def _addressed(self, line: _Line, notification: Notification) -> Notification:
        now = format_timestamp(datetime.now(UTC))
        members = {"request_id": line.person.request_id, "timestamp": now}
        if (traceparent := self.span.traceparent) is not None:
            members[TRACEPARENT] = traceparent
        return notification.model_copy(update=members)


def _fraction(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise InvalidArgumentError("fraction", f"expected a number from 0 to 1, got {value!r}")
    if not 0 <= value <= 1:
        logger.debug("progress(%r) is beyond 0 to 1", value)
    return min(max(float(value), 0.0), 1.0)


def _seconds(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise InvalidArgumentError("stall_after_s", f"expected seconds, more than 0; got {value!r}")
    return float(value)
