"""Run coroutines of this process as jobs, without a framework."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar, overload

from ..broadcast import BackgroundBroadcaster
from ..errors import InvalidArgumentError
from ..event_loops import running_loop
from ..jobs import InProcessRun, JobRun, JobType, Recipient, Reporter, RunNotifications, report_run
from ..jobs.exits import cancelled_at_exit
from ..jobs.functions import check_job_function, is_coroutine_function
from ..jobs.notifications import STALL_AFTER_S

T = TypeVar("T")

MAX_BACKOFF_S = 60.0


@overload
async def run_job(
    job_type: JobType | str,
    fn: Callable[[JobRun], Awaitable[T]],
    data: Mapping[str, Any],
    *,
    run_id: str | None = None,
    retries: int = 0,
    initial_backoff_s: float = 1.0,
    stall_after_s: float = STALL_AFTER_S,
    broadcaster: BackgroundBroadcaster | None = None,
) -> T: ...


@overload
async def run_job(
    job_type: JobType | str,
    fn: Callable[[JobRun], T],
    data: Mapping[str, Any],
    *,
    run_id: str | None = None,
    retries: int = 0,
    initial_backoff_s: float = 1.0,
    stall_after_s: float = STALL_AFTER_S,
    broadcaster: BackgroundBroadcaster | None = None,
) -> T: ...


async def run_job(
    job_type: JobType | str,
    fn: Callable[[JobRun], Any],
    data: Mapping[str, Any],
    *,
    run_id: str | None = None,
    retries: int = 0,
    initial_backoff_s: float = 1.0,
    stall_after_s: float = STALL_AFTER_S,
    broadcaster: BackgroundBroadcaster | None = None,
) -> Any:
    """Run a function as a job and publish its lifecycle.

    The run does not survive the process; use a job framework for that.

    ::

        async def create_report(run: JobRun) -> dict[str, str]:
            progress(0.5, "Rendering")
            return {"url": await render(run.data["title"])}

        asyncio.create_task(run_job("report.creation", create_report,
                                    {"title": "Q3", "userId": "42", "requestId": "r1"}, retries=3))

    An announced run always ends with one terminal notification: ``failed`` also for SystemExit,
    ``cancelled`` also for KeyboardInterrupt and for a coroutine that is closed. Nothing can be
    published if the process is killed, or if its event loop never runs again.

    Args:
        job_type: the name before the dot, or a :class:`JobType`.
        fn: the job. It may be called several times, and must do all its work each time. A plain
            function runs in a thread, where ``progress()`` and ``delta()`` work. When the job is
            cancelled, the thread continues, but its reports are ignored.
        data: the input; its ``userId`` and ``requestId`` name the recipient.
        run_id: the same for the same run. Default: a new one.
        retries: maximum number of retries. An :class:`InvalidInputError`, alone or in an exception
            group, is not retried.
        initial_backoff_s: seconds before the first retry. Each further delay is doubled, up to a
            minute.

    Returns:
        the job's return value.

    Raises:
        InvalidArgumentError: ``retries`` is negative, ``fn`` is a generator function, or
            ``job_type`` or ``stall_after_s`` is invalid; the job was not started.
        ConfigurationError: no asyncio event loop is running; the job was not started.
        BaseException: the exception of the last attempt; also CancelledError, if it was cancelled.
    """
    running_loop("run_job()", "pass asyncio.run(run_job(…)) to a thread")
    check_job_function("fn", fn)
    if retries < 0:
        raise InvalidArgumentError("retries", f"expected 0 or more, got {retries}")
    job_type = JobType(job_type) if isinstance(job_type, str) else job_type
    run = InProcessRun(str(run_id or uuid.uuid4()), data)
    recipient = Recipient.from_data(data)
    attempt = 0
    while True:
        attempt += 1
        lifecycle = RunNotifications(
            job_type,
            run.run_id,
            attempt=attempt,
            max_attempts=retries + 1,
            stall_after_s=stall_after_s,
        )
        reporter = Reporter(lifecycle, [recipient], broadcaster)
        backoff_s = min(initial_backoff_s * 2 ** (attempt - 1), MAX_BACKOFF_S)
        try:
            try:
                with cancelled_at_exit(reporter), report_run(reporter):
                    result = await _call(fn, run)
            except Exception as error:
                again = reporter.attempt_failed(
                    error, retry_in_s=backoff_s if attempt <= retries else None
                )
                if not again:
                    raise
                await reporter.aflush()
                await asyncio.sleep(backoff_s)
                continue
            reporter.completed(result)
            await reporter.aflush()
        except GeneratorExit:  # the coroutine was closed and must not await any more
            reporter.cancelled()
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt):
                reporter.cancelled()
            else:
                reporter.failed(error)
            await reporter.aflush()
            raise
        return result


async def _call(fn: Callable[[JobRun], Any], run: JobRun) -> Any:
    """Call the job: a coroutine function here, a plain function in a thread."""
    if is_coroutine_function(fn):
        return await fn(run)
    called = functools.partial(contextvars.copy_context().run, _outcome, fn, run)
    try:
        outcome = asyncio.get_running_loop().run_in_executor(None, called)
    # No thread can be started: the interpreter shuts down, or the limit is reached.
    except RuntimeError:
        value, error = called()
    else:
        value, error = await outcome
    if error is not None:
        raise error
    # A plain function may still return an awaitable.
    return await value if inspect.isawaitable(value) else value


def _outcome(fn: Callable[[JobRun], T], run: JobRun) -> tuple[T | None, BaseException | None]:
    """Return the result or the exception: a future cannot carry a StopIteration."""
    try:
        return fn(run), None
    except BaseException as error:  # noqa: BLE001 - re-raised where the job is awaited
        return None, error
