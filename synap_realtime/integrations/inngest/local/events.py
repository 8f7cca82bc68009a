"""Events as Inngest keeps them: with an id, a time, and the name's rules."""

from __future__ import annotations

import secrets
import time
from typing import Any

Event = dict[str, Any]

INVOKED = "inngest/function.invoked"
_INTERNAL = "inngest/"
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class EventError(ValueError):
    """This is no event that an app may send; the message says why."""


def new_id() -> str:
    """A ULID, the form that Inngest gives the ids of events and runs."""
    number = now_ms() << 80 | secrets.randbits(80)
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(125, -1, -5))


def now_ms() -> int:
    return int(time.time() * 1000)


def read(item: Any) -> Event:
    """An event as an app sends it.

    Raises:
        EventError: the name is missing or is Inngest's own, or data is no object.
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
    """The event with all that a function is handed: id, time and user are filled in."""
    return {"id": new_id(), "ts": now_ms(), "user": {}, **event}


def invoked(
    function_id: str, data: dict[str, Any], *, correlation_id: str, name: str, expires_ms: int
) -> Event:
    """What an invoked function is handed as its event.

    Args:
        function_id: who is invoked.
        data: what the caller gives it.
        correlation_id: comes back in ``inngest/function.finished``, and finds the caller.
        name: the caller's name for the step.
        expires_ms: when the caller waits no longer.
    """
    about = {
        "correlation_id": correlation_id,
        "expire": expires_ms,
        "fn_id": function_id,
        "name": name,
    }
    return complete({"name": INVOKED, "data": {**data, "_inngest": about}})
