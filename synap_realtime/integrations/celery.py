"""Celery: tasks that tell their user how they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ..broadcast import BackgroundBroadcaster
from ..errors import ConfigurationError, InvalidInputError
from ..extras import needed_by
from ..jobs import Family, Lifecycle, Person, Reporter, running
from ..jobs.extent import extent_of
from ..jobs.lifecycle import STALL_AFTER_S

with needed_by("the Celery integration", "celery"):
    import celery
    from celery import signals, states
    from celery.exceptions import Reject, Retry, TimeLimitExceeded


class ToldTask(celery.Task):  # type: ignore[misc]
    """The base of tasks whose user hears how they stand.

    ::

        @app.task(base=ToldTask, family="report.creation", bind=True, max_retries=3)
        def create_report(self, title, *, user_id, request_id=None):
            progress(0.5, "Rendering")
            try:
                return {"url": render(title)}
            except PrinterBusy as error:
                raise self.retry(exc=error, countdown=5)

    The user hears ``started``, ``progress`` where the task says it, ``retrying`` when Celery will
    try again, then one of ``completed``, ``failed`` (also for time limits and a lost worker) and
    ``cancelled`` (revoked, expired, rejected or ignored). A task that runs again because its
    worker was lost (``acks_late``, ``reject_on_worker_lost``) is the same run, and so is one that
    replaces it. What a task tells is out before it is acknowledged.

    Attributes:
        family: the name before the dot, or a :class:`Family`; needed.
        person: who waits, from the positional and the keyword arguments; default: ``user_id`` and
            ``request_id`` (or ``userId`` and ``requestId``) among the keyword arguments, or in the
            first argument that is a mapping.
        broadcaster: default: the server of ``REALTIME_URL``.
        stall_after_s: how long it is normal to hear nothing of a task.
    """

    abstract = True
    family: Family | str | None = None
    person: Callable[[Sequence[Any], Mapping[str, Any]], Person] | None = None
    broadcaster: BackgroundBroadcaster | None = None
    stall_after_s: float = STALL_AFTER_S

    @classmethod
    def on_bound(cls, app: celery.Celery) -> None:
        """Celery has made the task.

        Raises:
            ConfigurationError: it has no family.
        """
        super().on_bound(app)
        if not cls.family:
            raise ConfigurationError(f"{cls.name}: a ToldTask needs family=, 'report.creation'")

    def reporter(
        self, task_id: str, retries: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Reporter:
        """What tells of one attempt."""
        family = self.family
        assert family is not None  # noqa: S101 - on_bound() saw to it
        most = self.max_retries
        lifecycle = Lifecycle(
            Family(family) if isinstance(family, str) else family,
            task_id,
            attempt=retries + 1,
            max_attempts=None if most is None else most + 1,
            stall_after_s=self.stall_after_s,
        )
        person = type(self).person or Person.of_call
        return Reporter(lifecycle, [person(args, kwargs)], self.broadcaster)

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
        """As Celery's, but not after an :class:`InvalidInputError`: that is raised at once.

        The user hears of the next attempt before a worker can take it.
        """
        request = self.request
        if isinstance(exc, InvalidInputError):
            raise exc
        most = self.max_retries if max_retries is None else max_retries
        attempt = _attempt_of(request)
        if attempt is not None and (most is None or request.retries < most):
            delay = self.default_retry_delay if countdown is None else countdown
            _tell_retry(attempt.reporter, exc, eta or delay)
            attempt.goes_on = True
            attempt.reporter.settle()
        return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)

    def on_replace(self, sig: Any) -> Any:
        """Another task goes on in this one's name, and tells the end."""
        if attempt := _attempt_of(self.request):
            attempt.goes_on = True
        return super().on_replace(sig)


@dataclass(slots=True)
class _Attempt:
    reporter: Reporter
    goes_on: bool = False  # in another attempt, which has been told, or in another task


