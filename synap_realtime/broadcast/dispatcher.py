"""Send the notifications of one event loop: the first immediately, later ones in batches."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import time
from typing import TYPE_CHECKING

import httpx

from ..errors import ConfigurationError
from ..forks import importing
from ..network import BoundedBody
from . import encoding, http_client, per_room, responses, retry
from .batch_queue import BatchQueue, QueuedNotification
from .endpoint import Endpoint
from .result import BroadcastResult

if TYPE_CHECKING:
    from .transport import AsyncTransport


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
        self._given = transport
        self._own: AsyncTransport | None = None
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
            self._batch_queue.end("the event loop was closed before it was sent")
            raise
        finally:
            self._flush_task = None

    async def _send_batch(self, items: list[QueuedNotification]) -> None:
        """Make one attempt for a batch, or all for a server without ``POST /broadcast``."""
        try:
            if self._endpoint.has_batch_route:
                call = encoding.batch_request([item.encoded for item in items])
                answer = await self._post(call, max(item.deadline for item in items))
                self._batch_queue.apply_response(items, answer, time.monotonic())
            else:
                for item in items:
                    item.resolve(await self._one_by_one(item))
        except Exception as error:  # noqa: BLE001 - re-raised to its callers
            for item in items:
                if self._given is None:
                    item.resolve(responses.unsent(self._endpoint, item.encoded, error))
                else:
                    item.fail(error)
        finally:
            self._batch_queue.release(items)
            self._ensure_flushing()

    async def _one_by_one(self, item: QueuedNotification) -> BroadcastResult:
        steps = per_room.publish_per_room(self._endpoint, item.encoded, item.attempts)
        call = next(steps)
        while True:
            answer = await self._send_with_retry(call, item.deadline)
            try:
                call = steps.send(answer)
            except StopIteration as done:
                result: BroadcastResult = done.value
                return result

    async def _send_with_retry(
        self, call: encoding.ApiRequest, deadline: float
    ) -> responses.ApiResponse:
        """Send until the response is final."""
        from tenacity import AsyncRetrying

        retrying = AsyncRetrying(**retry.arguments(deadline - time.monotonic()))
        answer: responses.ApiResponse = await retrying(self._post, call, deadline)
        return retry.with_attempts(answer, retrying.statistics["attempt_number"])

    async def _post(self, call: encoding.ApiRequest, deadline: float) -> responses.ApiResponse:
        """Make one attempt. Never raises for a failure of the network, the server or the
        environment.
        """
        budget = min(self._timeout_s, max(0.001, deadline - time.monotonic()))
        try:
            async with asyncio.timeout(budget):
                return await self._exchange(call)
        except (TimeoutError, ConfigurationError, *http_client.TRANSPORT_ERRORS) as error:
            return responses.response_from_error(self._endpoint, error)
        except Exception as error:
            if self._given is not None:
                raise
            return responses.response_from_error(self._endpoint, error)

    async def _exchange(self, call: encoding.ApiRequest) -> responses.ApiResponse:
        transport = self._open()
        request = http_client.build_request(self._endpoint, call)
        response = await transport.handle_async_request(request)
        assert isinstance(response.stream, httpx.AsyncByteStream)  # noqa: S101 - as in httpx
        body = BoundedBody(response, http_client.MAX_ANSWER_BYTES)
        try:
            if not body.encoding:
                async for chunk in response.stream:
                    if not body.add(chunk):
                        break
        finally:
            await response.stream.aclose()
        return responses.read_body(self._endpoint, response, body)

    def _open(self) -> httpx.AsyncBaseTransport:
        if self._given is not None:
            return self._given
        if self._own is None:
            with importing():
                from .transport import AsyncTransport  # imported with httpcore, only by publishers

                retry.load()
                self._own = AsyncTransport(self._endpoint.address)
        return self._own

    async def aclose(self) -> None:
        """Close the connections."""
        for transport in (self._given, self._own):
            if transport is not None:
                await transport.aclose()
        self._own = None

    def abandon(self) -> None:
        """Close the sockets of a closed event loop, which cannot close them itself."""
        if self._own is not None:
            self._own.abandon()
