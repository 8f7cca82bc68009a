"""Taskiq: tasks that tell their user how they stand."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..broadcast import BackgroundBroadcaster
from ..errors import ConfigurationError, InvalidInputError
from ..extras import needed_by
from ..jobs import Family, Lifecycle, Person, Reporter, running
from ..jobs.extent import extent_of
from ..jobs.lifecycle import STALL_AFTER_S

with needed_by("the Taskiq integration", "taskiq"):
    from taskiq import SimpleRetryMiddleware, SmartRetryMiddleware, TaskiqMiddleware
    from taskiq.exceptions import NoResultError, TaskRejectedError
    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult

logger = logging.getLogger(__name__)

FAMILY_LABEL = "family"

RETRIES_LABEL = "_retries"
"""Of Taskiq's retry middlewares: how many there have been."""

REQUEUES_LABEL = "X-Taskiq-requeue"
"""Of Taskiq's ``Context.requeue()``: how often it was called."""


class ToldMiddleware(TaskiqMiddleware):
    """Tells the user of each task that has the label ``family``.

    ::

        broker = ListQueueBroker(url).with_middlewares(
            SmartRetryMiddleware(default_retry_count=3), ToldMiddleware()
        )

        @broker.task(family="report.creation", retry_on_error=True)
        async def create_report(title: str, user_id: str, request_id: str) -> dict[str, str]:
            progress(0.5, "Rendering")
            return {"url": await render(title)}

    It comes after the retry middleware. The user hears ``started``, ``progress`` where the task
    says it, ``retrying`` before the next attempt is sent, then ``completed``, ``failed`` or
    ``cancelled``. An :class:`InvalidInputError` is final. What a task tells is out before it is
    acknowledged (by default, Taskiq acknowledges when the result is saved). Who waits is
    ``user_id`` and ``request_id`` (or ``userId``, ``requestId``) among the keyword arguments, or
    in the first argument that is a mapping.
    """

    def __init__(
        self,
        broadcaster: BackgroundBroadcaster | None = None,
        *,
        person: Callable[[Sequence[Any], Mapping[str, Any]], Person] | None = None,
        stall_after_s: float = STALL_AFTER_S,
    ) -> None:
        """Make the middleware.

        Args:
            broadcaster: default: the server of ``REALTIME_URL``.
            person: who waits, from the positional and the keyword arguments.
            stall_after_s: how long it is normal to hear nothing of a task.
        """
        super().__init__()
        self._broadcaster = broadcaster
        self._person = person or Person.of_call
        self._stall_after_s = stall_after_s

    async def startup(self) -> None:
        """The broker starts.

        Raises:
            ConfigurationError: a retry middleware comes after this one.
        """
        middlewares = self.broker.middlewares
        for each in middlewares[middlewares.index(self) :]:
            if isinstance(each, SimpleRetryMiddleware | SmartRetryMiddleware):
                name = type(each).__name__
                raise ConfigurationError(f"ToldMiddleware() must come after {name}()")

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        attempt = None
        stack = ExitStack()
        # With InMemoryBroker, the task that has sent this one may be a job of somebody else.
        stack.enter_context(extent_of(None))
        if family := message.labels.get(FAMILY_LABEL):
            try:
                attempt = self._begin(Family(str(family)), message)
                stack.enter_context(running(attempt.reporter))
            except Exception:
                logger.exception(
                    "task %s of %s runs, but nobody is told", message.task_id, message.task_name
                )
        _call.set(_Call(attempt, stack, _call.get()))
        return message

    async def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        if attempt := _current_attempt():
            attempt.error = exception
        if isinstance(exception, InvalidInputError):
            message.labels["retry_on_error"] = "False"  # the retry middleware comes next

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """A retry is a task that is sent again after its error, whoever does it."""
        attempt = _current_attempt()
        if attempt and attempt.error is not None and attempt.task_id == message.task_id:
            is_smart = isinstance(self._retries(), SmartRetryMiddleware)
            delay = message.labels.get("delay") if is_smart else None
            in_s = None if delay is None else float(delay)
            attempt.reporter.retrying(attempt.error, in_s=in_s)
            attempt.goes_on = True
            await attempt.reporter.asettle()
        return message

    async def post_execute(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        if (call := _call.get()) is None:
            return
        _call.set(call.outer)
        call.extent.close()
        if (attempt := call.attempt) is None:
            return
        reporter, error = attempt.reporter, attempt.error
        if error is None:
            reporter.completed(result.return_value)
        elif self._is_scheduled(message, attempt):
            reporter.retrying(error, in_s=self._pause_s(message))
        elif attempt.goes_on or _number(message, REQUEUES_LABEL) > attempt.requeues:
            pass
        elif isinstance(error, asyncio.CancelledError | NoResultError | TaskRejectedError):
            reporter.cancelled()
        else:
            reporter.failed(error)
        await reporter.asettle()

    def _begin(self, family: Family, message: TaskiqMessage) -> _Attempt:
        retries = _number(message, RETRIES_LABEL)
        lifecycle = Lifecycle(
            family,
            message.task_id,
            attempt=retries + 1,
            max_attempts=self._max_attempts(message.labels),
            stall_after_s=self._stall_after_s,
        )
        person = self._person(message.args, message.kwargs)
        reporter = Reporter(lifecycle, [person], self._broadcaster)
        requeues = _number(message, REQUEUES_LABEL)
        return _Attempt(message.task_id, retries, requeues, reporter)

    def _retries(self) -> SimpleRetryMiddleware | SmartRetryMiddleware | None:
        for each in self.broker.middlewares:
            if isinstance(each, SimpleRetryMiddleware | SmartRetryMiddleware):
                return each
        return None

    def _max_attempts(self, labels: Mapping[str, Any]) -> int:
        """Taskiq's ``max_retries`` counts the first attempt, too."""
        retries = self._retries()
        if retries is None:
            return 1
        wanted = labels.get("retry_on_error", retries.default_retry_label)
        if str(wanted).lower() != "true":
            return 1
        return max(1, int(labels.get("max_retries", retries.default_retry_count)))

    def _is_scheduled(self, message: TaskiqMessage, attempt: _Attempt) -> bool:
        """Whether a schedule has the next attempt, which is not sent from here, then."""
        retries = self._retries()
        return (
            not attempt.goes_on
            and isinstance(retries, SmartRetryMiddleware)
            and retries.schedule_source is not None
            and _number(message, RETRIES_LABEL) > attempt.retries
        )

    def _pause_s(self, message: TaskiqMessage) -> float | None:
        retries = self._retries()
        if not isinstance(retries, SmartRetryMiddleware):
            return None
        return retries.make_delay(message, _number(message, RETRIES_LABEL))


@dataclass(slots=True)
class _Attempt:
    task_id: str
    retries: int
    requeues: int
    reporter: Reporter
    error: BaseException | None = None
    goes_on: bool = False  # in another attempt, which has been told


@dataclass(frozen=True, slots=True)
class _Call:
    """Of a task's code. One that nobody is told of has no attempt."""

    attempt: _Attempt | None
    extent: ExitStack
    outer: _Call | None  # of the task that has started this one, in the same process


_call: ContextVar[_Call | None] = ContextVar("synap_realtime_taskiq_call", default=None)


def _current_attempt() -> _Attempt | None:
    call = _call.get()
    return call.attempt if call else None


def _number(message: TaskiqMessage, label: str) -> int:
    return int(message.labels.get(label, 0))
