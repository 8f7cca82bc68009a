"""One run of a job as its code sees it, on any framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from .recipients import Recipient

T = TypeVar("T")

SendEvent = Callable[[str, Mapping[str, Any]], Awaitable[object]]


class JobRun(Protocol):
    """The run that a framework passes to a job.

    Attributes:
        run_id: the same on every attempt. Derive the ids of created objects from it, so that a
            repeated run creates each of them once.
        data: the input, a JSON object.
        user_id: the user to notify; None if the event names no user.
        request_id: the request to notify; None if the event names no request.
    """

    @property
    def run_id(self) -> str: ...
    @property
    def data(self) -> Mapping[str, Any]: ...
    @property
    def user_id(self) -> str | None: ...
    @property
    def request_id(self) -> str | None: ...

    async def step(self, id: str, fn: Callable[[], Awaitable[T]]) -> T:
        """Run a step once. A later attempt returns the stored result.

        Args:
            id: the step's name, unique in the job.
            fn: returns JSON data. The message of a :class:`JobError` that it raises is preserved.
        """
        ...

    async def send_event(self, id: str, name: str, data: Mapping[str, Any]) -> None:
        """Send an event to other jobs, once. ``id`` is the step's name, as for :meth:`step`."""
        ...


class InProcessRun:
    """A run without persisted steps: they run immediately, and again on each attempt."""

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
