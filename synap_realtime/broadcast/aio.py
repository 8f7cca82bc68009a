"""The asynchronous client of the SDK: an event-loop driver for the shared core."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx
from pydantic import BaseModel

from ..errors import ConfigurationError
from ..event_loops import running_loop
from ..protocol.notification import Notification
from ..protocol.rooms import Room, UserId, parse_room
from . import encoding, responses, retry
from .batch_queue import QueuedNotification
from .endpoint import Endpoint, check_seconds
from .result import BroadcastResult
from .sender import Sender

_INSTEAD = "call broadcast_notification_sync() or another …_sync function, in a thread"


class _LoopClient(NamedTuple):
    """The connections of one event loop."""

    sender: Sender
    guard: AsyncGenerator[None]


class AsyncBroadcaster:
    """Publishes notifications over connections that stay open.

    Use it as a context manager, or call :meth:`aclose` at the end. One instance serves all tasks
    and event loops of a process. An invalid argument raises immediately and names the field;
    delivery never raises.

    A broadcast is sent immediately. Broadcasts that are made while a request is in flight are
    queued and sent together in the next request, in the order of the calls for each room. Each has
    its own result and deadline. The queue holds at most 1,000 notifications or 4 MiB; after that, a
    caller waits for free space. See PROTOCOL.md, "HTTP", "Many".

    ::

        async with AsyncBroadcaster("http://127.0.0.1:8787") as broadcaster:
            await broadcaster.broadcast_success("42", "note.creation.completed", {"entityId": "n1"})
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = retry.TIMEOUT_S,
        deadline_s: float = retry.DEADLINE_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """Create a client; nothing is connected yet.

        Args:
            url: the room server. Default: ``REALTIME_URL``, then ``http://127.0.0.1:8787``.
            api_key: sent as a bearer token. Default: ``REALTIME_API_KEY``.
            timeout_s: timeout of one attempt in seconds.
            deadline_s: time limit of one broadcast in seconds, retries included.
            transport: an alternative way to reach the server, such as ``httpx.ASGITransport``.

        Raises:
            ConfigurationError: the URL is not an ``http`` or ``https`` URL.
        """
        self._endpoint = Endpoint(url, api_key)
        self._timeout_s = check_seconds("timeout_s", timeout_s)
        self._deadline_s = check_seconds("deadline_s", deadline_s)
        self._transport = transport
        # A connection pool belongs to one event loop, and some frameworks run several.
        self._pools: dict[asyncio.AbstractEventLoop, _LoopClient] = {}

    async def broadcast_notification(
        self,
        *,
        user_id: UserId | None = None,
        request_id: UserId | None = None,
        message: Notification | Mapping[str, Any],
    ) -> BroadcastResult:
        """Publish one notification to a user's room, a request's room, or both.

        Args:
            user_id: publishes to the room ``user_{user_id}``. Here and in ``request_id``, an
                ``int`` or a UUID is converted to text.
            request_id: publishes to the room ``request_{request_id}``, and is included in the
                message.
            message: a :class:`Notification` or a mapping with at least ``type`` and ``data``.

        Raises:
            InvalidArgumentError: an argument is invalid; names it.

        See PROTOCOL.md, "HTTP".
        """
        rooms = encoding.rooms_for(user_id, request_id)
        return await self._deliver(rooms, encoding.normalize(message, request_id))

    async def broadcast_success(
        self,
        user_id: UserId | None,
        type: str,
        data: Mapping[str, Any] | BaseModel,
        request_id: UserId | None = None,
        *,
        id: str | None = None,
    ) -> BroadcastResult:
        """Publish a notification with ``status: "success"``. ``id`` makes it idempotent."""
        message = encoding.success_message(type, data, id)
        return await self.broadcast_notification(
            user_id=user_id, request_id=request_id, message=message
        )

    async def broadcast_error(
        self,
        user_id: UserId | None,
        type: str,
        error: str,
        request_id: UserId | None = None,
        *,
        id: str | None = None,
    ) -> BroadcastResult:
        """Publish a notification with ``status: "error"`` and ``data: {"error": …}``."""
        message = encoding.error_message(type, error, id)
        return await self.broadcast_notification(
            user_id=user_id, request_id=request_id, message=message
        )

    async def broadcast(
        self, room: str, message: Notification | Mapping[str, Any]
    ) -> BroadcastResult:
        """Publish one notification to any single room, such as ``workspace_7``."""
        return await self._deliver((parse_room(room),), encoding.normalize(message))

    async def aclose(self) -> None:
        """Finish the broadcasts that are in flight in the running event loop, then close its
        connections.

        This ends because each broadcast has a deadline.
        """
        pool = None
        with contextlib.suppress(RuntimeError):  # without an event loop there are no connections
            pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            try:
                await pool.sender.drain()
            finally:
                await pool.guard.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _deliver(self, rooms: tuple[Room, ...], message: Notification) -> BroadcastResult:
        span = encoding.start_broadcast_span(message)
        with span.current():
            result = await self._publish(encoding.encode(rooms, message))
        span.end(result.error)
        return result

    async def _publish(self, encoded: encoding.EncodedNotification) -> BroadcastResult:
        deadline = time.monotonic() + self._deadline_s
        try:
            loop = running_loop("an asynchronous broadcast", _INSTEAD)
        except ConfigurationError as error:
            return responses.failure_result(encoded, 0, str(error))
        pool = self._pools.get(loop) or await self._open(loop)
        return await pool.sender.send(QueuedNotification(encoded, deadline))

    async def _open(self, loop: asyncio.AbstractEventLoop) -> _LoopClient:
        self._release_closed()
        sender = Sender(self._endpoint, self._transport, self._timeout_s)
        pool = self._pools[loop] = _LoopClient(sender, self._until_loop_ends(loop, sender))
        await anext(pool.guard)
        return pool

    def _release_closed(self) -> None:
        """Close the sockets of event loops that were closed without finishing async generators.

        Only ``asyncio.run`` and :class:`asyncio.Runner` finish async generators at the end.
        """
        for loop in list(self._pools):
            if loop.is_closed() and (pool := self._pools.pop(loop, None)) is not None:
                pool.sender.abandon()

    async def _until_loop_ends(
        self, loop: asyncio.AbstractEventLoop, sender: Sender
    ) -> AsyncGenerator[None]:
        """Close the connections with their loop: ``asyncio.run`` finishes async generators."""
        try:
            yield
        finally:
            if loop in self._pools and self._pools[loop].sender is sender:
                del self._pools[loop]
            await sender.aclose()
