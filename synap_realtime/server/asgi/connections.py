"""Requests, responses and subscriptions of a mounted app as ASGI messages.

An app cannot abort a connection, and the host may parse less strictly than this server.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, Generic, TypeVar

from ...errors import SynapRealtimeError
from ...lexical import parse_digits
from ...protocol.control import PING, CloseCode, ControlFrame
from ..app import CLOSE_TIMEOUT_S
from ..errors import RateLimitedError, StoreUnavailableError, UnavailableError
from ..http.subscribe import AcceptedSubscription
from ..messages import (
    MAX_BODY_BYTES,
    RETRY_AFTER_S,
    Request,
    RequestError,
    Response,
    bad_request,
    body_too_large,
    body_too_slow,
    head_error,
)
from ..protocols.sse import COMMENT, HEARTBEAT_S, encode_event, encode_retry
from ..protocols.ws_codec import cut_reason
from ..resources.byte_budget import MIN_UNREAD_BYTES, Budgets, ByteBudget, NoRoomError, caller_of
from ..rooms.backlog import SLOW_CONSUMER_TIMEOUT_S, UnbatchedSink
from ..rooms.sessions import Delivery
from ..stores.base import Entry

T = TypeVar("T")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

BODY_TIMEOUT_S = 20.0
"""The timeout for receiving the body of a request."""

_INCOMPLETE = (
    "the ASGI server passed on {} of {} bytes; with httptools, uvicorn drops the body of a request "
    "with Upgrade: run it with --http h11"
)


_SMALL_BYTES = 4096
"""The size up to which a body is not charged. A host takes as much for each connection, and large
requests must not cause small publishes to be rejected."""


class DisconnectedError(Exception):
    """The peer has disconnected."""


_GONE = ("handler is closed", "after sending 'websocket.close'")


def translate_disconnects(send: Send) -> Send:
    """Return ``send`` with errors of a disconnected peer as :class:`DisconnectedError`.

    uvloop closes a socket inside the write that fails, and raises RuntimeError at the next write,
    before the ASGI server has noticed the end. And uvicorn closes a WebSocket whose client violates
    the protocol, and raises RuntimeError for messages that are sent before the app is notified.
    """

    async def send_or_end(message: Message) -> None:
        try:
            await send(message)
        except RuntimeError as error:
            if not any(text in str(error) for text in _GONE):
                raise
            await asyncio.sleep(0)  # let the ASGI server notice it, too
            raise DisconnectedError from error

    return send_or_end


class AsgiRequest(Request):
    """A request of a mounted app, and the bytes that are held for its peer.

    An app cannot abort a connection. So it rejects requests that exceed a byte budget, and holds an
    response that it has started until the host has passed it on or the peer has disconnected.
    """

    __slots__ = ("_budgets",)

    def begin(self, budgets: Budgets) -> None:
        """Charge the bytes that are held from now on, until :meth:`end`."""
        self._budgets = budgets

    def end(self) -> None:
        self._budgets.requests.release(self)
        self._budgets.responses.release(self)

    def hold_request(self, size: int) -> None:
        """Charge the bytes of the request.

        Raises:
            RateLimitedError, UnavailableError: a byte budget is exhausted.
        """
        self._reserve(self._budgets.requests, size, "unanswered requests")

    def hold_response(self, response: Response) -> None:
        """Charge the bytes of a large response.

        Raises:
            RateLimitedError, UnavailableError: a byte budget is exhausted.
        """
        size = len(response.body)
        if response.rest is not None:
            size *= 2  # the next chunk, while the host holds the previous one
        if size >= MIN_UNREAD_BYTES:
            self._reserve(self._budgets.responses, size, "unread responses")

    def adjust_response(self, size: int) -> None:
        """Change the charged size of a response that is being sent."""
        self._budgets.responses.adjust(self, size)

    def over_budget(self) -> None:
        """See :class:`~.byte_budget.Holder`. Only :meth:`ByteBudget.hold` aborts connections."""

    def _reserve(self, budget: ByteBudget, size: int, what: str) -> None:
        try:
            budget.reserve(self, caller_of(self.claims, self.address), size)
        except NoRoomError as error:
            if error.is_of_caller:
                details = f"byte limit ({error.max_bytes}) of {what} per user or address reached"
                raise RateLimitedError(details, RETRY_AFTER_S) from None
            raise UnavailableError(f"byte limit of {what} reached") from None


async def respond(
    send: Send, response: Response, kind: str = "http.response", *, waits: bool = False
) -> None:
    """Send a response whose body is complete.

    Args:
        waits: return when the host has passed on a long body. An ASGI server waits for a peer that
            does not read before it accepts the next part, but not after the last one.
    """
    content = response.body
    await start_response(send, response, None if response.status == 204 else len(content), kind)
    if waits and len(content) >= MIN_UNREAD_BYTES:
        await send(body_part(content))
        content = b""
    await send({"type": f"{kind}.body", "body": content})


async def start_response(
    send: Send, response: Response, length: int | None, kind: str = "http.response"
) -> None:
    headers = [
        (name.lower().encode(), value.encode("latin-1"))
        for name, value in response.header_fields().items()
    ]
    if length is not None:  # RFC 9110, section 8.6
        headers.append((b"content-length", str(length).encode()))
    await send({"type": f"{kind}.start", "status": response.status, "headers": headers})


def body_part(content: bytes) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": True}


async def read_body(request: AsgiRequest, receive: Receive) -> bytes:
    """Receive the whole body.

    Raises:
        RequestError: 413 above ``MAX_BODY_BYTES``, 408 if it takes longer than ``BODY_TIMEOUT_S``,
            429 or 503 if it exceeds a byte budget.
        DisconnectedError: the peer disconnected before its end.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read_chunks(request, receive)
    except TimeoutError:
        raise body_too_slow(BODY_TIMEOUT_S) from None


