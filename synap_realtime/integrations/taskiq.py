"""Taskiq: tasks that tell their user how they stand."""

from __future__ import annotations

import asyncio
import functools
import logging
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ..broadcast import BackgroundBroadcaster
from ..errors import ConfigurationError, InvalidInputError, deciding_error
from ..extras import needed_by
from ..jobs import JobType, Recipient, Reporter, RunNotifications, report_run
from ..jobs.arguments import check_stall_after_s
from ..jobs.extent import extent_of
from ..jobs.notifications import STALL_AFTER_S
from ..jobs.reporter import ReporterState

with needed_by("the Taskiq integration", "taskiq"):
    from taskiq import (
        AckableMessage,
        SimpleRetryMiddleware,
        SmartRetryMiddleware,
        TaskiqMiddleware,
    )
    from taskiq.exceptions import NoResultError, TaskRejectedError
    from taskiq.message import TaskiqMessage
    from taskiq.result import TaskiqResult
    from taskiq.utils import maybe_awaitable

logger = logging.getLogger(__name__)

JOB_TYPE_LABEL = "job_type"

LAST_CHANCE_S = 0.2
"""How long a stopping worker lets tasks end that are just ending."""

RETRIES_LABEL = "_retries"
"""Of Taskiq's retry middlewares: how many there have been."""

REQUEUES_LABEL = "X-Taskiq-requeue"
"""Of Taskiq's ``Context.requeue()``: how often it was called."""


