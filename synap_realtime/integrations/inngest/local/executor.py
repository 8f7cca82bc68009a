"""Execute runs: from the events that trigger them to their terminal event."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from . import lifecycle_events
from .events import Event
from .expressions import ExpressionError
from .invoker import FunctionInvoker
from .lifecycle_events import RunFailedError
from .registry import Cancel, Function
from .runs import Backoff, Run
from .steps import StepRunner
from .waiters import Waiter, Waiters

logger = logging.getLogger(__name__)


class Executor:
    """All active runs of this process."""

    def __init__(
        self,
        caller: FunctionInvoker,
        publish: Callable[[Event], object],
        find: Callable[[str], Function | None],
        backoff: Backoff,
    ) -> None:
        self._publish = publish
        self._waiters = Waiters()
        self._stepper = StepRunner(caller, self._waiters, publish, find, backoff)
        self._runs: dict[str, Run] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def start(self, function: Function, given: Sequence[Event]) -> None:
        """Start a run with these events: one, or a batch."""
        run = Run(function, list(given))
        for cancel in function.cancels:
            run.until_end.enter_context(self._waiters.waiting(self._canceller(run, cancel)))
        run.task = asyncio.create_task(self._stepper.drive(run))
        if function.finish_timeout_s is not None:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(function.finish_timeout_s, run.cancel)
            run.until_end.callback(timer.cancel)
        self._runs[run.id] = run
        run.task.add_done_callback(lambda _: self._end(run))

    async def cancel(self, run_id: str) -> bool:
        """Cancel a run. An active call to the app continues, and its result is discarded.

        Returns:
            whether the run was active.
        """
        if (run := self._runs.get(run_id)) is None:
            return False
        run.cancel()
        await asyncio.wait([run.task])
        return True

    def offer(self, event: Event) -> None:
        """Pass an event to all steps and runs that wait for one."""
        self._waiters.offer(event)
        self._stepper.answer(event)

    async def idle(self) -> None:
        """Wait until no run and no call is active."""
        while self._runs:
            await asyncio.wait([run.task for run in self._runs.values()])
        await self._stepper.idle()

    async def stop(self) -> None:
        tasks = [run.task for run in self._runs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._stepper.stop(), return_exceptions=True)

    def _canceller(self, run: Run, cancel: Cancel) -> Waiter:
        loop = asyncio.get_running_loop()
        until = loop.time() + cancel.timeout_s

        def found(_: Event) -> None:
            if loop.time() < until:
                run.cancel()

        def failed(error: ExpressionError) -> None:
            logger.error("not cancelling %s: its %s", run, error)

        return Waiter(run.events[0], cancel.event, cancel.expression, found, failed)

    def _end(self, run: Run) -> None:
        del self._runs[run.id]
        run.until_end.close()
        about = (run.function.id, run.id, run.events)
        if run.task.cancelled():
            if not run.is_cancelled:
                return  # this server stops
            logger.info("%s was cancelled", run)
            terminal_events = lifecycle_events.cancelled(*about)
        elif error := run.task.exception():
            failure = _as_failure(run, error)
            logger.warning("%s failed: %s", run, failure)
            terminal_events = lifecycle_events.failed(*about, failure)
        else:
            logger.info("%s completed", run)
            terminal_events = lifecycle_events.completed(*about, run.task.result())
        for event in terminal_events:
            self._publish(event)


def _as_failure(run: Run, error: BaseException) -> RunFailedError:
    if isinstance(error, RunFailedError):
        return error
    logger.error("internal error of LocalInngest in %s; the run fails", run, exc_info=error)
    return RunFailedError({"name": type(error).__name__, "message": str(error)})
