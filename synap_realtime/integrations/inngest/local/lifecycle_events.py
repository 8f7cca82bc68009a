"""Build a run's terminal events: ``inngest/function.finished``, ``.failed``, ``.cancelled``.

The payloads are those of the real server (its ``executor/finalize.go``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .events import INVOKED, Event

FINISHED = "inngest/function.finished"
FAILED = "inngest/function.failed"
CANCELLED = "inngest/function.cancelled"

_ERROR = ("error", "name", "message", "stack")


class RunFailedError(Exception):
    """A run has failed.

    Args:
        error: the app's own error, or one that describes the failure between the app and here.
        reason: Inngest's description of the failure, such as ``invalid status code: 500``.
        output: the app's last response, if that is not the error.
    """

    def __init__(
        self, error: Mapping[str, Any], reason: str | None = None, output: Any = None
    ) -> None:
        super().__init__(error.get("message"))
        self.output = dict(error) if output is None else output
        self.error = {"error": reason or str(error.get("message"))} | {
            key: error[key] for key in _ERROR if error.get(key)
        }


def completed(function_id: str, run_id: str, events: Sequence[Event], output: Any) -> list[Event]:
    return _terminal_events(function_id, run_id, events, "Completed", {"result": output})


def failed(
    function_id: str, run_id: str, events: Sequence[Event], failure: RunFailedError
) -> list[Event]:
    outcome = {"error": failure.error, "result": failure.output}
    return _terminal_events(function_id, run_id, events, "Failed", outcome, FAILED)


def cancelled(function_id: str, run_id: str, events: Sequence[Event]) -> list[Event]:
    """Return the events of a cancelled run. It has no result and no error, and no cause of the
    cancellation.
    """
    return _terminal_events(function_id, run_id, events, "Cancelled", {}, CANCELLED)


def answer(finished: Event) -> dict[str, Any]:
    """Return the result of ``step.invoke`` once the invoked function has ended.

    A cancelled function has no outcome. The real server passes the event itself, so that the step
    returns the event's data.
    """
    match finished["data"]:
        case {"error": error}:
            return {"error": error}
        case {"result": result}:
            return {"data": result}
        case _:
            return finished


def correlation_id(event: Event) -> str | None:
    """Return the ``step.invoke`` that caused this event, if any."""
    match event:
        case {"name": name, "data": {"_inngest": {"correlation_id": str(id)}}} if name == INVOKED:
            return id
        case _:
            return None


def _terminal_events(
    function_id: str,
    run_id: str,
    events: Sequence[Event],
    status: str,
    outcome: Mapping[str, Any],
    also: str | None = None,
) -> list[Event]:
    """Return the terminal events: one for the run, and one for each caller that waits for it.

    A run that was triggered by a terminal event has none, because that could repeat forever.
    """
    result: list[Event] = []
    for number, event in enumerate(events):
        id = correlation_id(event)
        if event["name"] in (FINISHED, FAILED) or (number > 0 and id is None):
            continue
        data = {
            "_inngest": {"status": status},
            "event": event,
            "events": [_without_user(item) for item in events],
            "function_id": function_id,
            "run_id": run_id,
            **({"correlation_id": id} if id else {}),
            **outcome,
        }
        result.append({"name": FINISHED, "data": data})
        if also:
            # The run's own id, so that a repeated event triggers a function once.
            result.append({"id": run_id, "name": also, "data": data})
    return result


def _without_user(event: Event) -> Event:
    return {key: value for key, value in event.items() if key != "user" or value}
