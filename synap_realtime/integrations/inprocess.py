"""Jobs without a framework: coroutines of this process."""

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
from ..jobs.notifications import STALL_AFTER_S

T = TypeVar("T")

MAX_PAUSE_S = 60.0


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
    """Run a function as a job whose user hears how it stands.

    Nothing survives the process: for that, use a job framework.

    ::

        async def create_report(run: JobRun) -> dict[str, str]:
            progress(0.5, "Rendering")
            return {"url": await render(run.data["title"])}

        asyncio.create_task(run_job("report.creation", create_report,
                                    {"title": "Q3", "userId": "42", "requestId": "r1"}, retries=3))

    A run that was announced ends with one terminal notification whatever ends it: ``failed`` also
    for SystemExit, ``cancelled`` also for KeyboardInterrupt and for a coroutine that is closed.
    Nothing can be published when the process is killed, or its event loop is never run again.

    Args:
        family: the name before the dot, or a :class:`Family`.
        do: the job; it may run more than once, and each time does all of it. A plain function runs
            in a thread, where ``progress()`` and ``delta()`` work; when the job is cancelled, the
            thread goes on unheard.
        data: its input; who waits is ``userId`` and ``requestId`` in it.
        run_id: the same for the same run; default: a new one.
        retries: how often a failed attempt is tried again, but not after an
            :class:`InvalidInputError`, alone or in an exception group.
        first_pause_s: the pause before the first of these; each later one is twice as long, and
            none longer than a minute.

    Returns:
        what the job returned.

    Raises:
        InvalidArgumentError: ``retries`` is less than 0, or ``family`` or ``stall_after_s`` cannot
            be used; the job has not begun.
        ConfigurationError: no event loop of asyncio is running; the job has not begun.
        BaseException: what the last attempt raised; also CancelledError, when it was cancelled.
    """
    running_loop("run_job()", "pass asyncio.run(run_job(…)) to a thread")
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
        pause_s = min(initial_backoff_s * 2 ** (attempt - 1), MAX_PAUSE_S)
        try:
            try:
                with cancelled_at_exit(reporter), report_run(reporter):
                    result = await _call(fn, run)
            except Exception as error:
                again = reporter.attempt_failed(
                    error, retry_in_s=pause_s if attempt <= retries else None
                )
                if not again:
                    raise
                await reporter.aflush()
                await asyncio.sleep(pause_s)
                continue
            reporter.completed(result)
            await reporter.aflush()
        except GeneratorExit:  # the coroutine was closed: it may not await any more
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
    """Call the job, which is code that awaits or a plain function, in a thread then."""
    if _is_async(fn):
        return await fn(run)
    called = functools.partial(contextvars.copy_context().run, _outcome, fn, run)
    try:
        outcome = asyncio.get_running_loop().run_in_executor(None, called)
    except RuntimeError:  # no thread can be started: the interpreter shuts down, or none is left
        value, error = called()
    else:
        value, error = await outcome
    if error is not None:
        raise error
    # A function that is not itself async may still return something to await.
    return await value if inspect.isawaitable(value) else value


def _is_async(fn: object) -> bool:
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004 - whether it awaits, not whether it is callable
    )


def _outcome(fn: Callable[[JobRun], T], run: JobRun) -> tuple[T | None, BaseException | None]:
    """Call, and return the exception: a future cannot carry a StopIteration."""
    try:
        return fn(run), None
    except BaseException as error:  # noqa: BLE001 - it is raised where the job is awaited
        return None, error
