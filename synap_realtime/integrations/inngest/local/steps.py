"""Execute a run's steps: replay, retries, sleeps, waits, parallel groups, invocations.

See the Inngest SDK specification, section 5, "Steps".
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from . import durations, events, lifecycle_events, sdk
from .events import Event
from .expressions import ExpressionError
from .invoker import FunctionInvoker
from .lifecycle_events import RunFailedError
from .registry import Function
from .runs import Backoff, Run
from .waiters import Waiters

logger = logging.getLogger(__name__)

_YEAR_S = 365 * 86400.0
_KEPT_OF_ERRORS = ("name", "message", "stack", "data", "cause")


class StepRunner:
    """Calls functions repeatedly and executes the steps that they report."""

    def __init__(
        self,
        caller: FunctionInvoker,
        waiters: Waiters,
        publish: Callable[[Event], object],
        find: Callable[[str], Function | None],
        backoff: Backoff,
    ) -> None:
        self._caller = caller
        self._waiters = waiters
        self._publish = publish
        self._find = find
        self._backoff = backoff
        self._calls: set[asyncio.Task[sdk.Outcome]] = set()
        self._invocations: dict[str, asyncio.Future[Event]] = {}

    async def drive(self, run: Run) -> Any:
        """Execute a run to its end.

        Returns:
            the function's result.

        Raises:
            RunFailedError: it failed, and no attempt is left.
        """
        pending: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                outcome = await self._attempts(run, None)
                if isinstance(outcome, sdk.Returned):
                    return outcome.output
                for operation in outcome:
                    # In a race, the function is called while steps of its group are active.
                    if (id := operation["id"]) not in pending:
                        pending[id] = asyncio.create_task(self._operate(run, operation))
                if not pending:
                    raise RunFailedError({"name": "NoSteps", "message": "no step was reported"})
                when = asyncio.FIRST_COMPLETED if _is_race(outcome) else asyncio.FIRST_EXCEPTION
                await asyncio.wait(pending.values(), return_when=when)
                for id in [id for id, task in pending.items() if task.done()]:
                    pending.pop(id).result()
        finally:
            for task in pending.values():
                task.cancel()
            await asyncio.gather(*pending.values(), return_exceptions=True)

    def answer(self, event: Event) -> None:
        """Resume the ``step.invoke`` that waits for this terminal event."""
        if event["name"] != lifecycle_events.FINISHED:
            return
        invocation = self._invocations.get(event["data"].get("correlation_id", ""))
        if invocation is not None and not invocation.done():
            invocation.set_result(event)

    async def idle(self) -> None:
        """Wait until no call is active, including calls of runs that have ended."""
        while self._calls:
            await asyncio.wait(self._calls)

    async def stop(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _attempts(self, run: Run, step_id: str | None) -> sdk.Returned | list[dict[str, Any]]:
        """Call until the result is not a failure, or no attempt is left.

        Raises:
            RunFailedError: the function's last error.
        """
        attempt = 0
        while True:
            match outcome := await self._attempt(run, attempt, step_id):
                case sdk.Returned():
                    return outcome
                case sdk.SdkFailure(error, retriable, retry_at, reason, output):
                    pass
                case sdk.Steps(operations, retriable):
                    failed = [op for op in operations if op.get("op") == "StepError"]
                    if not failed or not retriable or attempt + 1 >= run.function.max_attempts:
                        return operations
                    error = failed[0].get("error") or {}
                    retry_at, reason, output = None, None, None
            attempt += 1
            if not retriable or attempt >= run.function.max_attempts:
                raise RunFailedError(error, reason, output)
            pause = self._pause(attempt, retry_at)
            logger.info(
                "%s: attempt %d of %d failed (%s); retrying in %.1f s",
                run,
                attempt,
                run.function.max_attempts,
                error.get("message"),
                pause,
            )
            await asyncio.sleep(pause)

    async def _attempt(self, run: Run, attempt: int, step_id: str | None) -> sdk.Outcome:
        """Make one call. It outlives a cancelled run: as on Inngest, the app is not interrupted."""
        await self._caller.ready(run.function)
        call = asyncio.create_task(
            self._caller.call(run.function, run.request(attempt, step_id), step_id)
        )
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await asyncio.shield(call)

    def _pause(self, attempt: int, retry_at: datetime | None) -> float:
        if retry_at is None:
            return self._backoff.before(attempt)
        return max(0.0, (retry_at - datetime.now(UTC)).total_seconds())

    async def _operate(self, run: Run, operation: Mapping[str, Any]) -> None:
        """Execute one reported step, and store its result."""
        step_id, opts = operation["id"], operation.get("opts") or {}
        match operation.get("op"):
            case "StepRun":
                run.keep(step_id, {"data": operation.get("data")})
            case "StepError" | "StepFailed":
                error = operation.get("error") or {}
                kept = {key: error[key] for key in _KEPT_OF_ERRORS if error.get(key) is not None}
                run.keep(step_id, {"error": kept})
            case "StepPlanned":
                outcome = await self._attempts(run, step_id)
                if isinstance(outcome, sdk.Returned):
                    # The function returned instead; the next call observes that again.
                    return
                for planned in outcome:
                    await self._operate(run, planned)
            case "Sleep":
                await _sleep_until(operation["name"])
                run.keep(step_id, None)
            case "WaitForEvent":
                run.keep(step_id, await self._wait(run, operation["name"], opts))
            case "InvokeFunction":
                run.keep(step_id, await self._invoke(run, operation, opts))
            case other:
                raise RunFailedError(
                    {
                        "name": "UnsupportedOperation",
                        "message": f"LocalInngest does not know the operation {other!r}; run this "
                        "app on the Inngest Dev Server (npx inngest-cli dev)",
                    }
                )

    async def _wait(self, run: Run, name: str, opts: Mapping[str, Any]) -> Event | None:
        try:
            timeout_s = _seconds(opts["timeout"])
            return await self._waiters.wait(run.events[0], name, opts.get("if"), timeout_s)
        except ExpressionError as error:
            raise RunFailedError({"name": "ExpressionError", "message": str(error)}) from error

    async def _invoke(
        self, run: Run, operation: Mapping[str, Any], opts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Start another function's run, and wait for its end; it does not end with this run."""
        function_id = str(opts["function_id"])
        timeout_s = _seconds(opts["timeout"]) if opts.get("timeout") else _YEAR_S
        event = events.invoked(
            function_id,
            (opts.get("payload") or {}).get("data") or {},
            correlation_id=f"{run.id}.{operation['id']}",
            name=str(operation.get("displayName")),
            expires_ms=events.now_ms() + int(timeout_s * 1000),
        )
        if self._find(function_id) is None:
            return _error("Error", f"could not find function with ID: {function_id}")
        id = lifecycle_events.correlation_id(event) or ""
        ended = self._invocations[id] = asyncio.get_running_loop().create_future()
        self._publish(event)
        try:
            async with asyncio.timeout(timeout_s):
                return lifecycle_events.answer(await ended)
        except TimeoutError:
            name, message = "InngestInvokeTimeoutError", "Timed out waiting for invoked function"
            return _error(name, f"{message} to complete")
        finally:
            del self._invocations[id]


def _is_race(operations: list[dict[str, Any]]) -> bool:
    return any((op.get("opts") or {}).get("parallelMode") == "race" for op in operations)


def _error(name: str, message: str) -> dict[str, Any]:
    return {"error": {"name": name, "message": message}}


async def _sleep_until(moment: str) -> None:
    until = datetime.fromisoformat(moment)
    await asyncio.sleep(max(0.0, (until - datetime.now(UTC)).total_seconds()))


def _seconds(duration: str) -> float:
    try:
        return durations.seconds(duration)
    except ValueError as error:
        raise RunFailedError({"name": "InvalidDuration", "message": str(error)}) from error
