"""How a job stands, from what was heard of it. See PROTOCOL.md, "Jobs"."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..protocol.notification import Notification
from ..protocol.rooms import request_room
from .aio import subscribe
from .options import Token


@dataclass(frozen=True, slots=True)
class JobState:
    """How a job stands.

    Attributes:
        status: ``idle`` before anything was heard; ``stalled`` when it has been silent for longer
            than it said is normal; ``success`` and ``error`` are its end.
        progress: 0 to 1, if the job tells.
        label: what it is doing.
        attempt, max_attempts: which attempt runs, or will, of how many.
        error: why the last attempt failed, or why the job did.
        result: the ``data`` of its end.
        text: what it has written so far.
        type: of the last notification.
    """

    status: Literal["idle", "pending", "retrying", "stalled", "success", "error"] = "idle"
    progress: float | None = None
    label: str | None = None
    attempt: int = 1
    max_attempts: int | None = None
    error: str | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""
    type: str | None = None

    @property
    def is_over(self) -> bool:
        return self.status in ("success", "error")


class JobView:
    """What one job's notifications come to: pure, without a clock.

    Attributes:
        state: how the job stands.
        stall_after_s: how long silence is normal from the last notification on; None for ever.
    """

    def __init__(self) -> None:
        self.state = JobState()
        self.stall_after_s: float | None = None

    def hear(self, notification: Notification) -> JobState:
        """Take the next notification; what comes after the end is ignored."""
        state = self.state
        if state.is_over:
            return state
        data = notification.data
        word = notification.type.rpartition(".")[2]
        state = replace(state, type=notification.type)
        if notification.status in ("success", "error"):
            self.stall_after_s = None
            error = _text(data.get("error")) if notification.status == "error" else None
            state = replace(state, status=notification.status, result=data, error=error)
        elif word == "delta":
            begins = data.get("index") == 0  # an attempt writes its text from the beginning
            text = ("" if begins else state.text) + (_text(data.get("delta")) or "")
            state = replace(state, status="pending", text=text)
        else:
            self.stall_after_s = _number(data.get("stallAfterS")) or None
            most = _number(data.get("maxAttempts"))
            state = replace(
                state,
                status="retrying" if word == "retrying" else "pending",
                attempt=int(_number(data.get("attempt")) or state.attempt),
                max_attempts=state.max_attempts if most is None else int(most),
                progress=_number(data.get("progress"), state.progress),
                label=_text(data.get("label")) or state.label,
                error=_text(data.get("error")) or state.error,
            )
            if word == "retrying":  # what the failed attempt had shown is void
                state = replace(state, progress=None, label=None)
        self.state = state
        return state

    def stall(self) -> JobState:
        """It has been silent for too long. A later word takes that back."""
        if self.state.status in ("pending", "retrying"):
            self.state = replace(self.state, status="stalled")
        return self.state


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object, default: float | None = None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return default
    return value


async def follow_job(
    request_id: str,
    url: str | None = None,
    token: Token = None,
) -> AsyncGenerator[JobState, None]:
    """Follow one request's job to its end, also if that was before the call.

    ::

        async with aclosing(follow_job("r1")) as states:
            async for state in states:
                print(state.status, state.progress, state.label)

    Args:
        request_id: what was asked for; its room is ``request_{request_id}``.
        url, token: as for :func:`subscribe`.

    Yields:
        how it stands, at each change; the last is its end.

    Raises:
        as :func:`subscribe` does.
    """
    view = JobView()
    room = request_room(request_id)
    async with aclosing(subscribe(room, url, token, after="earliest", attempts=None)) as heard:
        coming: asyncio.Future[Notification] | None = None
        try:
            while not view.state.is_over:
                coming = coming or asyncio.ensure_future(anext(heard))
                done, _ = await asyncio.wait([coming], timeout=view.stall_after_s)
                if done:
                    state = view.hear(coming.result())
                    coming = None
                else:
                    view.stall_after_s = None
                    state = view.stall()
                yield state
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.wait([coming])
