"""Running functions: replay with kept steps, retries, sleeps, waits, parallel groups.

See the Inngest SDK specification, section 5, "Steps".
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import uuid_utils

from . import sdk
from .expressions import ExpressionError, matches
from .registry import Function

logger = logging.getLogger(__name__)

Event = dict[str, Any]
Publish = Callable[[Event], Awaitable[object]]

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_ENDINGS = ("inngest/function.failed", "inngest/function.finished")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])")


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before an attempt: short, for a laptop. Inngest itself waits longer."""

    first_s: float = 0.2
    factor: float = 2.0
    longest_s: float = 5.0

    def before(self, attempt: int) -> float:
        """Seconds before the attempt with this number; the first retry is 1."""
        return float(min(self.longest_s, self.first_s * self.factor ** (attempt - 1)))


@dataclass(slots=True)
class Run:
    """One run of a function, and what is kept of its steps."""

    function: Function
    event: Event
    id: str = field(default_factory=lambda: str(uuid_utils.uuid7()))
    steps: dict[str, Any] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    had_group: bool = False

    def keep(self, step_id: str, value: Any) -> None:
        self.steps[step_id] = value
        self.order.append(step_id)

    def request(self, attempt: int) -> dict[str, Any]:
        return {
            "event": self.event,
            "events": [self.event],
            "steps": self.steps,
            "ctx": {
                "run_id": self.id,
                "attempt": attempt,
                "max_attempts": self.function.max_attempts,
                "disable_immediate_execution": self.had_group,
                "use_api": False,
                "stack": {"stack": self.order, "current": len(self.order)},
            },
            "use_api": False,
            "version": 1,
        }


