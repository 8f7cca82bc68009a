"""Publish the lifecycle of Celery tasks."""

from __future__ import annotations

import functools
import logging
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..broadcast import BackgroundBroadcaster
from ..errors import (
    ConfigurationError,
    InvalidArgumentError,
    InvalidInputError,
    JobError,
    SynapRealtimeError,
    deciding_error,
)
from ..extras import needed_by
from ..jobs import JobType, Recipient, Reporter, RunNotifications, report_run
from ..jobs.arguments import check_stall_after_s
from ..jobs.exits import cancelled_at_exit
from ..jobs.extent import extent_of
from ..jobs.functions import check_job_function, is_coroutine_function, name_of
from ..jobs.notifications import STALL_AFTER_S
from ..jobs.reporter import ReporterState

with needed_by("the Celery integration", "celery"):
    import celery
    from billiard.process import current_process
    from celery import canvas, signals, states
    from celery.exceptions import (
        Ignore,
        MaxRetriesExceededError,
        Reject,
        Retry,
        TimeLimitExceeded,
        WorkerShutdown,
        WorkerTerminate,
    )

try:
    from greenlet import GreenletExit as _Killed
except ImportError:  # raised only by gevent and eventlet

    class _Killed(BaseException):  # type: ignore[no-redef]
        """The exception with which greenlets are killed."""


logger = logging.getLogger(__name__)

HEADER = "synap_realtime"
"""The message header that carries the run's state to the next attempt or a replacement."""


