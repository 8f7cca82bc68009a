"""A :class:`JobRun` where no framework keeps what is done: every attempt does all of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from .recipients import Recipient

T = TypeVar("T")

SendEvent = Callable[[str, Mapping[str, Any]], Awaitable[object]]


class InProcessRun:
    """See :class:`JobRun`. Its parts run at once, and again on a later attempt."""

    def __init__(
        self,
        run_id: str,
        data: Mapping[str, Any],
        recipient: Recipient | None = None,
        send_event: SendEvent | None = None,
    ) -> None:
        """Describe a run.

        Args:
            person: who waits; default: as ``data`` says.
            send_event: tells other jobs, by name and data; default: nobody is told.
        """
        recipient = recipient or Recipient.from_data(data)
        self.run_id = run_id
        self.data = data
        self.user_id, self.request_id = recipient.ids
        self._send_event = send_event

    async def step(self, id: str, fn: Callable[[], Awaitable[T]]) -> T:  # noqa: ARG002
        return await fn()

    async def send_event(self, id: str, name: str, data: Mapping[str, Any]) -> None:  # noqa: ARG002
        if self._send_event is not None:
            await self._send_event(name, data)
