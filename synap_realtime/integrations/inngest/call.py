"""Report one call of an Inngest function.

This module uses the call, not the HTTP request, because a worker that connects out has none.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import inngest

from ...broadcast import BackgroundBroadcaster
from ...jobs import JobType, Recipient, Reporter, RunNotifications
from ...jobs.extent import Extent, entered, extent_of
from .run import is_final, recipient_from_event, to_final, to_inngest
from .terminal_events import CANCELLED_EVENT, Context, parse_terminal_event

logger = logging.getLogger(__name__)

WAIT_OPCODES = {"Sleep", "WaitForEvent", "WaitForSignal", "InvokeFunction"}
"""Steps that wait for an event. They may take any time and never count as stalled."""


@dataclass(frozen=True, slots=True)
class ReportingOptions:
    """How the calls of one function are reported."""

    job_type: JobType
    broadcaster: BackgroundBroadcaster | None
    stall_after_s: float
    max_attempts: int
    """The default for a server that does not provide it."""
    is_serialized: bool
    """Whether the client's serializer encodes the function's result."""


class FunctionCall:
    """One call of a function. Inngest makes one for each step and each attempt."""

    def __init__(
        self,
        client: inngest.Inngest,
        ctx: Context,
        function: inngest.Function[Any],
        steps: inngest.StepMemos,
    ) -> None:
        self._client = client
        self._function = function
        self._ctx = ctx
        self._steps = steps
        self._done_before = steps.size
        self._options: ReportingOptions | None = None
        self._has_ended = False
        self.reporter: Reporter | None = None

    @contextmanager
    def running(self, options: ReportingOptions) -> Iterator[None]:
        """Run the function's code inside this block; a step leaves it with an exception."""
        self._options = options
        self._events = self._ctx.events or [self._ctx.event]
        lifecycle = RunNotifications(
            options.job_type,
            self._ctx.run_id,
            attempt=self._ctx.attempt + 1,
            max_attempts=_max_attempts(self._ctx) or options.max_attempts,
            stall_after_s=options.stall_after_s,
            step=self._done_before,  # Inngest counts the attempts of each step
        )
        self.reporter = Reporter(
            lifecycle,
            map(recipient_from_event, self._events),
            options.broadcaster,
            invocation_id=str(self._done_before),
            is_replay=lambda: self._steps.size > 0,
        )
        if self._done_before == 0:  # on any attempt: the first may have failed before this code
            self.reporter.started()
        with extent_of(self.reporter) as extent:
            _wrap_steps(self._ctx.step, extent)
            yield

    def end(self, result: object) -> None:
        """Handle the return of the function."""
        assert self.reporter is not None and self._options is not None  # noqa: S101, PT018
        try:
            if self._options.is_serialized:
                assert self._client._serializer is not None  # noqa: S101 - guaranteed by is_serialized
                self._client._serializer.serialize(result, self._function._output_type)
            else:
                json.dumps(result)
        except Exception:  # noqa: BLE001 - the application's model may raise anything
            return  # the SDK is about to reject it, and Inngest retries
        recipients = [recipient_from_event(event) for event in self._events]
        if len(set(recipients)) == 1:
            self.reporter.completed(result)
        else:
            results = _results_of(recipients, result)
            if not results:
                logger.debug(
                    "result of run %s of %s omitted: expected a list with one result per event; "
                    "its notifications hold no result",
                    self._ctx.run_id,
                    self._function.id,
                )
            self.reporter.completed_batch(results)

    def on_terminal_event(self, options: ReportingOptions) -> bool:
        """Publish that Inngest has ended the run. Return whether it has failed."""
        failed = self._ctx.event.name != CANCELLED_EVENT
        if self._done_before == 0:
            terminal = parse_terminal_event(self._client, self._ctx, self._function)
            lifecycle = RunNotifications(options.job_type, terminal.run_id)
            self.reporter = Reporter(
                lifecycle, map(recipient_from_event, terminal.events), options.broadcaster
            )
            if failed:
                self.reporter.failed(terminal.error)
            else:
                self.reporter.cancelled()
        self._has_ended = True
        return failed

    def after(self, result: inngest.TransformOutputResult) -> None:
        """Handle the return or failure of a step or of the function."""
        if self._has_ended and result.error is not None:
            # Inngest retries the failure handler until it has notified the recipient. After that,
            # the application's own handler runs once.
            result.error = to_final(result.error)
        if self.reporter is None or self._options is None:
            return
        if result.step is not None and result.step.op.value in WAIT_OPCODES:
            # A loop may wait repeatedly under one step name.
            self.reporter.suspended(f"{result.step.id}:{self._done_before}")
        if result.error is None:
            return
        error = result.error
        result.error = to_inngest(error)
        attempt = self._ctx.attempt + 1
        most = _max_attempts(self._ctx) or self._options.max_attempts
        if is_final(error) or attempt >= most:
            return  # Inngest calls the failure handler, which notifies the recipient
        part = f"{f'step:{result.step.id}' if result.step else 'run'}:{self._done_before}"
        self.reporter.retrying(error, step=part, retry_in_s=_seconds_until_retry(error))


