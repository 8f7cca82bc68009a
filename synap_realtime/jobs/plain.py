"""A :class:`JobRun` where no framework keeps what is done: every attempt does all of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from .people import Person

T = TypeVar("T")

SendEvent = Callable[[str, Mapping[str, Any]], Awaitable[object]]


class PlainRun:
    """See :class:`JobRun`. Its parts run at once, and again on a later attempt."""

    def __init__(
        self,
        run_id: str,
        data: Mapping[str, Any],
        person: Person | None = None,
        send_event: SendEvent | None = None,
    ) -> None:
        """Describe a run.

        Args:
            person: who waits; default: as ``data`` says.
            send_event: tells other jobs, by name and data; default: nobody is told.
        """
        person = person or Person.of(data)
        self.run_id = run_id
        self.data = data
        self.user_id, self.request_id = person.ids
        self._send_event = send_event

    async def step(self, id: str, do: Callable[[], Awaitable[T]]) -> T:  # noqa: ARG002
        return await do()

    async def send_event(self, id: str, name: str, data: Mapping[str, Any]) -> None:  # noqa: ARG002
        if self._send_event is not None:
            await self._send_event(name, data)
