"""What is told of a run's end: ``inngest/function.finished``, ``.failed`` and ``.cancelled``.

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
    """A run is over, and failed.

    Args:
        error: the app's own error, or one that says what went wrong between the app and here.
        reason: how Inngest sees the failure, such as ``invalid status code: 500``.
        output: what the app's last answer was, where that is not the error.
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
    return _told(function_id, run_id, events, "Completed", {"result": output})


def failed(
    function_id: str, run_id: str, events: Sequence[Event], failure: RunFailedError
) -> list[Event]:
    outcome = {"error": failure.error, "result": failure.output}
    return _told(function_id, run_id, events, "Failed", outcome, FAILED)


def cancelled(function_id: str, run_id: str, events: Sequence[Event]) -> list[Event]:
    """A cancelled run has no result and no error, and nothing says what cancelled it."""
    return _told(function_id, run_id, events, "Cancelled", {}, CANCELLED)


def answer(finished: Event) -> dict[str, Any]:
    """What ``step.invoke`` keeps when the invoked function has ended.

    A cancelled function has no outcome; the real server hands over the event itself, and so the
    step returns the event's data.
    """
    match finished["data"]:
        case {"error": error}:
            return {"error": error}
        case {"result": result}:
            return {"data": result}
        case _:
            return finished


def correlation_id(event: Event) -> str | None:
    """Which ``step.invoke`` caused this event, if one did."""
    match event:
        case {"name": name, "data": {"_inngest": {"correlation_id": str(id)}}} if name == INVOKED:
            return id
        case _:
            return None


def _told(
    function_id: str,
    run_id: str,
    events: Sequence[Event],
    status: str,
    outcome: Mapping[str, Any],
    also: str | None = None,
) -> list[Event]:
    """The events that tell an end: one for the run, and one for each caller that waits for it.

    A run that such an event started is told to nobody: that would go on for ever.
    """
    told: list[Event] = []
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
        told.append({"name": FINISHED, "data": data})
        if also:
            # The run's own id: however often this is told, it starts a function once.
            told.append({"id": run_id, "name": also, "data": data})
    return told


def _without_user(event: Event) -> Event:
    return {key: value for key, value in event.items() if key != "user" or value}
