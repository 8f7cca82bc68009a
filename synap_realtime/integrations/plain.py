"""Jobs without a framework: coroutines of this process."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from ..broadcast import BackgroundBroadcaster
from ..errors import InvalidArgumentError
from ..jobs import Family, JobRun, Lifecycle, Person, PlainRun, Reporter, running
from ..jobs.lifecycle import STALL_AFTER_S

T = TypeVar("T")

MAX_PAUSE_S = 60.0


async def run_job(
    family: Family | str,
    do: Callable[[JobRun], Awaitable[T]],
    data: Mapping[str, Any],
    *,
    run_id: str | None = None,
    retries: int = 0,
    first_pause_s: float = 1.0,
    stall_after_s: float = STALL_AFTER_S,
    broadcaster: BackgroundBroadcaster | None = None,
) -> T:
    """Run a coroutine function as a job whose user hears how it stands.

    Nothing survives the process: for that, use a job framework.

    ::

        async def create_report(run: JobRun) -> dict[str, str]:
            progress(0.5, "Rendering")
            return {"url": await render(run.data["title"])}

        asyncio.create_task(run_job("report.creation", create_report,
                                    {"title": "Q3", "userId": "42", "requestId": "r1"}, retries=3))

    Args:
        family: the name before the dot, or a :class:`Family`.
        do: the job; it may run more than once, and each time does all of it.
        data: its input; who waits is ``userId`` and ``requestId`` in it.
        run_id: the same for the same run; default: a new one.
        retries: how often a failed attempt is tried again, but not after an
            :class:`InvalidInputError`.
        first_pause_s: the pause before the first of these; each later one is twice as long, and
            none longer than a minute.

    Returns:
        what the job returned.

    Raises:
        InvalidArgumentError: ``retries`` is less than 0.
        Exception: what the last attempt raised; also CancelledError, when it was cancelled.
    """
    if retries < 0:
        raise InvalidArgumentError("retries", f"expected 0 or more, got {retries}")
    family = Family(family) if isinstance(family, str) else family
    run = PlainRun(run_id or str(uuid.uuid4()), data)
    attempt = 0
    while True:
        attempt += 1
        lifecycle = Lifecycle(
            family,
            run.run_id,
            attempt=attempt,
            max_attempts=retries + 1,
            stall_after_s=stall_after_s,
        )
        reporter = Reporter(lifecycle, [Person.of(data)], broadcaster)
        pause_s = min(first_pause_s * 2 ** (attempt - 1), MAX_PAUSE_S)
        try:
            try:
                with running(reporter):
                    result = await do(run)
            except Exception as error:
                again = reporter.raised(error, again_in_s=pause_s if attempt <= retries else None)
                if not again:
                    raise
                await asyncio.sleep(pause_s)
                continue
            reporter.completed(result)
        except asyncio.CancelledError:
            reporter.cancelled()
            raise
        else:
            return result
        finally:
            await reporter.asettle()
