"""HTTP/1.1 on a socket, parsed by httptools (llhttp). See RFC 9112.

The requests of a connection are served one at a time, in order. Everything that is held for a peer
is bounded in bytes and in time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import httptools

from ...protocol.control import MAX_CLIENT_TEXT_BYTES
from ..app import Node
from ..deadlines import Closable, IdleTimeouts, PendingConnections, WriteStallGuard
from ..http.routes import MAX_BODY_BYTES
from ..http.subscribe import AcceptedSubscription, CloseHandshakeError
from ..messages import (
    MAX_TARGET_BYTES,
    RequestError,
    Response,
    bad_request,
    body_too_large,
    body_too_slow,
    head_error,
    payload_too_large,
    target_too_long,
)
from ..resources.byte_budget import MIN_UNREAD_BYTES, ByteBudget, Caller, caller_of
from ..resources.pacing import SHARE_S, TASK_S, Pacer, run_eagerly
from ..stores.base import StoreUnavailableError
from .exchange import HttpRequest, parse_target
from .fanout import SocketFanoutGroup
from .proxies import TrustedProxies
from .responses import CONTINUE, LAST_CHUNK, encode_chunk, encode_head, encode_switching_protocols
from .sse import SseSink
from .unread import Unread
from .upgrade import validate_upgrade
from .websocket import NullHandler, WebSocketHandler, WebSocketProtocol, WebSocketSink
from .writes import WriteBatch, reset, unsent_bytes
from .ws_codec import accept_key

HEAD_TIMEOUT_S = 20.0
"""Time for a client to send a whole request head."""

IDLE_TIMEOUT_S = 75.0
"""How long a connection may be idle between two requests. Longer than clients keep connections in
their pools: if the server closed first, it could close while a request is on its way."""

BODY_TIMEOUT_S = 20.0
"""Time for a client to send a whole request body."""

MAX_HEAD_BYTES = 64 * 1024
"""Largest request head, not counting the bytes of its first packet."""

MAX_HEADERS = 256
"""Most header fields of a request."""

MAX_CHUNKS = 32 * 1024
"""Most chunks of a request body (RFC 9112, section 7.1). Each chunk costs a parser callback, so a
body in chunks of one byte would block the event loop."""

MAX_PIPELINED = 100
"""Most queued requests of one connection."""

MAX_UNREAD_BYTES = 8 * MAX_BODY_BYTES
"""Most bytes of an unwanted body that are read and discarded, so that the client can receive the
response. Also the most bytes that a body may take on the wire, with chunk headers and trailers."""

LINGER_S = 10.0
"""Time for a client to close the connection after the server's last response."""

MAX_MESSAGE_BYTES = 16 * MAX_CLIENT_TEXT_BYTES
"""Largest WebSocket message that is received. One over the protocol's own limit closes with 4540;
one over this limit closes with 1009."""

_NAMES = {
    spelled.encode(): name
    for name in (
        "accept", "accept-encoding", "authorization", "connection", "content-length",
        "content-type", "host", "origin", "traceparent", "user-agent",
    )
    for spelled in (name, name.title())
}  # fmt: skip

_DISCONNECTED = "client disconnected before the body was complete"

_MAX_BLANK_BYTES = 8 * 1024  # of empty lines before a request (RFC 9112, section 2.2)
_REQUEST_WEIGHT = 2048  # memory of a request beside its bytes: its Python objects
_FIELD_WEIGHT = 200  # memory of a header field beside its bytes
_IMMEDIATE_READ_BYTES = 1024  # smaller reads are parsed without waiting for a share of the loop
_SLICE_BYTES = 4096  # parsed in a row: about 150 small requests, or 700 chunks of one byte
_AHEAD_BYTES = 64 * 1024  # received before it is needed; above this, reading pauses


class ServerState(Protocol):
    """The state that the connections of one server share."""

    node: Node
    pending_connections: PendingConnections
    request_bytes: ByteBudget
    answer_bytes: ByteBudget
    unread: Unread
    keepalive: IdleTimeouts
    write_batch: WriteBatch
    pacer: Pacer
    proxies: TrustedProxies
    connections: set[Closable]
    create_group: Callable[[], SocketFanoutGroup]


