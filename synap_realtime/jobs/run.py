"""One run of a job, as its code sees it, on any framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class JobRun(Protocol):
    """What a framework hands to a job.

    Attributes:
        run_id: the same on every attempt; what the job makes is named after it, so that running
            twice leaves one thing.
        data: the input, a JSON object.
        user_id: who waits; None if the event names nobody.
        request_id: what they wait for; None if the event names no request.
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
        """Do a part of the job once: a later attempt gets the kept result.

        Args:
            id: the part's name, unique in the job.
            do: gives JSON data. A :class:`JobError` that it raises keeps its message.
        """
        ...

    async def send_event(self, id: str, name: str, data: Mapping[str, Any]) -> None:
        """Tell other jobs, once. ``id`` is the part's name, as for :meth:`step`."""
        ...
