"""One WebSocket or event stream: ASGI messages on one side, a ``Subscription`` on the other.

See PROTOCOL.md, "WebSocket" and "Server-Sent Events".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from ..protocol.control import BEARER_SUBPROTOCOL, SUBPROTOCOL, CloseCode, ControlFrame
from .stores.base import Entry, StoreUnavailableError
from .subscription import SEND_TIMEOUT_S, Subscription

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT_S = 2.0
"""How long a peer that does not read may delay its own end."""

HEARTBEAT_S = 15.0
"""An event stream carries a comment line so often: proxies cut what is silent for longer."""

RETRY_MS = 1000
"""When a browser comes back after a stream has ended."""

ABORT_EXTENSION = "synap.abort"
"""A server that can cut a connection at once offers the function to do it under this name."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

EVENT_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    (b"x-accel-buffering", b"no"),  # nginx, and others that learned it from nginx
]


class DisconnectedError(Exception):
    """The peer has gone: there is nobody to answer."""


def until_gone(send: Send) -> Send:
    """``send``, but a peer that has just gone is a :class:`DisconnectedError`.

    uvloop closes a socket inside the write that fails, and raises RuntimeError at the next write,
    before the ASGI server has heard of the end.
    """

    async def send_or_end(message: Message) -> None:
        try:
            await send(message)
        except RuntimeError as error:
            if "handler is closed" not in str(error):
                raise
            await asyncio.sleep(0)  # now the ASGI server hears of it, too
            raise DisconnectedError from error

    return send_or_end


async def run_websocket(
    subscription: Subscription,
    after: str | None,
    silence_s: float,
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Accept a WebSocket and serve it until one side ends it."""
    speaks = speaks_control(scope)
    await send({"type": "websocket.accept", "subprotocol": _chosen(scope)})

    async def write(message: Entry | ControlFrame) -> None:
        if isinstance(message, Entry):
            await send({"type": "websocket.send", "text": message.text})
        elif speaks:
            await send({"type": "websocket.send", "text": message.encoded()})

    async def listen() -> None:
        while True:
            try:
                async with asyncio.timeout(silence_s):
                    message = await receive()
            except TimeoutError:
                return subscription.close(CloseCode.SILENT)
            if message["type"] == "websocket.disconnect":
                raise DisconnectedError
            heard = message["bytes"] if message.get("text") is None else message["text"]
            if (answer := subscription.hear(heard)) is not None:
                try:
                    async with asyncio.timeout(SEND_TIMEOUT_S):
                        await send({"type": "websocket.send", "text": answer})
                except TimeoutError:
                    return subscription.close(CloseCode.TOO_SLOW)

    try:
        code = await _run_until_closed(subscription, listen(), _follow(subscription, after, write))
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await send({"type": "websocket.close", "code": int(code)})
    except (DisconnectedError, OSError, TimeoutError):
        logger.debug("a subscriber went away")


async def close_at_once(scope: Scope, send: Send, code: CloseCode) -> None:
    """Accept a WebSocket to close it with a code: a page cannot read a refusal."""
    await send({"type": "websocket.accept", "subprotocol": _chosen(scope)})
    with contextlib.suppress(DisconnectedError, OSError, TimeoutError):
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await send({"type": "websocket.close", "code": int(code)})


async def run_event_stream(
    subscription: Subscription,
    after: str | None,
    headers: list[tuple[bytes, bytes]],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Answer with an event stream until one side ends it."""
    started = asyncio.Event()

    async def start() -> None:
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await put(f"retry: {RETRY_MS}\n\n")
        except TimeoutError:  # what it asked for before, on this connection, it does not read
            subscription.close(CloseCode.TOO_SLOW)
            return
        started.set()
        await _follow(subscription, after, write)

    async def put(text: str) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})

    async def write(message: Entry | ControlFrame) -> None:
        if isinstance(message, Entry):
            await put(f"id: {message.cursor}\ndata: {message.text}\n\n")
        else:
            fields = ""
            if cursor := message.data.get("cursor"):
                fields += f"id: {cursor}\n"
            if retry_ms := message.data.get("reconnectAfterMs"):
                fields += f"retry: {retry_ms}\n"
            data = json.dumps(message.data, separators=(",", ":"))
            await put(f"event: {message.type}\n{fields}data: {data}\n\n")

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        raise DisconnectedError

    async def beat() -> None:
        await started.wait()
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            await put(":\n\n")

    try:
        await _run_until_closed(subscription, listen(), beat(), start())
        if not started.is_set():
            raise TimeoutError
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await send({"type": "http.response.body", "body": b""})
    except TimeoutError:  # an OSError, too: so it comes first
        # It does not read: the end of the stream would wait behind what it does not take.
        if abort := scope.get("extensions", {}).get(ABORT_EXTENSION):
            abort()
            with contextlib.suppress(DisconnectedError):
                await listen()  # until the ASGI server has heard of it, too
    except (DisconnectedError, OSError):
        logger.debug("a subscriber went away")


def speaks_control(scope: Scope) -> bool:
    """Whether the client offered ``synap.v1``."""
    return SUBPROTOCOL in scope.get("subprotocols", ())


def _chosen(scope: Scope) -> str | None:
    """The subprotocol: ours, else the one with the token, because a browser wants one of those that
    it has offered."""
    offered = scope.get("subprotocols", ())
    if SUBPROTOCOL in offered:
        return SUBPROTOCOL
    return next((name for name in offered if name.startswith(BEARER_SUBPROTOCOL)), None)


async def _follow(
    subscription: Subscription,
    after: str | None,
    write: Callable[[Entry | ControlFrame], Awaitable[None]],
) -> None:
    try:
        await subscription.run(after, write)
    except StoreUnavailableError:
        subscription.close(CloseCode.DRAINING)


async def _run_until_closed(
    subscription: Subscription, *parts: Coroutine[Any, Any, None]
) -> CloseCode:
    """Run the parts of a connection until the subscription is closed.

    Raises:
        DisconnectedError, OSError: the peer ended it.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
            code = await subscription.closed()
            for task in tasks:
                task.cancel()
    except ExceptionGroup as errors:
        gone, rest = errors.split((DisconnectedError, OSError))
        if gone is None or rest is not None:
            raise
        raise gone.exceptions[0] from None
    return code