class RunFailedError(Exception):
    """A run is over, and failed with this error."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error.get("message"))
        self.error = dict(error)


class Waiters:
    """Runs that wait for an event."""

    def __init__(self) -> None:
        self._waiting: set[_Waiter] = set()

    async def wait(self, run: Run, name: str, expression: str | None, timeout_s: float) -> Any:
        """The first event of this name for which the condition holds; None when time is up."""
        waiter = _Waiter(run, name, expression, asyncio.get_running_loop().create_future())
        self._waiting.add(waiter)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiter.found
        except TimeoutError:
            return None
        finally:
            self._waiting.discard(waiter)

    def offer(self, event: Event) -> None:
        for waiter in tuple(self._waiting):
            waiter.offer(event)


@dataclass(eq=False, slots=True)
class _Waiter:
    run: Run
    name: str
    expression: str | None
    found: asyncio.Future[Event]

    def offer(self, event: Event) -> None:
        if event["name"] != self.name or self.found.done():
            return
        try:
            variables = {"event": self.run.event, "async": event}
            if self.expression is None or matches(self.expression, **variables):
                self.found.set_result(event)
        except ExpressionError as error:
            self.found.set_exception(
                RunFailedError({"name": "ExpressionError", "message": str(error)})
            )


class Executor:
    """Takes runs from their first call to their end."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        publish: Publish,
        find: Callable[[str], Function | None],
        backoff: Backoff,
    ) -> None:
        self._client = client
        self._publish = publish
        self._find = find
        self._backoff = backoff
        self.waiters = Waiters()

    async def execute(self, run: Run) -> Any:
        """Run a function to its end, and tell it: ``inngest/function.finished`` and ``.failed``.

        Returns:
            What the function returned.

        Raises:
            RunFailedError: it failed, and that was told.
        """
        finished: Event = {
            "function_id": run.function.id,
            "run_id": run.id,
            "event": run.event,
            "events": [run.event],
        }
        is_told = run.event["name"] not in _ENDINGS
        try:
            output = await self._drive(run)
        except Exception as error:
            failed = _as_failure(error)
            logger.warning("run %s of %s failed: %s", run.id, run.function.id, failed)
            if is_told:
                data = {**finished, "error": failed.error}
                await self._publish({"name": "inngest/function.finished", "data": data})
                await self._publish({"name": "inngest/function.failed", "data": data})
            raise failed from error
        logger.info("run %s of %s completed", run.id, run.function.id)
        if is_told:
            data = {**finished, "result": output}
            await self._publish({"name": "inngest/function.finished", "data": data})
        return output

    async def _drive(self, run: Run) -> Any:
        while True:
            outcome = await self._attempts(run, None)
            if isinstance(outcome, sdk.Returned):
                return outcome.output
            if len(outcome) > 1:
                run.had_group = True
                if any((op.get("opts") or {}).get("parallelMode") == "race" for op in outcome):
                    logger.warning(
                        "run %s of %s: LocalInngest waits for a whole group, also in race mode",
                        run.id,
                        run.function.id,
                    )
            try:
                async with asyncio.TaskGroup() as group:
                    for operation in outcome:
                        group.create_task(self._operate(run, operation))
            except ExceptionGroup as group_error:
                raise group_error.exceptions[0] from group_error

    async def _attempts(self, run: Run, step_id: str | None) -> sdk.Returned | list[dict[str, Any]]:
        """Call until something other than a failure comes back, or no attempt is left.

        Raises:
            RunFailedError: the function's last error.
        """
        attempt = 0
        while True:
            outcome = await sdk.call(
                self._client,
                run.function.url,
                run.request(attempt),
                step_id=step_id,
                request_id=str(uuid_utils.uuid7()),
            )
            match outcome:
                case sdk.Returned():
                    return outcome
                case sdk.Failure(error, retriable, retry_at):
                    pass
                case sdk.Steps(operations, retriable):
                    failed = [op for op in operations if op.get("op") == "StepError"]
                    if not failed or not retriable or attempt + 1 >= run.function.max_attempts:
                        return operations
                    error, retry_at = failed[0].get("error") or {}, None
            attempt += 1
            if not retriable or attempt >= run.function.max_attempts:
                raise RunFailedError(error)
            pause = self._pause(attempt, retry_at)
            logger.info(
                "run %s of %s: attempt %d of %d failed (%s), next in %.1f s",
                run.id,
                run.function.id,
                attempt,
                run.function.max_attempts,
                error.get("message"),
                pause,
            )
            await asyncio.sleep(pause)

    def _pause(self, attempt: int, retry_at: datetime | None) -> float:
        if retry_at is None:
            return self._backoff.before(attempt)
        return max(0.0, (retry_at - datetime.now(UTC)).total_seconds())

    async def _operate(self, run: Run, operation: Mapping[str, Any]) -> None:
        """Do what one reported step asks for, and keep its result.

        Raises:
            RunFailedError: the operation is unknown here, or its function failed for good.
        """
        step_id, opts = operation["id"], operation.get("opts") or {}
        match operation.get("op"):
            case "StepRun":
                run.keep(step_id, {"data": operation.get("data")})
            case "StepError" | "StepFailed":
                run.keep(step_id, {"error": operation.get("error")})
            case "StepPlanned":
                outcome = await self._attempts(run, step_id)
                if isinstance(outcome, sdk.Returned):
                    # The function returned instead: the next call finds that out again.
                    return
                for planned in outcome:
                    await self._operate(run, planned)
            case "Sleep":
                await _sleep_until(operation["name"])
                run.keep(step_id, None)
            case "WaitForEvent":
                timeout_s = _seconds(opts["timeout"])
                event = await self.waiters.wait(run, operation["name"], opts.get("if"), timeout_s)
                run.keep(step_id, event)
            case "InvokeFunction":
                run.keep(step_id, await self._invoke(opts))
            case other:
                raise RunFailedError(
                    {
                        "name": "UnsupportedOperation",
                        "message": f"LocalInngest does not know the operation {other!r}; run this "
                        "app on the Inngest Dev Server (npx inngest-cli dev)",
                    }
                )

    async def _invoke(self, opts: Mapping[str, Any]) -> dict[str, Any]:
        function = self._find(opts["function_id"])
        if function is None:
            message = f"there is no function {opts['function_id']!r} to invoke"
            return {"error": {"name": "FunctionNotFound", "message": message}}
        data = (opts.get("payload") or {}).get("data") or {}
        event = {
            "name": "inngest/function.invoked",
            "id": str(uuid_utils.uuid7()),
            "data": data,
            "ts": int(datetime.now(UTC).timestamp() * 1000),
        }
        try:
            async with asyncio.timeout(_seconds(opts.get("timeout") or "1w")):
                return {"data": await self.execute(Run(function, event))}
        except RunFailedError as failed:
            return {"error": failed.error}
        except TimeoutError:
            message = "the invoked function did not end in time"
            return {"error": {"name": "InvokeTimeout", "message": message}}


def _as_failure(error: Exception) -> RunFailedError:
    if isinstance(error, RunFailedError):
        return error
    logger.error("LocalInngest itself failed", exc_info=error)
    return RunFailedError({"name": type(error).__name__, "message": str(error)})


async def _sleep_until(moment: str) -> None:
    until = datetime.fromisoformat(moment)
    await asyncio.sleep(max(0.0, (until - datetime.now(UTC)).total_seconds()))


def _seconds(duration: str) -> float:
    """A time string such as ``1h30m`` (specification, section 1.3.2)."""
    parts = _DURATION.findall(duration)
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise RunFailedError({"name": "InvalidDuration", "message": f"{duration!r} is no duration"})
    return float(sum(float(number) * _UNITS[unit] for number, unit in parts))
