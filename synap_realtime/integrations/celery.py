"""Celery: tasks that tell their user how they stand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import celery
from celery import signals
from celery.exceptions import Reject, Retry

from ..broadcast import BackgroundBroadcaster
from ..errors import ConfigurationError
from ..jobs import Family, Lifecycle, Person, Reporter, running
from ..jobs.lifecycle import STALL_AFTER_S


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
    ``cancelled`` (revoked or expired). A task that runs again because its worker was lost
    (``acks_late``, ``reject_on_worker_lost``) is the same run. What a task tells is out before it
    is acknowledged.

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


_attempts: dict[str, tuple[Reporter, ExitStack]] = {}
"""Those that run in this process, by the task's id."""


def _begin(sender: object, task_id: str, args: Any, kwargs: Any, **_: object) -> None:
    if isinstance(sender, ToldTask):
        reporter = sender.reporter(task_id, sender.request.retries, tuple(args), kwargs)
        stack = ExitStack()
        stack.enter_context(running(reporter))
        _attempts[task_id] = reporter, stack


def _succeed(sender: object, result: object, **_: object) -> None:
    if isinstance(sender, ToldTask) and (attempt := _attempts.get(sender.request.id)):
        attempt[0].completed(result)


def _retry(sender: object, request: Any, reason: object, **_: object) -> None:
    if isinstance(sender, ToldTask):
        attempt = _attempts.get(request.id)
        reporter = attempt[0] if attempt else _reporter_of(sender, request)
        cause = reason.exc if isinstance(reason, Retry) else None
        error = cause if isinstance(cause, BaseException) else "It will be tried again."
        reporter.retrying(error, in_s=_seconds_until(reason))


def _fail(
    sender: object, task_id: str, exception: BaseException, args: Any, kwargs: Any, **_: object
) -> None:
    if isinstance(sender, ToldTask):
        attempt = _attempts.get(task_id)
        # Without one it is the worker's main process, and the task's own is lost.
        reporter = attempt[0] if attempt else sender.reporter(task_id, 0, tuple(args), kwargs)
        if isinstance(exception, Reject):
            reporter.cancelled()
        else:
            reporter.failed(exception)


def _revoke(sender: object, request: Any, **_: object) -> None:
    if isinstance(sender, ToldTask):
        _reporter_of(sender, request).cancelled()


def _end(task_id: str, **_: object) -> None:
    if (attempt := _attempts.pop(task_id, None)) is not None:
        reporter, stack = attempt
        stack.close()
        reporter.settle()


def _reporter_of(task: ToldTask, request: Any) -> Reporter:
    args, kwargs = getattr(request, "args", None), getattr(request, "kwargs", None)
    retries = getattr(request, "retries", None)
    return task.reporter(request.id, retries or 0, tuple(args or ()), kwargs or {})


def _seconds_until(reason: object) -> float | None:
    when = reason.when if isinstance(reason, Retry) else None
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
