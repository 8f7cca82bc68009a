"""How a job stands, from what was heard of it. See PROTOCOL.md, "Jobs"."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..event_loops import running_loop
from ..protocol.notification import Notification
from ..protocol.rooms import UserId, request_room
from .aio import subscribe
from .options import SubscriptionState, Token


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
        text: what it has written so far, from its beginning to the first piece that is missing.
        is_text_complete: false when a piece of the text is missing: this client came late, or was
            away for longer than the server keeps what was published. The result brings the whole.
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
    is_text_complete: bool = True
    type: str | None = None

    @property
    def is_finished(self) -> bool:
        return self.status in ("success", "error")


class JobTracker:
    """What one job's notifications come to: pure, without a clock.

    Attributes:
        state: how the job stands.
        stall_after_s: how long silence is normal from the last notification on; None for ever.
    """

    def __init__(self) -> None:
        self.state = JobState()
        self.stall_after_s: float | None = None
        self._run: object = None  # whose text it is: the run and its attempt
        self._attempt = 0.0
        self._next_index: float | None = 0  # None: no piece continues the text

    def apply(self, notification: Notification) -> JobState:
        """Take the next notification; what comes after the end is ignored."""
        state = self.state
        if state.is_finished:
            return state
        data = notification.data
        word = notification.type.rpartition(".")[2]
        state = replace(state, type=notification.type)
        if notification.status in ("success", "error"):
            self.stall_after_s = None
            error = _text(data.get("error")) if notification.status == "error" else None
            state = replace(state, status=notification.status, result=data, error=error)
            if notification.status == "success":
                state = _completed(state)
        elif word == "delta":
            state = replace(self._write(state, data), status="pending")
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

    def gap(self) -> JobState:
        """Something was missed that the server no longer has: perhaps the rest of the text."""
        if not self.state.is_finished:
            self.state = replace(self.state, is_text_complete=False)
        return self.state

    def _write(self, state: JobState, data: Mapping[str, Any]) -> JobState:
        """Add a piece. A text that lacks a piece is shown up to there, one without its beginning is
        not shown."""
        index, attempt = _number(data.get("index")), _number(data.get("attempt"), 1.0) or 1.0
        is_same_run = data.get("runId") == self._run
        if is_same_run and attempt < self._attempt:
            return state  # what an earlier attempt has written is void
        is_other = not is_same_run or attempt != self._attempt
        self._run, self._attempt = data.get("runId"), attempt
        piece = _text(data.get("delta")) or ""
        if index == 0:  # an attempt writes its text from the beginning
            self._next_index = 1
            return replace(state, text=piece, is_text_complete=True)
        if not is_other and index is not None and self._next_index is not None:
            if index == self._next_index:
                self._next_index = index + 1
                return replace(state, text=state.text + piece, is_text_complete=True)
            if index < self._next_index:
                return state  # it came before
        self._next_index = None
        return replace(state, text="" if is_other else state.text, is_text_complete=False)

    def mark_stalled(self) -> JobState:
        """It has been silent for too long. A later word takes that back."""
        if self.state.status in ("pending", "retrying"):
            self.state = replace(self.state, status="stalled")
        return self.state


def _completed(state: JobState) -> JobState:
    """A good end. What the text lacks is in the result: what the job returned, or the member that
    has the whole text."""
    state = replace(state, progress=1.0)
    if state.is_text_complete:
        return state
    for name in ("response", "text", "result"):
        if (whole := _text(state.result.get(name))) is not None:
            return replace(state, text=whole, is_text_complete=True)
    return state


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: object, default: float | None = None) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return default
    return value


def follow_job(
    request_id: UserId,
    url: str | None = None,
    token: Token = None,
) -> AsyncGenerator[JobState, None]:
    """Follow one request's job to its end, also if that was before the call.

    ::

        async with aclosing(follow_job("r1")) as states:
            async for state in states:
                print(state.status, state.progress, state.label)

    A lost connection says nothing about the job: it is resumed, and meanwhile the job does not
    count as stalled.

    Args:
        request_id: what was asked for; its room is ``request_{request_id}``.
        url, token: as for :func:`subscribe`.

    Yields:
        how it stands, at each change; the last is its end.

    Raises:
        as :func:`subscribe` does.
    """
    following = _Following()
    heard = subscribe(
        request_room(request_id),
        url,
        token,
        after="earliest",
        max_reconnects=None,
        on_gap=following.on_gap,
        on_state_change=following.on_state_change,
    )
    return following.states(heard)


class _Following:
    """One job, and whether it can be heard."""

    def __init__(self) -> None:
        self._view = JobTracker()
        self._is_connected = False
        self._changed = asyncio.Event()

    def on_gap(self, _room: str) -> None:
        self._view.gap()
        self._changed.set()

    def on_state_change(self, state: SubscriptionState) -> None:
        self._is_connected = state.status == "connected"
        self._changed.set()

    async def states(self, heard: AsyncGenerator[Notification, None]) -> AsyncGenerator[JobState]:
        running_loop("follow_job()", "iterate subscribe_sync() in a thread")
        view = self._view
        async with aclosing(heard):
            coming: asyncio.Future[Notification] | None = None
            changed: asyncio.Future[bool] | None = None
            shown = view.state
            try:
                while not view.state.is_finished:
                    coming = coming or asyncio.ensure_future(anext(heard))
                    changed = changed or asyncio.ensure_future(self._changed.wait())
                    # Only while it is connected is silence the job's.
                    timeout = view.stall_after_s if self._is_connected else None
                    waited = (coming, changed)
                    done, _ = await asyncio.wait(
                        waited, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                    )
                    if coming in done:
                        view.apply(coming.result())
                        coming = None
                    if changed in done:
                        self._changed.clear()
                        changed = None
                    if not done:
                        view.stall_after_s = None
                        view.mark_stalled()
                    if coming is None or view.state != shown:
                        shown = view.state
                        yield shown
            finally:
                waiting = [future for future in (coming, changed) if future is not None]
                for future in waiting:
                    future.cancel()
                if waiting:
                    await asyncio.wait(waiting)