async def _read_chunks(request: AsgiRequest, receive: Receive) -> bytes:
    # A chunked body, or one over HTTP/2, declares no length.
    declared = parse_digits(request.headers.get("content-length", ""))
    if declared is not None and declared > MAX_BODY_BYTES:
        raise body_too_large()
    body = bytearray()  # a list of many small parts would take more memory
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise DisconnectedError
        body += message.get("body", b"")
        size = len(body)
        if size > MAX_BODY_BYTES:
            raise body_too_large()
        if size > _SMALL_BYTES:
            request.hold_request(size)
        if not message.get("more_body"):
            if declared is not None and declared != size:
                raise bad_request("Incomplete body", _INCOMPLETE.format(size, declared))
            return bytes(body)


def head_problem(scope: Scope, request: Request) -> RequestError | None:
    """Check the head again, because a host may parse it less strictly; see :func:`head_error`."""
    target_bytes = len(request.path) + len(request.query_string)
    version = scope.get("http_version", "1.1")
    return head_error(target_bytes, version, request.headers, ("1.0", "1.1", "2", "3"))


_VALUE = re.compile(rb"=[^&]*")


def request_of(scope: Scope) -> AsgiRequest:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    raw = scope.get("raw_path")
    client = scope.get("client")
    query_string = scope["query_string"].decode("latin-1")
    if "=" in query_string:
        # The host writes its access log from the scope, which must not contain the token.
        scope["query_string"] = _VALUE.sub(b"=***", scope["query_string"])
    return AsgiRequest(
        method=scope.get("method", "GET"),
        path=raw.decode("latin-1").partition("?")[0] if raw else scope["path"],
        query_string=query_string,
        headers=headers,
        address=str(client[0]) if client else None,
        subprotocols=scope.get("subprotocols", ()),
        root_path=scope.get("root_path", ""),
    )


logger = logging.getLogger(__name__)


