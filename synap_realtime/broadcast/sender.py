"""Send the notifications of one event loop: the first immediately, later ones in batches."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time

import httpx

from .batch_queue import BatchQueue, QueuedNotification
from .encoding import ApiRequest
from .endpoint import Endpoint
from .http_client import AsyncHttpClient, budget_s
from .result import BroadcastResult

_LOOP_CLOSED = "the event loop was closed before it was sent"


class Sender:
    """The connections of one event loop to one server, and its queue.

    If no request is in flight, the calling task sends its notification itself, without creating
    another task. Otherwise a task of the sender sends the queue. That task belongs to no caller, so
    the cancellation of one caller does not affect the others' notifications.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        transport: httpx.AsyncBaseTransport | None,
        timeout_s: float,
    ) -> None:
        """Create a sender; it connects and reads the environment at the first request."""
        self._endpoint = endpoint
        self._client = AsyncHttpClient(endpoint, transport)
        self._timeout_s = timeout_s
        self._batch_queue = BatchQueue(endpoint)
        self._admission = asyncio.Lock()  # a fair lock for callers that wait for free space
        # Wakes callers when space is free, on a result, or on close.
        self._changed = asyncio.Event()
        self._flush_task: asyncio.Task[None] | None = None
        self._singles: set[asyncio.Task[None]] = set()

    async def send(self, item: QueuedNotification) -> BroadcastResult:
        """Send one notification, in the order of the calls for each of its rooms.

        Raises:
            Exception: only a non-httpx error that a custom transport raised.
        """
        try:
            if self._batch_queue.is_idle and not self._admission.locked():
                self._batch_queue.add(item)
                await self._send_batch(self._batch_queue.next_batch(time.monotonic()))
            if not item.is_settled:
                await self._settled(item)
        except BaseException:
            self._batch_queue.cancel(item)
            self._changed.set()
            raise
        return item.outcome()

    async def drain(self) -> None:
        """Wait until the queue is empty; each notification has a deadline."""
        while not self._batch_queue.is_idle or self._admission.locked():
            await self._wait_changed()

    async def _settled(self, item: QueuedNotification) -> None:
        """Wait for space in the queue and for the result, until the deadline."""
        result = asyncio.get_running_loop().create_future()
        item.done = lambda: None if result.done() else result.set_result(None)
        try:
            async with asyncio.timeout(item.deadline - time.monotonic()):
                if not item.attempts:
                    await self._enter(item)
                self._ensure_flushing()
                await result
        except TimeoutError:
            self._batch_queue.expire(item)
            self._changed.set()

    async def _enter(self, item: QueuedNotification) -> None:
        async with self._admission:
            while self._batch_queue.is_full:
                await self._wait_changed()
            self._batch_queue.add(item)

    async def _wait_changed(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _ensure_flushing(self) -> None:
        """Start the task that sends the queue, if it is not running."""
        self._changed.set()
        if self._flush_task is None and not self._batch_queue.is_idle:
            # The task serves all callers, so its spans belong to no caller's trace.
            self._flush_task = asyncio.create_task(self._run(), context=contextvars.Context())
            self._flush_task.add_done_callback(self._end_unstarted)

    def _end_unstarted(self, task: asyncio.Task[None]) -> None:
        """Fail what waits for a task that was cancelled before its first step."""
        if self._flush_task is task:
            self._flush_task = None
            self._batch_queue.end(_LOOP_CLOSED)

    async def _run(self) -> None:
        try:
            while not self._batch_queue.is_idle:
                now = time.monotonic()
                if items := self._batch_queue.next_batch(now):
                    self._changed.set()
                    if self._endpoint.has_batch_route:
                        await self._send_batch(items)
                    else:
                        task = asyncio.create_task(self._send_batch(items))
                        self._singles.add(task)
                        task.add_done_callback(self._singles.discard)
                else:
                    due = self._batch_queue.next_due(now)
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None if due is None else due - now):
                            await self._wait_changed()
        except asyncio.CancelledError:
            self._batch_queue.end(_LOOP_CLOSED)
            raise
        finally:
            self._flush_task = None

    async def _send_batch(self, items: list[QueuedNotification]) -> None:
        """Make one attempt for a batch."""
        deadline = max(item.deadline for item in items)
        try:
            call: ApiRequest | None = self._batch_queue.begin(items)
            while call is not None:
                answer = await self._client.post(call, budget_s(self._timeout_s, deadline))
                call = self._batch_queue.apply_response(items, answer, time.monotonic())
        except Exception as error:  # noqa: BLE001 - re-raised to its callers
            self._batch_queue.fail(items, error, is_own=self._client.is_own)
        finally:
            self._batch_queue.release(items)
            self._ensure_flushing()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def abandon(self) -> None:
        """Close the sockets of a closed event loop, which cannot close them itself."""
        self._client.abandon()
