"""Publish the lifecycle of Taskiq tasks."""

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
from ..jobs.functions import check_job_function
from ..jobs.notifications import STALL_AFTER_S
from ..jobs.reporter import ReporterState

with needed_by("the Taskiq integration", "taskiq"):
    from taskiq import (
        AckableMessage,
        AsyncTaskiqDecoratedTask,
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
"""Seconds that a stopping worker gives tasks that are about to end."""

RETRIES_LABEL = "_retries"
"""Label of Taskiq's retry middlewares: the number of retries so far."""

REQUEUES_LABEL = "X-Taskiq-requeue"
"""Label of Taskiq's ``Context.requeue()``: the number of requeues so far."""


class RealtimeMiddleware(TaskiqMiddleware):
    """Publishes the lifecycle of each task with the label ``job_type``.

    ::

        broker = ListQueueBroker(url).with_middlewares(
            SmartRetryMiddleware(default_retry_count=3), RealtimeMiddleware()
        )

        @broker.task(job_type="report.creation", retry_on_error=True)
        async def create_report(title: str, user_id: str, request_id: str) -> dict[str, str]:
            progress(0.5, "Rendering")
            return {"url": await render(title)}

    Add it after the retry middleware. The recipient receives ``started``, the ``progress`` that the
    task reports, ``retrying`` before the next attempt is sent, then ``completed``, ``failed`` or
    ``cancelled``. An :class:`InvalidInputError` is final. All notifications are sent before the
    task is acknowledged (by default, Taskiq acknowledges when the result is saved). The recipient
    is ``user_id`` and ``request_id`` (or ``userId``, ``requestId``) of the keyword arguments, or of
    the first argument that is a mapping.

    A run also ends when Taskiq abandons a task: because the worker stops without waiting for it
    (``--wait-tasks-timeout``), or because another middleware or the broker has raised. If the
    message was not acknowledged, the broker redelivers it and the run continues. Taskiq has no hook
    for a worker that is killed: clients see such a run as stalled.
    """

    def __init__(
        self,
        broadcaster: BackgroundBroadcaster | None = None,
        *,
        recipient: Callable[[Sequence[Any], Mapping[str, Any]], Recipient] | None = None,
        stall_after_s: float = STALL_AFTER_S,
    ) -> None:
        """Create the middleware.

        Args:
            broadcaster: default: the server of ``REALTIME_URL``.
            recipient: returns the recipient from the positional and keyword arguments.
            stall_after_s: how long a task may be silent before it counts as stalled.

        Raises:
            InvalidArgumentError: ``stall_after_s`` is not a positive, finite number of seconds.
        """
        super().__init__()
        self._broadcaster = broadcaster
        self._recipient = recipient or Recipient.from_call
        self._stall_after_s = check_stall_after_s(stall_after_s)
        self._open: set[_Call] = set()
        self._unacknowledged: set[str] = set()
        """Ids of tasks whose messages the broker would redeliver."""

    async def startup(self) -> None:
        """Validate the configuration when the broker starts.

        Raises:
            ConfigurationError: a retry middleware comes after this one.
            InvalidArgumentError: the label ``job_type`` of a task is invalid, or the task is a
                generator function, whose body Taskiq would not run.
        """
        for task in self.broker.get_all_tasks().values():
            if job_type := task.labels.get(JOB_TYPE_LABEL):
                JobType(str(job_type))
                _check_function(task)
        if self.broker.is_worker_process:
            self._watch_acknowledgements()
        middlewares = self.broker.middlewares
        for each in middlewares[middlewares.index(self) :]:
            if isinstance(each, SimpleRetryMiddleware | SmartRetryMiddleware):
                name = type(each).__name__
                raise ConfigurationError(f"RealtimeMiddleware() must come after {name}()")

    async def shutdown(self) -> None:
        """End the runs of tasks that are abandoned when the broker stops."""
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
        # With InMemoryBroker, the task that sent this one may be a job of another recipient.
        stack.enter_context(extent_of(None))
        if job_type := message.labels.get(JOB_TYPE_LABEL):
            try:
                attempt = self._begin(JobType(str(job_type)), message)
                stack.enter_context(report_run(attempt.reporter))
            except Exception:
                logger.exception(
                    "reporting setup failed for task %s (%s); running without notifications",
                    message.task_id,
                    message.task_name,
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
            message.labels["retry_on_error"] = "False"  # the retry middleware runs next

    async def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Recognize a retry: a task that is sent again after its error, by any sender."""
        attempt = _current_attempt()
        if attempt and attempt.error is not None and attempt.task_id == message.task_id:
            is_smart = isinstance(self._retry_middleware(), SmartRetryMiddleware)
            delay = message.labels.get("delay") if is_smart else None
            in_s = None if delay is None else float(delay)
            attempt.reporter.retrying(attempt.error, retry_in_s=in_s)
            await attempt.reporter.aflush()
        return message

    async def post_send(self, message: TaskiqMessage) -> None:
        """Publish the retry only now, because the broker could have rejected it."""
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
                await attempt.reporter.aflush()  # a stopping worker waits for it, too
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
        """Track which messages are acknowledged, which Taskiq does not show to middlewares."""
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
        """End the run of a task that Taskiq has abandoned."""
        if call not in self._open:
            return
        self._open.discard(call)
        call.extent.close()
        attempt = call.attempt
        if attempt is None or attempt.continues:
            return
        if attempt.task_id in self._unacknowledged:
            self._unacknowledged.discard(attempt.task_id)
            return  # the broker redelivers it
        error = attempt.error
        if error is None and task is not None and not task.cancelled():
            error = task.exception()
        if error is None or isinstance(error, asyncio.CancelledError):
            attempt.reporter.cancelled()
        else:
            attempt.reporter.failed(error)

    def _begin(self, job_type: JobType, message: TaskiqMessage) -> _Attempt:
        if (task := self.broker.find_task(message.task_name)) is not None:
            _check_function(task)  # it may have been registered after startup()
        retries = _number(message, RETRIES_LABEL)
        lifecycle = RunNotifications(
            job_type,
            message.task_id,
            attempt=retries + 1,
            max_attempts=self._max_attempts(message.labels),
            stall_after_s=self._stall_after_s,
        )
        recipient = self._recipient(message.args, message.kwargs)
        # Progress of a redelivered message is published again, so it is not a replay.
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
        """Return Taskiq's ``max_retries``, which includes the first attempt."""
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
        """Return whether a schedule sends the next attempt, so that it is not sent from here."""
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
    continues: bool = False  # in another attempt, which was announced


@dataclass(slots=True, eq=False)
class _Call:
    """The state of one task execution. An unreported one has no attempt."""

    attempt: _Attempt | None
    extent: ExitStack
    parent: _Call | None  # of the task that started this one in the same process
    task: asyncio.Task[Any] | None
    leave: Callable[[asyncio.Task[Any]], object] | None = None


_call: ContextVar[_Call | None] = ContextVar("synap_realtime_taskiq_call", default=None)


def _current_attempt() -> _Attempt | None:
    call = _call.get()
    return call.attempt if call else None


def _check_function(task: AsyncTaskiqDecoratedTask[Any, Any]) -> None:
    # Taskiq renames the original function.
    check_job_function(task.task_name, task.original_func, task.task_name.rpartition(":")[2])


def _number(message: TaskiqMessage, label: str) -> int:
    return int(message.labels.get(label, 0))