_ATTEMPT, _EXTENT = "_synap_realtime_attempt", "_synap_realtime_extent"
"""Kept with Celery's request, which each execution has for itself. A task's id is shared by the
next attempt, which may begin in this process before this one is cleaned up, and by a replacement.
"""


def _attempt_of(request: Any, task_id: str | None = None) -> _Attempt | None:
    attempt: _Attempt | None = getattr(request, _ATTEMPT, None)
    return attempt if task_id in (None, request.id) else None


def _begin(sender: Any, task_id: str, args: Any, kwargs: Any, **_: object) -> None:
    stack = ExitStack()
    setattr(sender.request, _EXTENT, stack)
    # An eager task runs inside of its caller, which may be a job of somebody else.
    stack.enter_context(extent_of(None))
    if isinstance(sender, ToldTask):
        reporter = sender.reporter(task_id, sender.request.retries, tuple(args), kwargs)
        setattr(sender.request, _ATTEMPT, _Attempt(reporter))
        stack.enter_context(running(reporter))


def _succeed(sender: object, result: object, **_: object) -> None:
    attempt = _attempt_of(sender.request) if isinstance(sender, ToldTask) else None
    if attempt is not None and not attempt.goes_on:
        attempt.reporter.completed(result)


def _retry(sender: object, request: Any, reason: object, **_: object) -> None:
    if isinstance(sender, ToldTask):
        attempt = _attempt_of(request)
        if attempt is None or not attempt.goes_on:
            reporter = attempt.reporter if attempt else _reporter_of(sender, request)
            cause, when = (reason.exc, reason.when) if isinstance(reason, Retry) else (None, None)
            _tell_retry(reporter, cause, when)


def _fail(
    sender: object, task_id: str, exception: BaseException, args: Any, kwargs: Any, **_: object
) -> None:
    if isinstance(sender, ToldTask):
        attempt = _attempt_of(sender.request, task_id)
        # Without one it is the worker's main process, and the task's own is lost.
        reporter = attempt.reporter if attempt else sender.reporter(task_id, 0, tuple(args), kwargs)
        if isinstance(exception, Reject):
            reporter.cancelled()
        elif not _goes_back(sender, exception):
            reporter.failed(exception)


def _goes_back(task: ToldTask, error: BaseException) -> bool:
    """Whether Celery, which calls it a failure, puts the task back on the broker."""
    is_late = isinstance(error, TimeLimitExceeded)
    return is_late and bool(task.acks_late) and not task.acks_on_timeout


def _revoke(sender: object, request: Any, **_: object) -> None:
    if isinstance(sender, ToldTask):
        _reporter_of(sender, request).cancelled()


def _end(sender: Any, state: str, **_: object) -> None:
    stack: ExitStack | None = getattr(sender.request, _EXTENT, None)
    if stack is not None:
        stack.close()
    if (attempt := _attempt_of(sender.request)) is not None:
        if state == states.IGNORED and not attempt.goes_on:
            attempt.reporter.cancelled()
        attempt.reporter.settle()


def _reporter_of(task: ToldTask, request: Any) -> Reporter:
    args, kwargs = getattr(request, "args", None), getattr(request, "kwargs", None)
    retries = getattr(request, "retries", None)
    return task.reporter(request.id, retries or 0, tuple(args or ()), kwargs or {})


def _tell_retry(reporter: Reporter, cause: object, when: object) -> None:
    error = cause if isinstance(cause, BaseException) else "It will be tried again."
    reporter.retrying(error, in_s=_seconds_until(when))


def _seconds_until(when: object) -> float | None:
    if isinstance(when, datetime):
        return max(0.0, (when.astimezone(UTC) - datetime.now(UTC)).total_seconds())
    return float(when) if isinstance(when, int | float) else None


for _signal, _receiver in (
    (signals.task_prerun, _begin),
    (signals.task_success, _succeed),
    (signals.task_retry, _retry),
    (signals.task_failure, _fail),
    (signals.task_revoked, _revoke),
    (signals.task_postrun, _end),
):
    _signal.connect(_receiver, weak=False)
