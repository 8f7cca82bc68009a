"""Handle runs that Inngest ends itself: no attempt is left, or they are cancelled."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import inngest

from .run import readable_failure

FAILED_EVENT = "inngest/function.failed"
CANCELLED_EVENT = "inngest/function.cancelled"

Context = inngest.Context | inngest.ContextSync

_ENCRYPTED = '"__ENCRYPTED__": true'


@dataclass(frozen=True, slots=True)
class TerminalEvent:
    """The data of Inngest's event about a run that has ended."""

    run_id: str
    events: list[inngest.Event]
    error: str


def parse_terminal_event(
    client: inngest.Inngest, ctx: Context, function: inngest.Function[Any]
) -> TerminalEvent:
    """Parse an ``inngest/function.failed`` or ``inngest/function.cancelled`` event."""
    data: Any = ctx.event.data
    run_id = data["run_id"]
    events = [
        inngest.Event(name=event["name"], data=event.get("data") or {})
        for event in data.get("events") or [data["event"]]
    ]
    if _ENCRYPTED in json.dumps([event.data for event in events]):
        _decrypt(client, ctx, function, events)
    return TerminalEvent(run_id, events, readable_failure(data.get("error"), run_id))


def _decrypt(
    client: inngest.Inngest,
    ctx: Context,
    function: inngest.Function[Any],
    events: list[inngest.Event],
) -> None:
    """Decrypt the events of the ended run with the client's middleware.

    The SDK decrypts only the events of the call itself, not the events that a terminal event
    contains.
    """
    as_its_own = replace(ctx, event=events[0], events=events)
    for make in client.middleware:
        middleware = make(client, None)
        if isinstance(middleware, inngest.MiddlewareSync):
            middleware.transform_input(as_its_own, function, inngest.StepMemos({}))


FAILURE_RETRIES = 20
"""Inngest's maximum. With its backoff, an app may be down for a day."""


def subscribe_to_terminal_events(function: inngest.Function[Any]) -> None:
    """Make Inngest retry the function's failure handler, and call it for
    ``inngest/function.cancelled``, too.

    The SDK asks for a single attempt, so an app that restarts at that moment would never notify the
    recipient. Inngest has no handler for a cancellation, and a separate function for it would have
    to be registered beside each function.
    """
    get_config = function.get_config

    def with_cancellations(app_url: str) -> Any:
        config = get_config(app_url)
        if config.on_failure is None:
            return config
        expression = f"event.data.function_id == '{function.id}'"
        also = inngest.TriggerEvent(event=CANCELLED_EVENT, expression=expression)
        steps = {
            id: step.model_copy(
                update={"retries": step.retries.model_copy(update={"attempts": FAILURE_RETRIES})}
            )
            for id, step in config.on_failure.steps.items()
            if step.retries is not None
        }
        update = {"triggers": [*config.on_failure.triggers, also], "steps": steps}
        return replace(config, on_failure=config.on_failure.model_copy(update=update))

    function.get_config = with_cancellations  # type: ignore[method-assign]