class RealtimeTask(celery.Task):  # type: ignore[misc]
    """The base class of tasks whose lifecycle is published.

    ::

        @app.task(base=RealtimeTask, job_type="report.creation", bind=True, max_retries=3)
        def create_report(self, title, *, user_id, request_id=None):
            progress(0.5, "Rendering")
            try:
                return {"url": render(title)}
            except PrinterBusy as error:
                raise self.retry(exc=error, countdown=5)

    The recipient receives ``started``, the ``progress`` that the task reports, ``retrying`` before
    another attempt, then one of ``completed``, ``failed`` (also for time limits and a lost worker)
    and ``cancelled`` (revoked, expired, rejected or ignored, or stopped with its worker). A task
    that runs again because its worker was lost (``acks_late``, ``reject_on_worker_lost``) continues
    the same run. So does its replacement (``self.replace()`` with a task, a chain, a group or a
    chord): the run ends when the replacement ends, with the job type and the recipient of the
    replaced task. All notifications are sent before the task is acknowledged.

    Celery has no hook for a worker that is killed (SIGKILL) with a task that was acknowledged
    early. Clients see such a run as stalled. A run whose task raises ``Retry`` without
    ``self.retry()`` fails, because Celery sends no other attempt.

    Attributes:
        job_type: the name before the dot, or a :class:`JobType`; required.
        recipient: returns the recipient from the positional and keyword arguments. Default:
            ``user_id`` and ``request_id`` (or ``userId`` and ``requestId``) of the keyword
            arguments, or of the first argument that is a mapping.
        broadcaster: default: the server of ``REALTIME_URL``.
        stall_after_s: how long a task may be silent before it counts as stalled.
    """

    abstract = True
    job_type: JobType | str | None = None
    recipient: Callable[[Sequence[Any], Mapping[str, Any]], Recipient] | None = None
    broadcaster: BackgroundBroadcaster | None = None
    stall_after_s: float = STALL_AFTER_S

    @classmethod
    def on_bound(cls, app: celery.Celery) -> None:
        """Validate the task when Celery creates it.

        Raises:
            ConfigurationError: it has no job type.
            InvalidArgumentError: the name of the job type, or ``stall_after_s``, is invalid; or the
                task is a generator function or a coroutine function, whose body Celery would not
                run.
        """
        super().on_bound(app)
        if not cls.job_type:
            raise ConfigurationError(
                f"{cls.name}: a RealtimeTask needs job_type=, such as 'report.creation'"
            )
        _job_type(cls.job_type)
        check_stall_after_s(cls.stall_after_s)
        check_job_function(cls.name, cls.run)
        if is_coroutine_function(cls.run):
            raise InvalidArgumentError(
                cls.name,
                f"{name_of(cls.run)}() is a coroutine function, which Celery does not await; "
                "make it a plain function that calls asyncio.run()",
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task and store its exception."""
        attempt = _attempt_of(self.request)
        if attempt is None or attempt.has_begun:
            return super().__call__(*args, **kwargs)
        attempt.has_begun = True
        try:
            return self.run(*args, **kwargs)
        except BaseException as error:
            attempt.error = error
            raise

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: datetime | None = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Retry as Celery does, but raise an :class:`InvalidInputError` (alone or in a group)
        immediately.
        """
        if exc is not None and isinstance(deciding_error(exc), InvalidInputError):
            raise exc
        return _retry_reported(
            self,
            super().retry,
            *(args, kwargs, exc, throw, eta, countdown, max_retries),
            **options,
        )

    def replace(self, sig: Any) -> Any:
        """Replace the task as Celery does. The replacement continues the run and ends it."""
        return _replace_reported(self, super().replace, sig)

    def on_replace(self, sig: Any) -> Any:
        """Send the replacement of the task."""
        return _send_replacement(self, super().on_replace, sig)


def _retry_reported(
    task: celery.Task,
    retry: Callable[..., Any],
    args: Any = None,
    kwargs: Any = None,
    exc: BaseException | None = None,
    throw: bool = True,
    eta: datetime | None = None,
    countdown: float | None = None,
    max_retries: int | None = None,
    **options: Any,
) -> Any:
    """Publish the retry, and put the run's state into the message of the next attempt."""
    request = task.request
    attempt = _attempt_of(request)
    if attempt is None:
        return retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
    if max_retries is not None:
        headers = {**(request.headers or {}), **(options.get("headers") or {})}
        kept = {**(headers.get(HEADER) or {}), "maxRetries": max_retries}
        options["headers"] = {**headers, HEADER: kept}
    most = task.max_retries if max_retries is None else max_retries
    if most is None or request.retries < most:
        delay = task.default_retry_delay if countdown is None else countdown
        cause = sys.exc_info()[1] if exc is None else exc
        _report_retry(attempt, cause, eta or delay, most)
        attempt.reporter.flush()
    try:
        again = retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
    except Retry:
        attempt.continues = True
        raise
    except Reject as error:  # the broker did not accept it, and Celery gives up
        attempt.reporter.failed(exc or error)
        raise
    attempt.continues = True
    return again


def _replace_reported(task: celery.Task, replace: Callable[[Any], Any], sig: Any) -> Any:
    """Add to the replacement's message which runs it ends, and which it is a part of."""
    request = task.request
    attempt = _attempt_of(request)
    ends = [] if attempt is None else [attempt.run.after(request.retries)]
    parts = _runs(request, "parts")
    if (ends or parts) and not request.is_eager:
        # As Celery does next, but before the last task is marked.
        if isinstance(sig, canvas.group):
            sig |= task.app.tasks["celery.accumulate"].s(index=0)
        elif _ends_with_group(sig):
            sig.tasks = list(sig.tasks)
            sig.tasks[-1] |= task.app.tasks["celery.accumulate"].s(index=0)
        _tag_signature(sig, ends, parts, is_last=True)
    return replace(sig)


def _send_replacement(task: celery.Task, on_replace: Callable[[Any], Any], sig: Any) -> Any:
    attempt = _attempt_of(task.request)
    if attempt is None:
        return on_replace(sig)
    attempt.reporter.flush()
    try:
        return on_replace(sig)
    except Ignore:
        attempt.continues = True
        raise


def _adopt(task: celery.Task) -> None:
    """Give a task without this base class, which replaces one that has it, the base's behaviour on
    retry and replacement.
    """
    if "replace" not in vars(task):
        task.retry = functools.partial(_retry_reported, task, task.retry)
        task.replace = functools.partial(_replace_reported, task, task.replace)
        task.on_replace = functools.partial(_send_replacement, task, task.on_replace)


@dataclass(frozen=True, slots=True)
class _Run:
    """The data that a message carries for a task that ends another task's run."""

    id: str
    task: str
    attempt: int
    user_id: Any
    request_id: Any

    def after(self, retries: int) -> _Run:
        return _Run(self.id, self.task, self.attempt + retries, self.user_id, self.request_id)

    def to_header(self) -> list[Any]:
        ids = (None if each is None else str(each) for each in (self.user_id, self.request_id))
        return [self.id, self.task, self.attempt, *ids]


@dataclass(slots=True)
class _Attempt:
    """One execution of a task."""

    reporter: Reporter
    run: _Run
    has_begun: bool = False
    continues: bool = False
    is_resent: bool = False  # by the task itself, without self.retry()
    error: BaseException | None = None

    @property
    def is_over(self) -> bool:
        return self.reporter.state is ReporterState.FINISHED


_ATTEMPT, _EXTENT = "_synap_realtime_attempt", "_synap_realtime_extent"
"""Stored on Celery's request, which is unique to each execution. The next attempt and a replacement
share the task's id, and the next attempt may start in this process before this one is cleaned up.
"""

_timed_out: dict[str, Any] = {}
"""Requests, by task id, of greenlets that timed out. Celery signals the failure next, without the
message that names the runs to end.
"""

_eager_id: ContextVar[str | None] = ContextVar("synap_realtime_celery_eager", default=None)
"""The id of the running task, for an eager task that replaces it."""


@functools.cache
def _job_type(job_type: JobType | str) -> JobType:
    return JobType(job_type) if isinstance(job_type, str) else job_type


def _tag_signature(sig: Any, runs: list[_Run], parts: list[_Run], *, is_last: bool) -> None:
    """Mark each task of a signature with the runs that it is a part of, and the last task with the
    runs that it ends.
    """
    if isinstance(sig, canvas._chain):
        members, last = list(sig.tasks[:-1]), sig.tasks[-1]
    elif isinstance(sig, canvas._chord):
        members, last = list(getattr(sig.tasks, "tasks", sig.tasks)), sig.body
    elif isinstance(sig, canvas.group):
        members, last = list(sig.tasks), None
    else:
        ends = runs if is_last else []
        fails = parts if is_last else [*parts, *runs]
        kept = {
            "ends": [each.to_header() for each in ends],
            "parts": [each.to_header() for each in fails],
        }
        sig.set(headers={**(sig.options.get("headers") or {}), HEADER: kept})
        return
    for member in members:
        _tag_signature(canvas.maybe_signature(member), runs, parts, is_last=False)
    if last is not None:
        _tag_signature(canvas.maybe_signature(last), runs, parts, is_last=is_last)


def _ends_with_group(sig: Any) -> bool:
    is_chain = isinstance(sig, canvas._chain) and sig.tasks
    return bool(is_chain and isinstance(sig.tasks[-1], canvas.group))


def _header(request: Any) -> Mapping[str, Any]:
    headers = getattr(request, "headers", None)
    kept = headers.get(HEADER) if isinstance(headers, Mapping) else None
    if kept is None:
        kept = getattr(request, HEADER, None)
    return kept if isinstance(kept, Mapping) else {}


def _runs(request: Any, name: str) -> list[_Run]:
    return [_Run(*each) for each in _header(request).get(name) or ()]


def _max_retries(task: celery.Task, request: Any) -> int | None:
    """Return the maximum number of retries: from the run's last ``retry()``, then from the task's
    automatic retries, then from the task.
    """
    said = _header(request).get("maxRetries")
    if said is None and getattr(task, "autoretry_for", None):
        said = (getattr(task, "retry_kwargs", None) or {}).get("max_retries")
    most = task.max_retries if said is None else said
    return most if most is None else int(most)


def _reporter(
    app: celery.Celery,
    run: _Run,
    recipient: Recipient,
    *,
    retries: int = 0,
    max_retries: int | None = None,
) -> Reporter:
    """Create the reporter of a run, whether its own task or a replacement executes it."""
    owner = app.tasks[run.task]
    lifecycle = RunNotifications(
        _job_type(owner.job_type),
        run.id,
        attempt=run.attempt + retries,
        max_attempts=None if max_retries is None else run.attempt + max_retries,
        stall_after_s=owner.stall_after_s,
    )
    # Progress of a redelivered attempt is published again, so it is not a replay.
    call = uuid.uuid4().hex[:8]
    return Reporter(lifecycle, [recipient], owner.broadcaster, invocation_id=call)


def _attempt_for(
    task: celery.Task, request: Any, task_id: str, args: Any, kwargs: Any
) -> _Attempt | None:
    """Create the attempt of an execution from its message; None if it reports nothing."""
    try:
        if ends := _runs(request, "ends"):
            run = ends[0]
            recipient = Recipient(run.user_id, run.request_id)
        elif isinstance(task, RealtimeTask):
            recipient = (type(task).recipient or Recipient.from_call)(
                tuple(args or ()), kwargs or {}
            )
            run = _Run(task_id, task.name, 1, recipient.user_id, recipient.request_id)
        else:
            return None
        reporter = _reporter(
            task.app,
            run,
            recipient,
            retries=getattr(request, "retries", None) or 0,
            max_retries=_max_retries(task, request),
        )
        return _Attempt(reporter, run)
    except SynapRealtimeError as error:
        logger.error(
            "reporting setup failed for task %s[%s]; running without notifications: %s",
            task.name,
            task_id,
            error,
        )
    except Exception:
        logger.exception(
            "reporting setup failed for task %s[%s]; running without notifications",
            task.name,
            task_id,
        )
    return None


def _attempt_of(request: Any, task_id: str | None = None) -> _Attempt | None:
    attempt: _Attempt | None = getattr(request, _ATTEMPT, None)
    return attempt if task_id in (None, request.id) else None


def _end_parts(
    app: celery.Celery, request: Any, end: Callable[[Reporter], None], *names: str
) -> None:
    """End the runs of a canvas that this task was a part of and that can no longer succeed."""
    for run in [run for name in names or ("parts",) for run in _runs(request, name)]:
        try:
            reporter = _reporter(app, run, Recipient(run.user_id, run.request_id))
        except Exception:
            logger.exception("run %s of %s ended; publishing its end failed", run.id, run.task)
            continue
        end(reporter)
        reporter.flush()


def _on_prerun(sender: Any, task_id: str, args: Any, kwargs: Any, **_: object) -> None:
    request = sender.request
    if request.is_eager and _eager_id.get() == task_id:
        return  # it replaces the task that called it, which reports for both
    stack = ExitStack()
    setattr(request, _EXTENT, stack)
    token = _eager_id.set(task_id)
    stack.callback(_reset_eager_id, token)
    # An eager task runs inside its caller, which may be a job of another recipient.
    stack.enter_context(extent_of(None))
    if _header(request) and not isinstance(sender, RealtimeTask):
        _adopt(sender)
    if attempt := _attempt_for(sender, request, task_id, args, kwargs):
        setattr(request, _ATTEMPT, attempt)
        if request.is_eager or not sender.acks_late:  # the broker has removed it
            stack.enter_context(cancelled_at_exit(attempt.reporter))
        stack.enter_context(report_run(attempt.reporter))


def _reset_eager_id(token: Any) -> None:
    with suppress(ValueError):  # left in another context than entered
        _eager_id.reset(token)


def _on_success(sender: Any, result: object, **_: object) -> None:
    attempt = _attempt_of(sender.request)
    if attempt is not None and not attempt.continues:
        attempt.reporter.completed(result)


def _on_retry(sender: Any, request: Any, reason: object = None, **_: object) -> None:
    attempt = _attempt_of(request)
    if attempt is not None and attempt.continues:
        return
    if attempt is not None and isinstance(reason, Retry) and not attempt.is_resent:
        _fail_unsent_retry(sender, request, attempt, reason)
        return
    if reason is None:
        # A worker that stops, or has lost the broker, has cancelled the task. A task that was
        # acknowledged early is not redelivered, whatever Celery's state says.
        if not sender.acks_late:
            _on_revoked(sender, request)
        return
    if not isinstance(sender, RealtimeTask):
        return  # its next attempt was sent already, and may have ended the run
    attempt = attempt or _lost_attempt(sender, request)
    if attempt is not None:
        cause, when = (reason.exc, reason.when) if isinstance(reason, Retry) else (None, None)
        _report_retry(attempt, cause, when, _max_retries(sender, request))


def _fail_unsent_retry(task: celery.Task, request: Any, attempt: _Attempt, reason: Retry) -> None:
    """Fail a run whose task raised ``Retry`` without sending another attempt."""
    logger.error(
        "task %s[%s] raised Retry without self.retry(), so Celery sends no other attempt; "
        "the run has failed",
        task.name,
        request.id,
    )
    cause = reason.exc if isinstance(reason.exc, BaseException) else reason
    end = functools.partial(Reporter.failed, error=cause)
    end(attempt.reporter)
    _end_parts(task.app, request, end)


def _on_sent(headers: object = None, **_: object) -> None:
    """Recognize that a task sends its next attempt, perhaps without ``self.retry()``."""
    task = celery.current_task
    attempt = _attempt_of(task.request) if task else None
    if attempt and isinstance(headers, Mapping) and headers.get("id") == task.request.id:
        attempt.is_resent = True


def _on_failure(
    sender: Any, task_id: str, exception: BaseException, args: Any, kwargs: Any, **_: object
) -> None:
    if _will_requeue(sender, exception):
        return
    left = _timed_out.pop(task_id, None)
    request = sender.request if sender.request.id == task_id else left
    attempt = _attempt_of(request) if request else None
    # Without an attempt, this is the worker's main process, and the task's process was lost.
    attempt = attempt or _attempt_for(sender, request, task_id, args, kwargs)
    end = Reporter.cancelled
    if not isinstance(exception, Reject):
        error = attempt.error if attempt and attempt.error else exception
        end = functools.partial(Reporter.failed, error=_cause(error))
    if attempt is not None:
        end(attempt.reporter)
    _end_parts(sender.app, request, end)


def _cause(error: BaseException) -> BaseException:
    """Return the user-facing cause of ``retry()`` without ``exc``, whose error only says that no
    attempt is left.
    """
    context = error.__context__
    is_last = isinstance(error, MaxRetriesExceededError)
    return context if is_last and isinstance(context, JobError | BaseExceptionGroup) else error


def _will_requeue(task: celery.Task, error: BaseException) -> bool:
    """Return whether Celery requeues the task, which it reports as a failure."""
    is_late = isinstance(error, TimeLimitExceeded)
    return is_late and bool(task.acks_late) and not task.acks_on_timeout


def _on_revoked(sender: Any, request: Any, **_: object) -> None:
    if (attempt := _lost_attempt(sender, request)) is not None:
        attempt.reporter.cancelled()
    _end_parts(sender.app, request, Reporter.cancelled)


def _refuse(sender: Any, message: Any, exc: BaseException, **_: object) -> None:
    """Fail the runs of an unknown task: the worker drops it."""
    end = functools.partial(Reporter.failed, error=exc)
    _end_parts(sender.app, message, end, "ends", "parts")


def _lost_attempt(task: celery.Task, request: Any) -> _Attempt | None:
    """Recreate an attempt in the worker's main process, which has only the message."""
    args, kwargs = getattr(request, "args", None), getattr(request, "kwargs", None)
    return _attempt_for(task, request, request.id, args, kwargs)


def _on_postrun(sender: Any, state: str | None, retval: object = None, **_: object) -> None:
    request = sender.request
    stack: ExitStack | None = getattr(request, _EXTENT, None)
    if stack is not None:
        stack.close()
    attempt = _attempt_of(request)
    error = attempt.error if attempt and attempt.error else sys.exc_info()[1]
    if state is None and _is_greenlet_timeout(error) and _header(request):
        _timed_out[request.id] = request
    if attempt is not None:
        if not attempt.is_over:
            _end_unreported(sender, request, attempt, state, retval)
        attempt.reporter.flush()
        attempt.error = None


def _end_unreported(
    task: celery.Task, request: Any, attempt: _Attempt, state: str | None, retval: object
) -> None:
    """End a run for which Celery sends no final signal."""
    reporter = attempt.reporter
    if attempt.continues and not (request.is_eager and state is None):
        return
    if state == states.IGNORED:
        reporter.cancelled()
    elif state == states.REJECTED:
        # With late acknowledgement, the worker requeues it or signals a failure.
        if request.is_eager or not task.acks_late:
            reporter.cancelled()
    elif state == states.SUCCESS:
        reporter.completed(retval)  # its result could not be stored, but its work is done
    elif state is None:
        error = attempt.error or sys.exc_info()[1]
        if isinstance(error, Exception):
            reporter.failed(_cause(error))  # that could not be stored, or the caller receives it
        elif _is_reported_by_worker(task, error):
            pass
        elif isinstance(error, KeyboardInterrupt | WorkerShutdown | WorkerTerminate | _Killed):
            reporter.cancelled()
        elif error is not None:
            reporter.failed(error)


def _is_reported_by_worker(task: celery.Task, error: BaseException | None) -> bool:
    """Return whether the worker's main process reports the outcome of this exception."""
    if current_process()._name != "MainProcess":
        return True
    if isinstance(error, _Killed):
        return bool(task.acks_late)
    return _is_greenlet_timeout(error)


def _is_greenlet_timeout(error: BaseException | None) -> bool:
    return type(error).__module__.partition(".")[0] in ("gevent", "eventlet")


def _report_retry(attempt: _Attempt, cause: object, when: object, most: int | None) -> None:
    error = cause if isinstance(cause, BaseException) else "The task will be retried."
    attempt.reporter.retrying(
        error,
        retry_in_s=_seconds_until(when),
        max_attempts=None if most is None else attempt.run.attempt + most,
    )


def _seconds_until(when: object) -> float | None:
    if isinstance(when, datetime):
        return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return float(when) if isinstance(when, int | float) else None


for _signal, _receiver in (
    (signals.task_prerun, _on_prerun),
    (signals.task_success, _on_success),
    (signals.task_retry, _on_retry),
    (signals.task_failure, _on_failure),
    (signals.task_revoked, _on_revoked),
    (signals.task_unknown, _refuse),
    (signals.task_postrun, _on_postrun),
    (signals.after_task_publish, _on_sent),
):
    _signal.connect(_receiver, weak=False)
