"""Parse events and complete them with an id and a time."""

from __future__ import annotations

import secrets
import time
from typing import Any

Event = dict[str, Any]

INVOKED = "inngest/function.invoked"
_INTERNAL = "inngest/"
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class EventError(ValueError):
    """The event is invalid for an app to send; the message states the reason."""


def new_id() -> str:
    """Return a ULID, Inngest's format of event and run ids."""
    number = now_ms() << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def now_ms() -> int:
    return int(time.time() * 1000)


def read(item: Any) -> Event:
    """Parse an event that an app sends.

    Raises:
        EventError: the name is missing or reserved, or data is not an object.
    """
    match item:
        case {"name": str(name), "data": dict() | None} if name:
            pass
        case {"name": str(name)} if name and "data" not in item:
            pass
        case _:
            raise EventError("not an event: an event needs a name, and data that is an object")
    if name.lower().startswith(_INTERNAL):
        raise EventError(f"event name is reserved for internal use: {name}")
    return {"data": {}} | {key: value for key, value in item.items() if value not in (None, "")}


def complete(event: Event) -> Event:
    """Return the event as a function receives it, with id, time and user."""
    return {"id": new_id(), "ts": now_ms(), "user": {}, **event}


def invoked(
    function_id: str, data: dict[str, Any], *, correlation_id: str, name: str, expires_ms: int
) -> Event:
    """Return the event that an invoked function receives.

    Args:
        function_id: the invoked function.
        data: the caller's data.
        correlation_id: returned in ``inngest/function.finished`` to find the caller.
        name: the caller's name for the step.
        expires_ms: when the caller stops waiting.
    """
    about = {
        "correlation_id": correlation_id,
        "expire": expires_ms,
        "fn_id": function_id,
        "name": name,
    }
    return complete({"name": INVOKED, "data": {**data, "_inngest": about}})
