"""Connect ASGI messages of a WebSocket or an event stream to a ``Subscription``.

See PROTOCOL.md, "WebSocket" and "Server-Sent Events".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ...errors import SynapRealtimeError
from ...protocol.control import PING, CloseCode, ControlFrame
from ..app import CLOSE_TIMEOUT_S
from ..errors import StoreUnavailableError
from ..http.subscribe import AcceptedSubscription
from ..messages import Request
from ..protocols.sse import COMMENT, HEARTBEAT_S, encode_event, encode_retry
from ..protocols.ws_codec import cut_reason
from ..rooms.backlog import SLOW_CONSUMER_TIMEOUT_S, UnbatchedSink
from ..rooms.subscription import Subscription
from ..stores.base import Entry
from .messages import DisconnectedError, Receive, Send

logger = logging.getLogger(__name__)


class _QueueSink(UnbatchedSink):
    """A sink that queues what a subscription sends, and awaits each send in order."""

    def __init__(self) -> None:
        self._queue: deque[Entry | ControlFrame] = deque()
        self._not_empty = asyncio.Event()
        self._is_sending = False

    @property
    def is_writable(self) -> bool:
        return not (self._is_sending or self._queue)

    def send(self, entry: Entry) -> bool:
        self._queue.append(entry)
        self._not_empty.set()
        return False

    send_batched = send

    def send_control(self, frame: ControlFrame) -> None:
        self._queue.append(frame)
        self._not_empty.set()

    def close(self, code: CloseCode) -> None:
        """Do nothing: :func:`_run_until_closed` waits for the end of the subscription."""

    async def run(
        self, subscription: Subscription, send: Callable[[Entry | ControlFrame], Awaitable[None]]
    ) -> None:
        """Send the queued frames until cancelled."""
        while True:
            self._is_sending = False
            if not self._queue:
                subscription.on_writable()
            while not self._queue:
                self._not_empty.clear()
                await self._not_empty.wait()
            self._is_sending = True
            try:
                async with asyncio.timeout(SLOW_CONSUMER_TIMEOUT_S):
                    await send(self._queue.popleft())
            except TimeoutError:
                subscription.close(CloseCode.SLOW_CONSUMER)
                return


async def run_subscription(
    subscription: Subscription,
    after: str | None,
    send: Callable[[Entry | ControlFrame], Awaitable[None]],
) -> CloseCode:
    """Replay the log from ``after``, then send live notifications until the subscription is closed.

    Args:
        send: writes one entry or control frame; an error that it raises ends the connection.

    Returns:
        The close code.

    Raises:
        InvalidArgumentError: ``after`` is not a position.
        StoreUnavailableError: the log cannot be read now.
    """
    sink = _QueueSink()
    try:
        return await _run_until_closed(
            subscription, sink.run(subscription, send), subscription.run(after, sink)
        )
    finally:
        subscription.detach()


async def run_websocket(
    opened: AcceptedSubscription,
    request: Request,
    idle_timeout_s: float,
    receive: Receive,
    send: Send,
) -> None:
    """Accept a WebSocket and serve it until one side ends it."""
    session, subscription = opened.session, opened.session.subscription
    await send({"type": "websocket.accept", "subprotocol": request.chosen_subprotocol})

    async def write(message: Entry | ControlFrame) -> None:
        if isinstance(message, Entry):
            await send({"type": "websocket.send", "text": message.text})
        elif request.supports_control_frames:
            await send({"type": "websocket.send", "text": message.encoded()})

    async def listen() -> None:
        # An app receives no ping and pong frames, so the ASGI server checks whether the peer is
        # alive. A client that has sent a text ping is expected to send more of them.
        limit_s: float | None = None
        while True:
            try:
                async with asyncio.timeout(limit_s):
                    message = await receive()
            except TimeoutError:
                return subscription.close(CloseCode.IDLE_TIMEOUT)
            if message["type"] == "websocket.disconnect":
                raise DisconnectedError
            received = message["bytes"] if message.get("text") is None else message["text"]
            if received == PING:
                limit_s = idle_timeout_s
            if (answer := session.on_client_message(received)) is not None:
                try:
                    async with asyncio.timeout(SLOW_CONSUMER_TIMEOUT_S):
                        await send({"type": "websocket.send", "text": answer})
                except TimeoutError:
                    return subscription.close(CloseCode.SLOW_CONSUMER)

    try:
        code = await _run_until_closed(
            subscription, listen(), _follow(subscription, opened.after, write)
        )
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            reason = cut_reason(subscription.reason)
            await send({"type": "websocket.close", "code": int(code), "reason": reason})
    except (DisconnectedError, OSError, TimeoutError):
        logger.debug("subscriber disconnected")


async def close_handshake(request: Request, send: Send, code: CloseCode, reason: str) -> None:
    """Accept a WebSocket, then close it with a code that a page can read."""
    await send({"type": "websocket.accept", "subprotocol": request.chosen_subprotocol})
    with contextlib.suppress(DisconnectedError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            reason = cut_reason(reason)
            await send({"type": "websocket.close", "code": int(code), "reason": reason})


async def run_event_stream(
    opened: AcceptedSubscription, receive: Receive, send: Send, leave: Callable[[], None]
) -> None:
    """Answer with an event stream until one side ends it.

    Args:
        leave: called when the subscription has ended, before the peer has received the rest.
    """
    subscription, head = opened.session.subscription, opened.head
    assert head is not None  # noqa: S101 - of an event stream
    headers = [(k.lower().encode(), v.encode("latin-1")) for k, v in head.header_fields().items()]
    has_begun = False
    started = asyncio.Event()

    async def begin() -> None:
        nonlocal has_begun
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        has_begun = True

    async def start() -> None:
        try:
            async with asyncio.timeout(SLOW_CONSUMER_TIMEOUT_S):
                await begin()
                await put(encode_retry())
        except TimeoutError:  # the peer does not read an earlier response
            subscription.close(CloseCode.SLOW_CONSUMER)
            return
        started.set()
        await _follow(subscription, opened.after, lambda message: put(encode_event(message)))

    async def put(text: bytes) -> None:
        await send({"type": "http.response.body", "body": text, "more_body": True})

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise DisconnectedError

    async def beat() -> None:
        await started.wait()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await put(COMMENT)

    try:
        await _run_until_closed(subscription, listen(), beat(), start())
        leave()
        # An app cannot abort a connection. Returning before the end would log an error in the host,
        # and the socket of a peer that does not read would stay open anyway.
        if not has_begun:
            await begin()
        await send({"type": "http.response.body", "body": b""})
    except (DisconnectedError, OSError):
        logger.debug("subscriber disconnected")


async def _follow(
    subscription: Subscription,
    after: str | None,
    write: Callable[[Entry | ControlFrame], Awaitable[None]],
) -> None:
    try:
        await run_subscription(subscription, after, write)
    except StoreUnavailableError:
        subscription.close(CloseCode.DRAINING)


async def _run_until_closed(
    subscription: Subscription, *parts: Coroutine[Any, Any, object]
) -> CloseCode:
    """Run the parts of a connection until the subscription is closed.

    Raises:
        DisconnectedError, OSError, SynapRealtimeError: the error that ended it before.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
            code = await subscription.wait_closed()
            for task in tasks:
                task.cancel()
    except ExceptionGroup as errors:
        found, rest = errors.split((DisconnectedError, OSError, SynapRealtimeError))
        if found is None or rest is not None:
            raise
        raise found.exceptions[0] from None
    return code
