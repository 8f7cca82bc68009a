"""Track the state of a job from its notifications. See PROTOCOL.md, "Jobs"."""

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
    """The state of a job.

    Attributes:
        status: ``idle`` before the first notification; ``stalled`` after a silence longer than the
            job announced; ``success`` and ``error`` are final.
        progress: 0 to 1, if the job reports it.
        label: the current activity.
        attempt, max_attempts: the current or next attempt, and their maximum.
        error: why the last attempt, or the job, failed.
        result: the ``data`` of the terminal notification.
        text: the generated text so far, up to the first missing piece.
        is_text_complete: false when a piece of the text is missing, because this client subscribed
            late or was disconnected for longer than the server retains pieces. The result contains
            the whole text.
        type: the type of the last notification.
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
    """Derive a job's state from its notifications. Pure, without a clock.

    Attributes:
        state: the state of the job.
        stall_after_s: how long the job may be silent after the last notification; None for no
            limit.
    """

    def __init__(self) -> None:
        self.state = JobState()
        self.stall_after_s: float | None = None
        self._run: object = None  # identifies the text: the run and its attempt
        self._attempt = 0.0
        self._next_index: float | None = 0  # None: no further piece can be appended

    def apply(self, notification: Notification) -> JobState:
        """Apply the next notification. Notifications after the terminal one are ignored."""
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
            if word == "retrying":  # discard the text of the failed attempt
                state = replace(state, progress=None, label=None)
        self.state = state
        return state

    def gap(self) -> JobState:
        """Record a gap: pieces of the text may be missing."""
        if not self.state.is_finished:
            self.state = replace(self.state, is_text_complete=False)
        return self.state

    def _write(self, state: JobState, data: Mapping[str, Any]) -> JobState:
        """Append a piece. The text ends before the first missing piece; without its beginning, it
        is empty.
        """
        index, attempt = _number(data.get("index")), _number(data.get("attempt"), 1.0) or 1.0
        is_same_run = data.get("runId") == self._run
        if is_same_run and attempt < self._attempt:
            return state  # discard the text of an earlier attempt
        is_other = not is_same_run or attempt != self._attempt
        self._run, self._attempt = data.get("runId"), attempt
        piece = _text(data.get("delta")) or ""
        if index == 0:  # each attempt starts its text anew
            self._next_index = 1
            return replace(state, text=piece, is_text_complete=True)
        if not is_other and index is not None and self._next_index is not None:
            if index == self._next_index:
                self._next_index = index + 1
                return replace(state, text=state.text + piece, is_text_complete=True)
            if index < self._next_index:
                return state  # a duplicate
        self._next_index = None
        return replace(state, text="" if is_other else state.text, is_text_complete=False)

    def mark_stalled(self) -> JobState:
        """Mark the job as stalled. A later notification reverts that."""
        if self.state.status in ("pending", "retrying"):
            self.state = replace(self.state, status="stalled")
        return self.state


def _completed(state: JobState) -> JobState:
    """Apply the success. Missing text is taken from the result: a string, or the member that
    contains the text.
    """
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
    """Return a count or a duration. What cannot be one, such as NaN or 1e999, is the default."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 2**53:
        return default
    return value


def follow_job(
    request_id: UserId,
    url: str | None = None,
    token: Token = None,
) -> AsyncGenerator[JobState, None]:
    """Follow one request's job to its end, even if it ended before the call.

    ::

        async with aclosing(follow_job("r1")) as states:
            async for state in states:
                print(state.status, state.progress, state.label)

    A disconnect does not affect the state: the subscription is resumed, and until then the job does
    not count as stalled.

    Args:
        request_id: the request; its room is ``request_{request_id}``.
        url, token: as for :func:`subscribe`.

    Yields:
        the state after each change; the last one is final.

    Raises:
        as :func:`subscribe` does.
    """
    following = _Following()
    notifications = subscribe(
        request_room(request_id),
        url,
        token,
        after="earliest",
        max_reconnects=None,
        on_gap=following.on_gap,
        on_state_change=following.on_state_change,
    )
    return following.states(notifications)


class _Following:
    """One followed job, and whether its room is connected."""

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

    async def states(
        self, notifications: AsyncGenerator[Notification, None]
    ) -> AsyncGenerator[JobState]:
        running_loop("follow_job()", "iterate subscribe_sync() in a thread")
        view = self._view
        async with aclosing(notifications):
            coming: asyncio.Future[Notification] | None = None
            changed: asyncio.Future[bool] | None = None
            shown = view.state
            try:
                while not view.state.is_finished:
                    coming = coming or asyncio.ensure_future(anext(notifications))
                    changed = changed or asyncio.ensure_future(self._changed.wait())
                    # Silence counts as the job's only while connected.
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
