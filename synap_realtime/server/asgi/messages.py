"""Requests and responses of a mounted app as ASGI messages.

An app cannot abort a connection, and the host may parse less strictly than this server.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..errors import RateLimitedError, UnavailableError
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
from ..resources.byte_budget import MIN_UNREAD_BYTES, Budgets, ByteBudget, NoRoomError, caller_of

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
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
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
            if declared.isdigit() and int(declared) != size:
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