class Http1Protocol(asyncio.Protocol):
    """Serves HTTP/1.1 on one connection, until it is upgraded to a WebSocket."""

    __slots__ = (
        "_address",
        "_blank_bytes",
        "_body",
        "_caller",
        "_charged",
        "_chunks",
        "_current",
        "_discarded_bytes",
        "_discarding",
        "_field_bytes",
        "_fields",
        "_head_bytes",
        "_headers",
        "_ignored",
        "_in_trailers",
        "_is_ended",
        "_is_in_head",
        "_is_processing",
        "_is_publisher",
        "_is_writable",
        "_loop",
        "_owner",
        "_parser",
        "_pipelined_bytes",
        "_queue",
        "_queued_bytes",
        "_read_paused",
        "_read_to",
        "_resumed",
        "_sent",
        "_stream",
        "_task",
        "_transport",
        "_unread",
        "_upgrade",
        "_url",
        "_wire_bytes",
        "_write_stall",
    )  # fmt: skip

    def __init__(self, owner: ServerState) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._address: str | None = None
        self._url = b""
        self._headers: dict[str, str] = {}
        self._fields = 0
        self._field_bytes = 0
        self._head_bytes = 0
        self._blank_bytes = 0  # empty lines since the last request head
        self._is_in_head = False
        self._in_trailers = False  # after a chunk header: trailers may follow
        self._wire_bytes = 0  # of the body, with chunk headers and trailers
        self._chunks = 0  # of the body
        self._body: HttpRequest | None = None  # the request whose body is being received
        self._queue: deque[HttpRequest] = deque()
        self._current: HttpRequest | None = None  # the request that is being served
        self._upgrade: HttpRequest | None = None
        self._ignored: HttpRequest | None = None  # see _read_past_upgrade
        self._stream: SseSink | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_writable = True
        self._is_processing = False
        self._pipelined_bytes = 0  # received while earlier requests were being served
        self._read_paused = False
        self._unread = b""  # received data that waits for its share of the event loop
        self._read_to = 0  # how much of it was parsed
        self._is_publisher = False  # a publisher's key was accepted on this connection
        self._discarding = False  # received data is no longer parsed
        self._is_ended = False  # the last response was written
        self._queued_bytes = 0  # weight of the requests in the queue
        self._charged = 0  # bytes of requests that are charged to the budget
        self._caller: Caller | None = None  # of the last request that was answered
        self._resumed: asyncio.Future[None] | None = None  # while a chunked response is blocked
        self._discarded_bytes = 0
        self._sent = 0  # since the unread bytes were last measured
        self._write_stall = WriteStallGuard()

    # ---- callbacks of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        peer = transport.get_extra_info("peername")
        # IPv4 peers of a dual-stack socket have a mapped address (RFC 4291, section 2.5.5.2).
        self._address = str(peer[0]).removeprefix("::ffff:") if peer else None
        # Pause as soon as the transport buffers anything. (With 0, TLS would pause without data.)
        is_tls = transport.get_extra_info("ssl_object") is not None
        transport.set_write_buffer_limits(high=1 if is_tls else 0)
        self._owner.connections.add(self)
        self._owner.pending_connections.add(self, HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._detach()
        if self._stream is not None:
            self._stream.on_disconnect()
        if self._body is not None:
            self._body.notify()
        self._wake_writer()
        # A request refers to this connection. After a flood, the reference cycles would keep their
        # memory until the garbage collector runs, which on an idle server is hours later.
        self._queue.clear()
        self._current = self._body = self._upgrade = self._ignored = self._stream = None

    def pause_writing(self) -> None:
        self._is_writable = False
        self._write_stall.watch(self._transport, self.abort)
        self._owner.unread.add(self)

    def resume_writing(self) -> None:
        self._is_writable = True
        self._write_stall.stop()
        self._wake_writer()
        if self._stream is not None:
            self._stream.on_resume()
        else:
            self._resume()

    def data_received(self, data: bytes) -> None:
        if self._unread:  # TLS delivers decrypted data even while reading is paused
            self._unread = self._unread[self._read_to :] + data
            self._read_to = 0
            return
        if len(data) <= _IMMEDIATE_READ_BYTES or self._has_time():
            self._read_slices(data, 0)
        else:
            self._wait_to_read(data, 0)
            self._charge_requests()

    def _read_slices(self, data: bytes, start: int) -> None:
        """Parse at least one slice, and more while this loop iteration has time."""
        begin, size = start, len(data)
        while start < size:
            if self._discarding:
                self._discard(size - start)
                return
            if self._transport.is_closing():
                return
            rest = self._parse(data[start : start + _SLICE_BYTES])
            start += _SLICE_BYTES
            if rest is not None:
                self._start_upgrade(rest + data[start:])
                return
            if start < size and not self._has_time():
                self._wait_to_read(data, start)
                break
        self._resume()
        self._charge_requests()
        if self._queue:
            self._pipelined_bytes += min(start, size) - begin
            if self._pipelined_bytes > _AHEAD_BYTES:
                self._pause_reading()

    def _has_time(self) -> bool:
        """Return whether this connection may use more of the loop iteration; see :class:`Pacer`."""
        return self._is_publisher or self._owner.pacer.has_time()

    def _wait_to_read(self, data: bytes, start: int) -> None:
        if not self._transport.is_closing():
            self._unread, self._read_to = data, start
            self._transport.pause_reading()
            self._owner.pacer.add(self._read_unread, len(data))

    def _read_unread(self) -> None:
        data, self._unread = self._unread, b""
        if self._transport.is_closing():
            return
        if not self._read_paused:
            self._transport.resume_reading()
        self._read_slices(data, self._read_to)

    def _parse(self, data: bytes) -> bytes | None:
        """Parse received data. Return what follows the head of a WebSocket handshake."""
        try:
            while True:
                try:
                    self._parser.feed_data(data)
                    break
                except httptools.HttpParserUpgrade as upgrade:
                    data = data[upgrade.args[0] :]
                    if self._ignored is None:
                        return data
                    self._read_past_upgrade(self._ignored)
        except httptools.HttpParserError:
            if not self._transport.is_closing():
                self._reject(bad_request("Invalid HTTP request", "it is not HTTP/1.1"))
            return None
        if self._is_in_head:
            if not self._head_bytes and self._current is None and not self._queue:
                self._owner.pending_connections.add(self, HEAD_TIMEOUT_S)
            self._head_bytes += len(data)
            if len(self._url) > MAX_TARGET_BYTES:
                self._reject(target_too_long())
            elif self._head_bytes > MAX_HEAD_BYTES:
                details = f"a request's head has at most {MAX_HEAD_BYTES} bytes"
                self._reject(RequestError(431, "payload_too_large", "Head too large", details))
        elif (body := self._body) is not None:
            self._wire_bytes += len(data)
            if self._in_trailers:  # the parser buffers a whole line
                self._head_bytes += len(data)
            if self._wire_bytes > MAX_UNREAD_BYTES or self._head_bytes > MAX_HEAD_BYTES:
                self.abort()
            elif self._chunks > MAX_CHUNKS:
                self._reject(payload_too_large(f"a body has at most {MAX_CHUNKS} chunks"))
            elif body.body_waiter is None and not body.is_answered and body.size > _AHEAD_BYTES:
                self._pause_reading()
        else:
            self._blank_bytes += len(data)
            if self._blank_bytes > _MAX_BLANK_BYTES:
                self._reject(bad_request("Invalid HTTP request", "it begins with empty lines"))
        return None

    def _read_past_upgrade(self, exchange: HttpRequest) -> None:
        """Continue after the head of a request whose ``Upgrade`` is ignored.

        See RFC 9110, section 7.8. The parser treats a request with ``Upgrade`` as the last one of
        its connection, without a body. It would then parse as a request what a proxy has forwarded
        as a body (request smuggling). So a new parser gets a head with nothing but the framing
        fields, which the first parser has validated.

        Raises:
            HttpParserError: the framing is invalid.
        """
        framing = [
            f"{name}: {exchange.headers[name]}\r\n"
            for name in ("content-length", "transfer-encoding")
            if name in exchange.headers
        ]
        self._parser = httptools.HttpRequestParser(self)
        head = f"{exchange.method} / HTTP/1.1\r\n{''.join(framing)}\r\n"
        self._parser.feed_data(head.encode("latin-1"))

    def _pause_reading(self) -> None:
        if not self._read_paused and not self._transport.is_closing():
            self._read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        """Resume reading: the body is needed now, or is to be discarded."""
        if self._read_paused:
            self._read_paused = False
            if not self._unread:
                self._transport.resume_reading()

    # ---- callbacks of the parser

    def on_message_begin(self) -> None:
        if self._ignored is not None:
            return
        self._url = b""
        self._headers = {}
        self._fields = self._field_bytes = 0
        self._is_in_head = True
        self._head_bytes = self._blank_bytes = 0

    def on_url(self, url: bytes) -> None:
        if self._ignored is not None:
            return
        if len(self._url) <= MAX_TARGET_BYTES:  # more is not needed to reject it
            self._url += url[: MAX_TARGET_BYTES + 1]

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_in_head:  # else it is a trailer, which is ignored
            self._fields += 1
            self._field_bytes += len(name) + len(value)
            if self._fields > MAX_HEADERS:
                return
            headers = self._headers
            key = _NAMES.get(name) or name.decode("latin-1").lower()
            text = value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        if self._ignored is not None:
            self._ignored = None
            return
        self._is_in_head = self._in_trailers = False
        self._head_bytes = 0
        if len(self._queue) >= MAX_PIPELINED:
            self.abort()
        if self._transport.is_closing():
            return
        parser, headers, address = self._parser, self._headers, self._address
        url, self._headers, self._url = self._url, {}, b""
        if self._owner.proxies.enabled:
            address = self._owner.proxies.client_address(address, headers)
        version = parser.get_http_version()
        problem = head_error(len(url), version, headers)
        path, _, query = ("/", "", "") if problem else parse_target(url).partition("?")
        method = parser.get_method().decode("latin-1")
        exchange = HttpRequest(method, path, query, headers, address)
        exchange.is_http_10 = is_http_10 = version != "1.1"
        exchange.keeps_alive = parser.should_keep_alive() and not is_http_10
        exchange.weight = (
            _REQUEST_WEIGHT + _FIELD_WEIGHT * self._fields + len(url) + self._field_bytes
        )
        if self._fields > MAX_HEADERS:
            details = f"a request's head has at most {MAX_HEADERS} fields"
            problem = RequestError(431, "payload_too_large", "Head too large", details)
        if problem is not None:
            exchange.error = problem
            exchange.keeps_alive = False
        if parser.should_upgrade():
            self._upgrade = exchange
            if problem is None and not validate_upgrade(exchange):
                self._upgrade, self._ignored = None, exchange
            else:
                exchange.keeps_alive = False
        self._body = exchange
        self._wire_bytes = self._chunks = 0
        self._queue.append(exchange)
        self._queued_bytes += exchange.weight

    def on_chunk_header(self) -> None:
        self._chunks += 1
        self._in_trailers = True  # until the chunk turns out to have data
        self._head_bytes = 0

    def on_body(self, body: bytes) -> None:
        self._in_trailers = False
        if self._body is not None:
            self._body.append_body(body)

    def on_message_complete(self) -> None:
        if self._ignored is not None:  # its body follows
            return
        exchange, self._body = self._body, None
        if exchange is not None:
            exchange.is_complete = True
            exchange.weight += len(exchange.body)
            if exchange is not self._current:
                self._queued_bytes += len(exchange.body)
            exchange.notify()
            self._resume_reading()
            if exchange.is_answered:
                self._end_exchange(exchange)

    # ---- serving requests in order

    def _resume(self) -> None:
        if self._is_processing:  # called by a response inside the loop, which continues anyway
            return
        self._is_processing = True
        try:
            self._process_queue()
        finally:
            self._is_processing = False

    def _process_queue(self) -> None:
        while (
            self._queue
            and self._current is None
            and self._is_writable
            and not (self._is_ended or self._transport.is_closing())
        ):
            exchange = self._current = self._queue.popleft()
            self._queued_bytes -= exchange.weight
            if not self._queue:
                self._pipelined_bytes = 0
                if self._read_paused:
                    self._resume_reading()
            if exchange.error is not None:
                self._owner.node.router.record_error(exchange, exchange.error.response)
                self._answer(exchange, exchange.error.response)
            else:
                if exchange.is_complete and exchange.size <= MAX_BODY_BYTES:
                    exchange.content, exchange.body = bytes(exchange.body), b""
                else:
                    exchange.read = self._read_body
                self._run_in_order(self._serve, exchange, is_quick=exchange.method == "POST")
            if self._current is exchange and not exchange.is_answered:
                # The peer waits for the server, so the deadline does not apply.
                self._owner.pending_connections.remove(self)

    def _run_in_order(
        self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object, is_quick: bool
    ) -> None:
        """Serve a request now, or after earlier requests of other connections."""
        if self._has_time():
            self._run(work(*arguments), is_quick=is_quick)
        else:

            def later() -> None:
                if not self._transport.is_closing():
                    self._run(work(*arguments), is_quick=is_quick)

            self._owner.pacer.add(later)

    def _run(self, work: Coroutine[Any, Any, None], *, is_quick: bool) -> None:
        if is_quick and not self._owner.node.may_block():
            self._task = run_eagerly(self._loop, work)
        else:
            self._owner.pacer.charge(TASK_S)
            self._task = self._loop.create_task(work)

    async def _serve(self, exchange: HttpRequest) -> None:
        try:
            answer = await self._owner.node.router.handle(exchange)
            if isinstance(answer, AcceptedSubscription):
                self._serve_stream(exchange, answer)
            elif answer.rest is not None:
                await self._answer_in_chunks(exchange, answer)
            elif not self._transport.is_closing():
                self._answer(exchange, answer)
        except Exception as error:  # noqa: BLE001 - logged
            self._fail(error)

    def _serve_stream(self, exchange: HttpRequest, opened: AcceptedSubscription) -> None:
        node = self._owner.node
        if self._transport.is_closing():
            node.sessions.close(opened.session)
            return
        self._caller = caller_of(exchange.claims, exchange.address)
        assert opened.head is not None  # noqa: S101 - set for event streams
        chunked = not exchange.is_http_10
        head = encode_head(opened.head, None, keeps_alive=exchange.keeps_alive, chunked=chunked)
        self._transport.write(head)
        self._stream = stream = SseSink(
            self._transport, opened.session, node, chunked=chunked,
            is_writable=lambda: self._is_writable, on_end=lambda: self._end_stream(exchange),
        )  # fmt: skip
        stream.start(opened.after)

    def _end_stream(self, exchange: HttpRequest) -> None:
        self._stream = None
        if not self._transport.is_closing():
            exchange.is_answered = True
            self._end_exchange(exchange)

    async def _read_body(self) -> bytes:
        """Return the whole body of the current request.

        Raises:
            RequestError: 413 above ``MAX_BODY_BYTES``, 408 after ``BODY_TIMEOUT_S``, 400 if the
                client disconnects.
        """
        exchange = self._current
        if exchange is None or self._transport.is_closing():
            raise bad_request("Incomplete body", _DISCONNECTED)
        declared = exchange.headers.get("content-length", "0")
        if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
            raise body_too_large(MAX_BODY_BYTES)
        if not exchange.is_complete and exchange.size <= MAX_BODY_BYTES:
            expects = exchange.headers.get("expect", "").lower()
            # HTTP/1.0 has no Expect (RFC 9110, section 10.1.1).
            if expects == "100-continue" and not (exchange.size or exchange.is_http_10):
                self._transport.write(CONTINUE)
            exchange.body_waiter = self._loop.create_future()
            self._resume_reading()
            timer = self._loop.call_later(BODY_TIMEOUT_S, exchange.notify)
            try:
                await exchange.body_waiter
            finally:
                timer.cancel()
        if exchange.size > MAX_BODY_BYTES:
            raise body_too_large(MAX_BODY_BYTES)
        if exchange.error is not None:
            raise exchange.error
        if not exchange.is_complete:
            if self._transport.is_closing():
                raise bad_request("Incomplete body", _DISCONNECTED)
            raise body_too_slow(BODY_TIMEOUT_S)
        return bytes(exchange.body)

    def _answer(self, exchange: HttpRequest, response: Response) -> None:
        content = response.body
        head = encode_head(response, len(content), keeps_alive=exchange.keeps_alive)
        is_silent = exchange.method == "HEAD" or response.status == 204
        self._write(exchange, head if is_silent else head + content)
        exchange.is_answered = True
        if exchange.is_complete:
            self._end_exchange(exchange)
        else:  # read and discard the rest of the body, so that the client receives the response
            exchange.body = b""
            self._owner.pending_connections.add(self, BODY_TIMEOUT_S)
            self._resume_reading()
            self._charge_requests()

    async def _answer_in_chunks(self, exchange: HttpRequest, response: Response) -> None:
        """Write a long response as its peer reads it. Only one chunk is held in memory."""
        rest = response.rest
        assert rest is not None  # noqa: S101 - see _serve
        try:
            if self._transport.is_closing():
                return
            is_chunked = not exchange.is_http_10
            head = encode_head(response, None, keeps_alive=exchange.keeps_alive, chunked=is_chunked)
            if exchange.method == "HEAD":
                self._write(exchange, head)
            else:
                first = response.body
                self._write(exchange, head + (encode_chunk(first) if is_chunked else first))
                del first, response
                while await self._accepts_more():
                    # Produce a chunk only when the previous one was written, to hold one at a time.
                    chunk = await anext(rest, None)
                    if self._transport.is_closing():
                        return
                    if chunk is None:
                        break
                    self._write(exchange, encode_chunk(chunk) if is_chunked else chunk)
                    del chunk
                    await self._owner.pacer.acquire(SHARE_S)  # the next chunk may cost as much
                else:
                    return
                if is_chunked:
                    self._write(exchange, LAST_CHUNK)
        except StoreUnavailableError:
            self.abort()  # the head was sent, so only a truncated body can signal the failure
            return
        finally:
            await rest.aclose()
        exchange.is_answered = True
        if exchange.is_complete:
            self._end_exchange(exchange)
        else:
            self._owner.pending_connections.add(self, BODY_TIMEOUT_S)
            self._resume_reading()

    async def _accepts_more(self) -> bool:
        """Wait until the socket is writable. Return False if the connection is closed."""
        while not (self._is_writable or self._transport.is_closing()):
            self._owner.pending_connections.add(self, IDLE_TIMEOUT_S)
            self._resumed = self._loop.create_future()
            await self._resumed
            self._owner.pending_connections.remove(self)
        return not self._transport.is_closing()

    def _wake_writer(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.done():
            resumed.set_result(None)

    def _write(self, exchange: HttpRequest, data: bytes) -> None:
        """Write a part of a response. Charge it to the caller if it may stay unread for long."""
        claims = exchange.claims
        self._caller = caller_of(claims, exchange.address)
        self._is_publisher = claims is not None and claims.key_name is not None
        self._transport.write(data)
        self._sent += len(data)
        if self._sent >= MIN_UNREAD_BYTES:
            self._sent = 0
            self._owner.unread.add(self)

    # ---- memory that is held for the peer

    def charge_unread(self) -> bool:
        """See :class:`unread.Writer`."""
        transport = self._transport
        if transport.is_closing():
            return False
        size = transport.get_write_buffer_size() + unsent_bytes(transport)
        caller = self._caller or caller_of(None, self._address)
        self._owner.answer_bytes.hold(self, caller, size)
        return size > 0

    def _charge_requests(self) -> None:
        """Charge the caller for its requests that are held in memory, whole or in part."""
        size, body, current = self._queued_bytes, self._body, self._current
        if current is not None:
            size += current.weight
        if body is not None:
            size += len(body.body)
        if self._is_in_head:
            size += _REQUEST_WEIGHT + _FIELD_WEIGHT * self._fields + self._head_bytes
        size += len(self._unread)
        if size != self._charged and not self._transport.is_closing():
            self._charged = size
            exchange = current or body
            claims = None if exchange is None else exchange.claims
            address = self._address if exchange is None else exchange.address
            self._owner.request_bytes.hold(self, caller_of(claims, address), size)

    def over_budget(self) -> None:
        """See :class:`~.byte_budget.Holder`."""
        self.abort()

    def _end_exchange(self, exchange: HttpRequest) -> None:
        """Continue with the next request: this one was received and answered whole."""
        if self._current is not exchange or self._transport.is_closing():
            return
        self._current = None
        if not exchange.keeps_alive:  # later requests are not answered
            self._is_ended = True
            self._queue.clear()
            self._queued_bytes = 0
        self._charge_requests()
        within_s = HEAD_TIMEOUT_S if self._is_in_head else IDLE_TIMEOUT_S
        self._owner.pending_connections.touch(self, within_s if exchange.keeps_alive else LINGER_S)
        if exchange.keeps_alive:
            self._resume()
        elif self._discarding and self._transport.can_write_eof():
            # Closing a socket with unread data resets the connection, and the client may lose the
            # response. So discard what it sends until it closes.
            self._transport.write_eof()
        else:
            self._transport.close()

    def _reject(self, error: RequestError) -> None:
        """Answer with an error after the earlier responses, then close.

        The rest of the stream is discarded.
        """
        self._discarding = True
        exchange, self._body = self._body, None
        if exchange is not None and exchange.is_answered:  # keep that response
            exchange.keeps_alive = False
            exchange.is_complete = True
            self._end_exchange(exchange)
            return
        if exchange is None:
            self._is_in_head = False
            last = self._queue[-1] if self._queue else self._current
            if self._is_ended or (last is not None and not last.keeps_alive):
                self._resume()  # the last answer is written, or still queued
                return
            exchange = HttpRequest("", "/", "", {}, self._address)
            self._queue.append(exchange)
        exchange.error = error
        exchange.keeps_alive = False
        exchange.is_complete = True
        exchange.notify()
        self._resume()

    def _discard(self, size: int) -> None:
        self._discarded_bytes += size
        if self._discarded_bytes > MAX_UNREAD_BYTES:
            self.abort()

    # ---- upgrading to a WebSocket

    def _start_upgrade(self, rest: bytes) -> None:
        """Handle an upgrade request, after which the parser has stopped.

        Args:
            rest: the bytes that follow its head.
        """
        exchange = self._upgrade
        if exchange is None or self._transport.is_closing():
            return
        if not exchange.is_websocket:
            self._discarding = True
            self._resume()
        elif self._current is not None or len(self._queue) != 1:
            self.abort()  # responses to earlier requests would be written into the WebSocket
        else:
            self._queue.clear()
            self._current = exchange
            self._owner.pending_connections.remove(self)
            self._transport.pause_reading()
            self._run_in_order(self._upgrade_when_accepted, exchange, rest, is_quick=True)

    async def _upgrade_when_accepted(self, exchange: HttpRequest, rest: bytes) -> None:
        node = self._owner.node
        try:
            opened = await node.router.accept_websocket(exchange)
        except RequestError as error:
            if not self._transport.is_closing():
                exchange.is_websocket = False
                self._discarding = True
                self._transport.resume_reading()
                self._answer(exchange, error.response)
        except CloseHandshakeError as error:
            if not self._transport.is_closing():
                self._upgrade_to_websocket(NullHandler(), exchange).close(error.code, error.reason)
        except Exception as error:  # noqa: BLE001 - logged
            self._fail(error)
        else:
            if self._transport.is_closing():
                node.sessions.close(opened.session)
                return
            sink = WebSocketSink(
                opened.session, node, self._owner.keepalive, self._owner.connections,
                self._owner.create_group, supports_control_frames=exchange.supports_control_frames,
            )  # fmt: skip
            sink.socket = socket = self._upgrade_to_websocket(sink, exchange)
            sink.start(opened.after)
            if rest:
                socket.data_received(rest)

    def _upgrade_to_websocket(
        self, handler: WebSocketHandler, exchange: HttpRequest
    ) -> WebSocketProtocol:
        transport = self._transport
        self._detach()
        accept = accept_key(exchange.headers["sec-websocket-key"])
        transport.write(encode_switching_protocols(accept, exchange.chosen_subprotocol))
        socket = WebSocketProtocol(
            transport,
            handler,
            pending_connections=self._owner.pending_connections,
            write_batch=self._owner.write_batch,
            pacer=self._owner.pacer,
            max_message_bytes=MAX_MESSAGE_BYTES,
        )
        transport.set_protocol(socket)
        transport.resume_reading()
        return socket

    # ---- closing

    def _fail(self, error: Exception) -> None:
        """Log an unexpected error and close the connection."""
        self._owner.node.fault("unhandled error while serving request; closing connection", error)
        self.abort()

    def abort(self) -> None:
        """Close immediately."""
        reset(self._transport)

    def shutdown(self) -> None:
        """Close after the response in progress. The server stops."""
        if self._current is None:
            self._transport.close()
        else:
            self._current.keeps_alive = False

    def _detach(self) -> None:
        self._unread = b""
        self._write_stall.stop()
        self._parser = None  # break the reference cycle, to free memory without the collector
        self._owner.pending_connections.remove(self)
        self._owner.request_bytes.release(self)
        self._owner.answer_bytes.release(self)
        self._owner.unread.discard(self)
        self._owner.connections.discard(self)