class _QueueSink(UnbatchedSink, Generic[T]):
    """A sink that queues what a connection receives, and awaits each send in order."""

    def __init__(self, encode: Callable[[Entry | ControlFrame], T]) -> None:
        """
        Args:
            encode: called for each message when it is queued.
        """
        self._encode = encode
        self._queue: deque[T] = deque()
        self._not_empty = asyncio.Event()
        self._is_sending = False

    @property
    def is_writable(self) -> bool:
        return not (self._is_sending or self._queue)

    def send(self, entry: Entry) -> bool:
        self._queue.append(self._encode(entry))
        self._not_empty.set()
        return False

    send_batched = send

    def send_control(self, frame: ControlFrame) -> None:
        self._queue.append(self._encode(frame))
        self._not_empty.set()

    def close(self, code: CloseCode) -> None:
        """Do nothing: :func:`_run_until_closed` waits for the end of the delivery."""

    async def run(self, delivery: Delivery, send: Callable[[T], Awaitable[None]]) -> None:
        """Send the queued frames until cancelled."""
        while True:
            self._is_sending = False
            if not self._queue:
                delivery.on_writable()
            while not self._queue:
                self._not_empty.clear()
                await self._not_empty.wait()
            self._is_sending = True
            try:
                async with asyncio.timeout(SLOW_CONSUMER_TIMEOUT_S):
                    await send(self._queue.popleft())
            except TimeoutError:
                delivery.close(CloseCode.SLOW_CONSUMER)
                return


async def run_subscription(
    delivery: Delivery,
    after: str | None,
    send: Callable[[Entry | ControlFrame], Awaitable[None]],
) -> CloseCode:
    """Replay the log from ``after``, then send live notifications until the delivery is closed.

    Args:
        delivery: a subscription, or a connection with many rooms.
        send: writes one entry or control frame; an error that it raises ends the connection.

    Returns:
        The close code.

    Raises:
        InvalidArgumentError: ``after`` is not a position.
        StoreUnavailableError: the log cannot be read now.
    """
    return await _deliver(delivery, after, send, lambda message: message)


async def _deliver(
    delivery: Delivery,
    after: str | None,
    send: Callable[[T], Awaitable[None]],
    encode: Callable[[Entry | ControlFrame], T],
) -> CloseCode:
    sink = _QueueSink(encode)
    try:
        return await _run_until_closed(
            delivery, sink.run(delivery, send), delivery.run(after, sink)
        )
    finally:
        delivery.detach()


async def run_websocket(
    opened: AcceptedSubscription,
    request: Request,
    idle_timeout_s: float,
    receive: Receive,
    send: Send,
) -> None:
    """Accept a WebSocket and serve it until one side ends it."""
    session, delivery = opened.session, opened.session.delivery
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
                return delivery.close(CloseCode.IDLE_TIMEOUT)
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
                    return delivery.close(CloseCode.SLOW_CONSUMER)

    try:
        code = await _run_until_closed(
            delivery, listen(), _follow(delivery, opened.after, write, lambda message: message)
        )
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            reason = cut_reason(delivery.reason)
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
    session, head = opened.session, opened.head
    delivery = session.delivery
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
            delivery.close(CloseCode.SLOW_CONSUMER)
            return
        started.set()
        await _follow(
            delivery, opened.after, put, lambda message: encode_event(message, session.position)
        )

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
        await _run_until_closed(delivery, listen(), beat(), start())
        leave()
        # An app cannot abort a connection. Returning before the end would log an error in the host,
        # and the socket of a peer that does not read would stay open anyway.
        if not has_begun:
            await begin()
        await send({"type": "http.response.body", "body": b""})
    except (DisconnectedError, OSError):
        logger.debug("subscriber disconnected")


async def _follow(
    delivery: Delivery,
    after: str | None,
    send: Callable[[T], Awaitable[None]],
    encode: Callable[[Entry | ControlFrame], T],
) -> None:
    try:
        await _deliver(delivery, after, send, encode)
    except StoreUnavailableError:
        delivery.close(CloseCode.DRAINING)


async def _run_until_closed(delivery: Delivery, *parts: Coroutine[Any, Any, object]) -> CloseCode:
    """Run the parts of a connection until the delivery is closed.

    Raises:
        DisconnectedError, OSError, SynapRealtimeError: the error that ended it before.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part) for part in parts]
            code = await delivery.wait_closed()
            for task in tasks:
                task.cancel()
    except ExceptionGroup as errors:
        found, rest = errors.split((DisconnectedError, OSError, SynapRealtimeError))
        if found is None or rest is not None:
            raise
        raise found.exceptions[0] from None
    return code