def _wrap_steps(step: Any, function: Extent) -> None:
    """Mark a step's code as not replayed.

    Otherwise it could count as a replay when other steps of its parallel group have completed and
    the function's code has not passed them.
    """
    run = step.run
    news = Extent(function.sink, is_replay=False, within=function)

    def marked(step_id: str, handler: Callable[..., Any], *args: Any, **options: Any) -> Any:
        def in_step(*args: Any) -> Any:
            with entered(news):
                result = handler(*args)
            return wait(result) if inspect.isawaitable(result) else result

        async def wait(result: Awaitable[Any]) -> Any:
            with entered(news):
                return await result

        return run(step_id, in_step, *args, **options)

    step.run = marked


def _results_of(recipients: list[Recipient], result: object) -> dict[Recipient, object]:
    """Return the results for each recipient of a batch: those of its own events only.

    A list with one result for each event is split. Any other result has no known owner and is
    omitted.
    """
    if not isinstance(result, list) or len(result) != len(recipients):
        return {}
    results: dict[Recipient, list[object]] = defaultdict(list)
    for recipient, each in zip(recipients, result, strict=True):
        results[recipient].append(each)
    return {
        recipient: own[0] if len(own) == 1 else {"results": own}
        for recipient, own in results.items()
    }


def _max_attempts(ctx: Context) -> int | None:
    """Return the server's maximum, which the SDK does not expose."""
    request = getattr(getattr(ctx.step, "_execution", None), "_request", None)
    said = getattr(getattr(request, "ctx", None), "max_attempts", None)
    return said if isinstance(said, int) and said > 0 else None


def _seconds_until_retry(error: Exception) -> float | None:
    if not isinstance(error, inngest.RetryAfterError):
        return None
    now = datetime.now(UTC)
    at = error.retry_after.astimezone(UTC)  # naive means local time, as in the SDK
    return max(0.0, round((at - now).total_seconds(), 3))


current_call: ContextVar[FunctionCall] = ContextVar("synap_realtime_inngest_call")


class ReportingMiddleware(inngest.Middleware):
    """Passes what Inngest shows only to middlewares to the function's :class:`FunctionCall`."""

    async def transform_input(
        self, ctx: Context, function: inngest.Function[Any], steps: inngest.StepMemos
    ) -> None:
        self._call = FunctionCall(self.client, ctx, function, steps)
        current_call.set(self._call)

    async def transform_output(self, result: inngest.TransformOutputResult) -> None:
        self._call.after(result)

    async def before_response(self) -> None:
        if self._call.reporter is not None:
            await self._call.reporter.aflush()


class ReportingMiddlewareSync(inngest.MiddlewareSync):
    """Synchronous variant of :class:`ReportingMiddleware`."""

    def transform_input(
        self, ctx: Context, function: inngest.Function[Any], steps: inngest.StepMemos
    ) -> None:
        self._call = FunctionCall(self.client, ctx, function, steps)
        current_call.set(self._call)

    def transform_output(self, result: inngest.TransformOutputResult) -> None:
        self._call.after(result)

    def before_response(self) -> None:
        if self._call.reporter is not None:
            self._call.reporter.flush()
