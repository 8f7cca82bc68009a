"""One run of a function: its events, and the stored results of its steps."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from .events import Event, new_id
from .registry import Function


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays between attempts: short, for development. Inngest itself waits longer."""

    first_s: float = 0.2
    factor: float = 2.0
    longest_s: float = 5.0

    def before(self, attempt: int) -> float:
        """Return seconds before the attempt with this number; the first retry is 1."""
        return float(min(self.longest_s, self.first_s * self.factor ** (attempt - 1)))


@dataclass(eq=False, slots=True)
class Run:
    """An active run.

    Attributes:
        task: executes it; its result is the function's result.
        until_end: callbacks to undo registrations when the run has ended.
        is_cancelled: its cancellation was requested by an event, a timeout or its id.
    """

    function: Function
    events: list[Event]
    id: str = field(default_factory=new_id)
    steps: dict[str, Any] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    task: asyncio.Task[Any] = field(init=False)
    until_end: ExitStack = field(default_factory=ExitStack)
    is_cancelled: bool = False

    def __str__(self) -> str:
        return f"run {self.id} of {self.function.id}"

    def keep(self, step_id: str, value: Any) -> None:
        self.steps[step_id] = value
        self.order.append(step_id)

    def cancel(self) -> None:
        self.is_cancelled = self.task.cancel() or self.is_cancelled

    def request(self, attempt: int, step_id: str | None) -> dict[str, Any]:
        """Return the body of a call. A call for one step of a group runs only that step."""
        return {
            "event": self.events[0],
            "events": self.events,
            "steps": self.steps,
            "ctx": {
                "run_id": self.id,
                "env": "",
                "step_id": step_id or "step",
                "attempt": attempt,
                "max_attempts": self.function.max_attempts,
                "disable_immediate_execution": step_id is not None,
                "use_api": False,
                "stack": {"stack": self.order, "current": len(self.order)},
            },
            "use_api": False,
            "version": -1,
        }
