"""Adapt an Inngest run to :class:`JobRun`, and translate its errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import inngest

from ...errors import InvalidInputError, JobError, deciding_error
from ...jobs import Recipient
from ...jobs.notifications import generic_error

T = TypeVar("T")


class SynapJobError(Exception):
    """Carries a :class:`JobError` through Inngest, which preserves an error's name and message."""


class SynapInvalidInputError(inngest.NonRetriableError):
    """Carries an :class:`InvalidInputError` through Inngest: no retry."""


_READABLE = {SynapJobError.__name__, SynapInvalidInputError.__name__}


def to_inngest(error: Exception) -> Exception:
    """Translate a job's error, alone or in a group, to Inngest's; keep any other error."""
    decides = deciding_error(error)
    if not isinstance(decides, JobError):
        return error
    kind = SynapInvalidInputError if isinstance(decides, InvalidInputError) else SynapJobError
    try:
        text = str(decides)
    except Exception:  # noqa: BLE001 - the application's __str__ may raise anything
        text = ""  # then the failure has a generic text
    translated = kind(text)
    translated.__cause__ = error
    return translated


def to_final(error: Exception) -> Exception:
    """Return an error after which Inngest does not retry."""
    if isinstance(error, inngest.NonRetriableError):
        return error
    final = inngest.NonRetriableError(f"{type(error).__name__}: {error}")
    final.__cause__ = error
    return final


def is_final(error: Exception) -> bool:
    """Return whether Inngest does not retry after this error."""
    is_inngests = isinstance(error, inngest.NonRetriableError | inngest.StepError)
    return is_inngests or isinstance(deciding_error(error), InvalidInputError)


def readable_failure(error: object, run_id: str) -> str:
    """Return the user-facing text of the ``error`` in an ``inngest/function.failed`` event."""
    match error:
        case {"name": str(name), "message": str(message)} if name in _READABLE and message:
            return message
    return generic_error(run_id)


def recipient_from_event(event: inngest.Event) -> Recipient:
    """Return the recipient. The ids may be in the encrypted part of the event's data."""
    hidden = event.data.get("encrypted")
    return Recipient.from_data(
        {**hidden, **event.data} if isinstance(hidden, Mapping) else event.data
    )


class InngestRun:
    """An Inngest run; see :class:`JobRun`."""

    def __init__(self, ctx: inngest.Context) -> None:
        self._ctx = ctx
        recipient = recipient_from_event(ctx.event)
        self.user_id, self.request_id = recipient.ids

    @property
    def run_id(self) -> str:
        return self._ctx.run_id

    @property
    def data(self) -> Mapping[str, Any]:
        return self._ctx.event.data

    async def step(self, id: str, fn: Callable[[], Awaitable[T]]) -> T:
        return await self._ctx.step.run(id, fn)

    async def send_event(self, id: str, name: str, data: Mapping[str, Any]) -> None:
        await self._ctx.step.send_event(id, inngest.Event(name=name, data=dict(data)))