class RealtimeMiddleware(TaskiqMiddleware):
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

    A run ends also when Taskiq leaves a task behind: because the worker stops and does not wait for
    it (``--wait-tasks-timeout``), or because another middleware, or the broker, has raised. Where
    the message was not acknowledged, the broker delivers it again, and the run goes on. Taskiq has
    no hook for a worker that is killed: clients see such a run as stalled.
    """

    def __init__(
        self,
        broadcaster: BackgroundBroadcaster | None = None,
        *,
        recipient: Callable[[Sequence[Any], Mapping[str, Any]], Recipient] | None = None,
        stall_after_s: float = STALL_AFTER_S,
    ) -> None:
        """Make the middleware.

        Args:
            broadcaster: default: the server of ``REALTIME_URL``.
            person: who waits, from the positional and the keyword arguments.
            stall_after_s: how long it is normal to hear nothing of a task.

        Raises:
            InvalidArgumentError: ``stall_after_s`` is no positive, finite number of seconds.
        """
        super().__init__()
        self._broadcaster = broadcaster
        self._recipient = recipient or Recipient.from_call
        self._stall_after_s = check_stall_after_s(stall_after_s)
        self._open: set[_Call] = set()
        self._unacknowledged: set[str] = set()
        """Ids of tasks whose messages the broker would deliver again."""

    async def startup(self) -> None:
        """The broker starts.

        Raises:
            ConfigurationError: a retry middleware comes after this one.
            InvalidArgumentError: the label ``family`` of a task cannot be used.
        """
        for task in self.broker.get_all_tasks().values():
            if job_type := task.labels.get(JOB_TYPE_LABEL):
                JobType(str(job_type))
        if self.broker.is_worker_process:
            self._watch_acknowledgements()
        middlewares = self.broker.middlewares
        for each in middlewares[middlewares.index(self) :]:
            if isinstance(each, SimpleRetryMiddleware | SmartRetryMiddleware):
                name = type(each).__name__
                raise ConfigurationError(f"ToldMiddleware() must come after {name}()")

    async def shutdown(self) -> None:
        """The broker stops, and what still runs is left behind."""
        tasks = {call.task for call in self._open if call.task is not None}
        if tasks := tasks - {asyncio.current_task()}:
            await asyncio.wait(tasks, timeout=LAST_CHANCE_S)
        for call in tuple(self._open):
            self._abandon(call)
            if call.attempt is not None:
                await call.attempt.reporter.aflush()

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        attempt = None
        stack = ExitStack()
        # With InMemoryBroker, the task that has sent this one may be a job of somebody else.
        stack.enter_context(extent_of(None))
        if job_type := message.labels.get(JOB_TYPE_LABEL):
            try:
                attempt = self._begin(JobType(str(job_type)), message)
                stack.enter_context(report_run(attempt.reporter))
            except Exception:
                logger.exception(
                    "task %s of %s runs, but nobody is told", message.task_id, message.task_name
                )
        call = _Call(attempt, stack, _call.get(), asyncio.current_task())
        _call.set(call)
        self._open.add(call)
        if call.task is not None:
            call.leave = functools.partial(self._abandon, call)
            call.task.add_done_callback(call.leave)
        return message

    async def on_error(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        if attempt := _current_attempt():
            attempt.error = exception
        if isinstance(deciding_error(exception), InvalidInputError):
            message.labels["retry_on_error"] = "False"  # the retry middleware comes next

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """A retry is a task that is sent again after its error, whoever does it."""
        attempt = _current_attempt()
        if attempt and attempt.error is not None and attempt.task_id == message.task_id:
            is_smart = isinstance(self._retry_middleware(), SmartRetryMiddleware)
            delay = message.labels.get("delay") if is_smart else None
            in_s = None if delay is None else float(delay)
            attempt.reporter.retrying(attempt.error, retry_in_s=in_s)
            await attempt.reporter.aflush()
        return message

    async def post_send(self, message: TaskiqMessage) -> None:
        """Only now is it certain that the retry comes: the broker may have refused it."""
        attempt = _current_attempt()
        if attempt and attempt.error is not None and attempt.task_id == message.task_id:
            attempt.continues = True

    async def post_execute(
        self,
        message: TaskiqMessage,
        result: TaskiqResult[Any],
    ) -> None:
        if (call := _call.get()) is None:
            return
        _call.set(call.parent)
        if call.task is not None and call.leave is not None:
            call.task.remove_done_callback(call.leave)
        call.extent.close()
        try:
            if (attempt := call.attempt) is not None:
                self._end(message, result, attempt)
                attempt.continues = attempt.reporter.state is not ReporterState.FINISHED
                await attempt.reporter.aflush()  # a worker that stops meanwhile waits for it, too
        finally:
            self._open.discard(call)

    def _end(self, message: TaskiqMessage, result: TaskiqResult[Any], attempt: _Attempt) -> None:
        reporter, error = attempt.reporter, attempt.error
        if error is None:
            reporter.completed(result.return_value)
        elif self._is_scheduled(message, attempt):
            reporter.retrying(error, retry_in_s=self._pause_s(message))
        elif attempt.continues or _number(message, REQUEUES_LABEL) > attempt.requeues:
            pass
        elif isinstance(error, asyncio.CancelledError | NoResultError | TaskRejectedError):
            reporter.cancelled()
        else:
            reporter.failed(error)

    def _watch_acknowledgements(self) -> None:
        """Know which messages are not acknowledged: Taskiq shows middlewares none of that."""
        listen = self.broker.listen

        async def watched() -> AsyncGenerator[bytes | AckableMessage, None]:
            messages = listen()
            try:
                async for message in messages:
                    yield self._watched(message)
            finally:
                await messages.aclose()

        self.broker.listen = watched  # type: ignore[method-assign]

    def _watched(self, message: bytes | AckableMessage) -> bytes | AckableMessage:
        if not isinstance(message, AckableMessage):
            return message
        try:
            task_id = self.broker.formatter.loads(message.data).task_id
        except Exception:  # noqa: BLE001 - Taskiq logs it, and drops the message
            return message
        acknowledge = message.ack
        self._unacknowledged.add(task_id)

        async def watched() -> None:
            await maybe_awaitable(acknowledge())
            self._unacknowledged.discard(task_id)

        return message.model_copy(update={"ack": watched})

    def _abandon(self, call: _Call, task: asyncio.Task[Any] | None = None) -> None:
        """A task was left before Taskiq came to its end."""
        if call not in self._open:
            return
        self._open.discard(call)
        call.extent.close()
        attempt = call.attempt
        if attempt is None or attempt.continues:
            return
        if attempt.task_id in self._unacknowledged:
            self._unacknowledged.discard(attempt.task_id)
            return  # the broker delivers it again
        error = attempt.error
        if error is None and task is not None and not task.cancelled():
            error = task.exception()
        if error is None or isinstance(error, asyncio.CancelledError):
            attempt.reporter.cancelled()
        else:
            attempt.reporter.failed(error)

    def _begin(self, job_type: JobType, message: TaskiqMessage) -> _Attempt:
        retries = _number(message, RETRIES_LABEL)
        lifecycle = RunNotifications(
            job_type,
            message.task_id,
            attempt=retries + 1,
            max_attempts=self._max_attempts(message.labels),
            stall_after_s=self._stall_after_s,
        )
        recipient = self._recipient(message.args, message.kwargs)
        # A message that is delivered again is news again: its progress is no repetition.
        call = uuid.uuid4().hex[:8]
        reporter = Reporter(lifecycle, [recipient], self._broadcaster, invocation_id=call)
        requeues = _number(message, REQUEUES_LABEL)
        return _Attempt(message.task_id, retries, requeues, reporter)

    def _retry_middleware(self) -> SimpleRetryMiddleware | SmartRetryMiddleware | None:
        for each in self.broker.middlewares:
            if isinstance(each, SimpleRetryMiddleware | SmartRetryMiddleware):
                return each
        return None

    def _max_attempts(self, labels: Mapping[str, Any]) -> int | None:
        """Taskiq's ``max_retries`` counts the first attempt, too.

        Returns:
            None if a middleware of the application may retry.
        """
        retries = self._retry_middleware()
        if retries is None:
            return None if self._may_be_retried() else 1
        wanted = labels.get("retry_on_error")
        if isinstance(wanted, str):
            wanted = wanted.lower() == "true"
        if wanted is None:
            wanted = retries.default_retry_label
        if not wanted:
            return 1
        return max(1, int(labels.get("max_retries", retries.default_retry_count)))

    def _may_be_retried(self) -> bool:
        return any(
            type(each).on_error is not TaskiqMiddleware.on_error
            for each in self.broker.middlewares
            if each is not self
        )

    def _is_scheduled(self, message: TaskiqMessage, attempt: _Attempt) -> bool:
        """Whether a schedule has the next attempt, which is not sent from here, then."""
        retries = self._retry_middleware()
        return (
            not attempt.continues
            and isinstance(retries, SmartRetryMiddleware)
            and retries.schedule_source is not None
            and _number(message, RETRIES_LABEL) > attempt.retries
        )

    def _pause_s(self, message: TaskiqMessage) -> float | None:
        retries = self._retry_middleware()
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
    continues: bool = False  # in another attempt, which has been told


@dataclass(slots=True, eq=False)
class _Call:
    """Of a task's code. One that nobody is told of has no attempt."""

    attempt: _Attempt | None
    extent: ExitStack
    parent: _Call | None  # of the task that has started this one, in the same process
    task: asyncio.Task[Any] | None
    leave: Callable[[asyncio.Task[Any]], object] | None = None


_call: ContextVar[_Call | None] = ContextVar("synap_realtime_taskiq_call", default=None)


def _current_attempt() -> _Attempt | None:
    call = _call.get()
    return call.attempt if call else None


def _number(message: TaskiqMessage, label: str) -> int:
    return int(message.labels.get(label, 0))
