"""Follow a job to its end. See PROTOCOL.md, "Jobs" and "Job state"."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ..errors import ReadError
from ..event_loops import running_loop
from ..protocol.notification import Notification
from ..protocol.rooms import UserId, request_room
from .aio import subscribe
from .job import JobState, JobTracker
from .options import Arguments, SubscriptionState, Token, check
from .reconnect import Failure, ReconnectPolicy
from .records import Job
from .snapshots import get_job

MAX_READS = 5
"""How often the record is read again after a gap, while the server cannot be reached."""


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

    It begins with the server's record of the job, so a job that ended days ago has one state, and a
    text that is being written is there at once. A disconnect does not affect the state: the
    subscription is resumed, and until then the job does not count as stalled.

    Args:
        request_id: the request; its room is ``request_{request_id}``.
        url, token: as for :func:`subscribe`. A token function is also called before the record is
            read.

    Yields:
        the state after each change; the last one is final.

    Raises:
        InvalidArgumentError, ConfigurationError, SubscriptionError: as :func:`subscribe` does.
    """
    room = request_room(request_id)
    check(Arguments(room, url, token))
    return _Following(room, str(request_id), url, token).states()


class _Following:
    """One followed job, and whether its room is connected."""

    def __init__(self, room: str, request_id: str, url: str | None, token: Token) -> None:
        self._room = room
        self._request_id = request_id
        self._url = url
        self._token = token
        self._view = JobTracker()
        self._is_connected = False
        self._has_gap = False
        self._changed = asyncio.Event()

    async def states(self) -> AsyncGenerator[JobState, None]:
        running_loop("follow_job()", "iterate subscribe_sync() in a thread")
        view = self._view
        has_read_all = False
        gaps_here = 0  # those after the same cursor
        record = await self._record()
        while True:
            after = "earliest"
            if record is not None:
                after = record.cursor
                before = view.state
                if view.restore(record) != before:
                    yield view.state
                if view.state.is_finished:
                    return
            # The log may have pieces that the record has not: those of a text that is not folded.
            may_read_all = record is not None and not has_read_all
            async with aclosing(self._live(after, may_read_all=may_read_all)) as states:
                async for state in states:
                    yield state
            if view.state.is_finished:
                return
            if self._has_gap:
                # The server may just restart: what it does not answer now is not lost.
                record = await self._record(MAX_READS)
                gaps_here = gaps_here + 1 if record is not None and record.cursor == after else 0
                if record is None or gaps_here > 1:  # the log has no such position
                    record = None
                    yield view.gap()
            else:
                record, has_read_all = None, True

    async def _record(self, max_retries: int = 0) -> Job | None:
        """Return the server's record; None if it has none, or cannot be asked."""
        policy = ReconnectPolicy(None, random.random)
        while True:
            try:
                return await get_job(self._request_id, self._url, self._token)
            except ReadError as error:
                if not error.retriable or policy.count >= max_retries:
                    return None  # the subscription meets the same problem, if it is one
                failure = Failure(str(error))
            await asyncio.sleep(policy.delay_after(failure, 0.0, self._room))

    async def _live(self, after: str, *, may_read_all: bool) -> AsyncGenerator[JobState, None]:
        """Yield the states that notifications lead to, until the job has ended, or after a gap.

        Args:
            after: where the subscription starts.
            may_read_all: end also when a part of the text is missing that the log may have.
        """
        self._has_gap = self._is_connected = False
        notifications = subscribe(
            self._room,
            self._url,
            self._token,
            after=after,
            max_reconnects=None,
            on_gap=self._on_gap,
            on_state_change=self._on_state_change,
        )
        view = self._view
        async with aclosing(notifications):
            coming: asyncio.Future[Notification] | None = None
            changed: asyncio.Future[bool] | None = None
            shown = view.state
            try:
                while not (view.state.is_finished or self._has_gap):
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
                        if view.misses_text and may_read_all:
                            return
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

    def _on_gap(self, _room: str) -> None:
        self._has_gap = True
        self._changed.set()

    def _on_state_change(self, state: SubscriptionState) -> None:
        self._is_connected = state.status == "connected"
        self._changed.set()
