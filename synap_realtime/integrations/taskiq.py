"""Taskiq: tasks that tell their user how they stand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from taskiq import SimpleRetryMiddleware, SmartRetryMiddleware, TaskiqMiddleware
from taskiq.exceptions import NoResultError
from taskiq.message import TaskiqMessage
from taskiq.result import TaskiqResult

from ..broadcast import BackgroundBroadcaster
from ..jobs import Family, Lifecycle, Person, Reporter, running
from ..jobs.lifecycle import STALL_AFTER_S

FAMILY_LABEL = "family"


class ToldMiddleware(TaskiqMiddleware):
    """Tells the user of each task that has the label ``family``.

    ::

        broker = ListQueueBroker(url).with_middlewares(
            ToldMiddleware(), SmartRetryMiddleware(default_retry_count=3)
        )

        @broker.task(family="report.creation", retry_on_error=True)
        async def create_report(title: str, user_id: str, request_id: str) -> dict[str, str]:
            progress(0.5, "Rendering")
            return {"url": await render(title)}

    The user hears ``started``, ``progress`` where the task says it, ``retrying`` when a retry
    middleware of Taskiq tries again, then ``completed``, ``failed`` or ``cancelled``. What a task
    tells is out before it is acknowledged (by default, Taskiq acknowledges when the result is
    saved). Who waits is ``user_id`` and ``request_id`` (or ``userId``, ``requestId``) among the
    keyword arguments, or in the first argument that is a mapping.
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

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        if family := message.labels.get(FAMILY_LABEL):
            labels = message.labels
            lifecycle = Lifecycle(
                Family(str(family)),
                message.task_id,
                attempt=int(labels.get("_retries", 0)) + 1,
                max_attempts=self._max_attempts(labels),
                stall_after_s=self._stall_after_s,
            )
            person = self._person(message.args, message.kwargs)
            reporter = Reporter(lifecycle, [person], self._broadcaster)
            stack = ExitStack()
            stack.enter_context(running(reporter))
            _attempt.set(_Attempt(reporter, stack))
        return message

    async def on_error(
        self,
        message: TaskiqMessage,  # noqa: ARG002
        result: TaskiqResult[Any],  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        if (attempt := _attempt.get()) is not None:
            attempt.error = exception

    async def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        if (attempt := _attempt.get()) is None:
            return
        _attempt.set(None)
        attempt.stack.close()
        reporter, error = attempt.reporter, attempt.error
        if error is None:
            reporter.completed(result.return_value)
        elif isinstance(error, asyncio.CancelledError | NoResultError):
            reporter.cancelled()
        elif self._is_retried(message.labels, result):
            reporter.retrying(error, in_s=self._pause_s(message.labels))
        else:
            reporter.failed(error)
        await reporter.asettle()

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

    def _is_retried(self, labels: Mapping[str, Any], result: TaskiqResult[Any]) -> bool:
        """Whether a retry middleware, which has seen the error by now, has sent the task again."""
        retries = self._retries()
        if retries is not None and retries.no_result_on_retry:
            return isinstance(result.error, NoResultError)
        return int(labels.get("_retries", 0)) + 1 < self._max_attempts(labels)

    def _pause_s(self, labels: Mapping[str, Any]) -> float | None:
        retries = self._retries()
        if not isinstance(retries, SmartRetryMiddleware):
            return None
        return float(labels.get("delay", retries.default_delay))


@dataclass(slots=True)
class _Attempt:
    reporter: Reporter
    stack: ExitStack
    error: BaseException | None = None


_attempt: ContextVar[_Attempt | None] = ContextVar("synap_realtime_taskiq_attempt", default=None)
