"""A :class:`JobRun` without persisted steps: every attempt runs all of them again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from .recipients import Recipient

T = TypeVar("T")

SendEvent = Callable[[str, Mapping[str, Any]], Awaitable[object]]


class InProcessRun:
    """Run steps in this process. Steps run immediately, and again on each attempt."""

    def __init__(
        self,
        run_id: str,
        data: Mapping[str, Any],
        recipient: Recipient | None = None,
        send_event: SendEvent | None = None,
    ) -> None:
        """Describe a run.

        Args:
            recipient: the user and request to notify. Default: taken from ``data``.
            send_event: sends an event to other jobs, by name and data. Default: events are dropped.
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
