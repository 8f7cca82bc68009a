"""HTTP/1.1 on a socket, parsed by httptools (llhttp). See RFC 9112.

The requests of a connection are served one at a time, in order. Everything that is held for a peer
is bounded in bytes and in time.
"""

from __future__ import annotations

import asyncio
import enum
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from ..errors import StoreUnavailableError
from ..http.subscribe import AcceptedSubscription
from ..messages import RequestError, Response
from ..resources.byte_budget import caller_of
from ..resources.pacing import SHARE_S, TASK_S, run_eagerly
from .flow_control import PacedProtocol, ResponseFlow
from .http1_parser import HEAD, MAX_UNREAD_BYTES, STOPPED, RequestParser, Upgrade
from .requests import (
    AHEAD_BYTES,
    COMPLETE,
    DISCARDING,
    LAST_CHUNK,
    HttpRequest,
    encode_chunk,
    encode_head,
    incomplete_body,
)
from .server_state import ServerState
from .sse import SseSink
from .websocket import upgrade_to_websocket
from .writes import reset

HEAD_TIMEOUT_S = 20.0
"""Time for a client to send a whole request head."""

IDLE_TIMEOUT_S = 75.0
"""How long a connection may be idle between two requests. Longer than clients keep connections in
their pools: if the server closed first, it could close while a request is on its way."""

BODY_TIMEOUT_S = 20.0
"""Time for a client to send a whole request body."""

LINGER_S = 10.0
"""Time for a client to close the connection after the server's last response."""


class ConnectionState(enum.Enum):
    """What a connection does for its client. See also :class:`ParserState`.

    ==============  ==========================================  =============================
    state           meaning                                     next
    ==============  ==========================================  =============================
    ``IDLE``        no request is being served                  SERVING, UPGRADING
    ``SERVING``     a request is being served                   ANSWERED, IDLE
    ``ANSWERED``    it was answered; the rest of its body, if   IDLE, LINGERING
                    any, is read and discarded
    ``UPGRADING``   a WebSocket handshake is being authorized   CLOSED, ANSWERED
    ``LINGERING``   the last response was written: the client   CLOSED
                    has to close
    ``CLOSED``      the connection has ended, or is a           none
                    WebSocket now
    ==============  ==========================================  =============================

    Each state goes to ``CLOSED`` when the connection is lost.
    """

    IDLE = enum.auto()
    SERVING = enum.auto()
    ANSWERED = enum.auto()
    UPGRADING = enum.auto()
    LINGERING = enum.auto()
    CLOSED = enum.auto()


# In Python 3.11, each access to a member by its class costs as much as a call.
IDLE, SERVING, ANSWERED, UPGRADING, LINGERING, CLOSED = ConnectionState


class Http1Protocol(PacedProtocol):
    """Serves HTTP/1.1 on one connection, until it is upgraded to a WebSocket."""

    __slots__ = (
        "_address",
        "_charged",
        "_current",
        "_descriptor",
        "_discarded_bytes",
        "_is_processing",
        "_is_publisher",
        "_loop",
        "_parser",
        "_pipelined_bytes",
        "_responses",
        "_server",
        "_state",
        "_stream",
        "_task",
    )

    immediate_read_bytes = 1024
    slice_bytes = 4096  # about 150 small requests, or 700 chunks of one byte

    _parser: RequestParser
    _responses: ResponseFlow

    def __init__(self, server: ServerState, descriptor: int | None = None) -> None:
        """
        Args:
            descriptor: see :class:`WebSocketProtocol`.
        """
        super().__init__(server.pacer)
        self._server = server
        self._descriptor = descriptor
        self._loop = asyncio.get_running_loop()
        self._address: str | None = None
        self._state = IDLE
        self._current: HttpRequest | None = None  # the request that is being served
        self._stream: SseSink | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_processing = False  # guards the loop over the queue against recursion
        self._is_publisher = False  # a publisher's key was accepted on this connection
        self._pipelined_bytes = 0  # received while earlier requests were being served
        self._discarded_bytes = 0
        self._charged = 0  # bytes of requests that are charged to the budget

    # ---- callbacks of the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        server = self._server
        self._transport = transport
        peer = transport.get_extra_info("peername")
        # IPv4 peers of a dual-stack socket have a mapped address (RFC 4291, section 2.5.5.2).
        # Connections of one address share the text.
        address = sys.intern(str(peer[0]).removeprefix("::ffff:")) if peer else None
        self._address = address
        self._parser = RequestParser(self, address, server.proxies)
        self._responses = ResponseFlow(
            transport,
            address,
            server.response_bytes,
            server.unread_responses,
            server.write_batch,
            self._descriptor,
        )
        # Pause as soon as the transport buffers anything. (With 0, TLS would pause without data.)
        transport.set_write_buffer_limits(high=1 if self._descriptor is None else 0)
        server.connections.add(self)
        server.pending_connections.add(self, HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        receiving = self._parser.receiving
        self._detach()
        if self._stream is not None:
            self._stream.on_disconnect()
        if receiving is not None:
            receiving.body.notify()
        self._current = self._stream = None  # see RequestParser.close

    def pause_writing(self) -> None:
        self._responses.pause()

    def resume_writing(self) -> None:
        self._responses.resume()
        if self._stream is not None:
            self._stream.on_resume()
        else:
            self._serve_queue()

    # ---- received data

    def _handle_slice(self, data: bytes, start: int) -> bool:
        if self._parser.state is STOPPED:
            self._discard(len(data) - start)
            return False
        end = start + self.slice_bytes
        try:
            upgrade = self._parser.feed(data[start:end])
        except RequestError as error:
            if not self._transport.is_closing():
                self._reject(error)
            return True
        if upgrade is not None:
            self._start_upgrade(upgrade, data[end:])
            return False
        receiving = self._parser.receiving
        if receiving is not None and receiving.body.is_ahead:
            self.pause_reading()
        return True

    def _on_data_handled(self, size: int) -> None:
        self._serve_queue()
        if self._parser.queue:
            self._pipelined_bytes += size
            if self._pipelined_bytes > AHEAD_BYTES:
                self.pause_reading()

    def _has_time(self) -> bool:
        return self._is_publisher or self._pacer.has_time()

    def _discard(self, size: int) -> None:
        self._discarded_bytes += size
        if self._discarded_bytes > MAX_UNREAD_BYTES:
            self.abort()

    # ---- callbacks of the parser

    def on_head_begun(self) -> None:
        """See :class:`http1_parser.RequestHandler`."""
        if self._current is None and not self._parser.queue:
            self._server.pending_connections.add(self, HEAD_TIMEOUT_S)

    def on_request_complete(self) -> None:
        """See :class:`http1_parser.RequestHandler`."""
        self.resume_reading()
        if self._state is ANSWERED:
            self._end_exchange()

    # ---- serving requests in order

    def _serve_queue(self) -> None:
        """Serve the queued requests, and charge those that are held then."""
        if self._is_processing:  # called by a response inside the loop, which continues anyway
            return
        self._is_processing = True
        try:
            while (
                self._state is IDLE
                and self._parser.queue
                and self._responses.is_writable
                and not self._transport.is_closing()
            ):
                self._serve_next()
        finally:
            self._is_processing = False
        self._charge_requests()

    def _serve_next(self) -> None:
        request = self._current = self._parser.take()
        self._state = SERVING
        if not self._parser.queue:
            self._pipelined_bytes = 0
            self.resume_reading()
        if request.error is not None:
            self._server.node.router.record_error(request, request.error.response)
            self._respond(request, request.error.response)
        else:
            request.content = request.body.take()
            if request.content is None:
                request.read = self._read_body
            self._run_in_order(self._serve, request, is_quick=request.method == "POST")
        if self._current is request and self._state is SERVING:
            # The peer waits for the server, so the deadline does not apply.
            self._server.pending_connections.remove(self)

    def _run_in_order(
        self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object, is_quick: bool
    ) -> None:
        """Serve a request now, or after earlier requests of other connections."""
        if self._has_time():
            self._run(work(*arguments), is_quick=is_quick)
        else:
            self._pacer.add(partial(self._run_if_open, work, *arguments, is_quick=is_quick))

    def _run_if_open(
        self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: object, is_quick: bool
    ) -> None:
        if not self._transport.is_closing():
            self._run(work(*arguments), is_quick=is_quick)

    def _run(self, work: Coroutine[Any, Any, None], *, is_quick: bool) -> None:
        if is_quick and not self._server.node.may_block:
            self._task = run_eagerly(self._loop, work)
        else:
            self._pacer.charge(TASK_S)
            self._task = self._loop.create_task(work)

    async def _serve(self, request: HttpRequest) -> None:
        try:
            result = await self._server.node.router.handle(request)
            if isinstance(result, AcceptedSubscription):
                self._serve_stream(request, result)
            elif result.rest is not None:
                await self._respond_in_chunks(request, result)
            elif not self._transport.is_closing():
                self._respond(request, result)
        except Exception as error:  # noqa: BLE001 - logged
            self._fail(error)

    async def _read_body(self) -> bytes:
        """Return the whole body of the current request.

        Raises:
            RequestError: see :meth:`RequestBody.read`.
        """
        request = self._current
        if request is None:
            raise incomplete_body()
        self._server.write_batch.flush()  # an earlier response, before 100 (Continue)
        return await request.body.read(
            self._transport,
            self.resume_reading,
            declared_bytes=request.declared_bytes,
            expects_continue=request.expects_continue,
            timeout_s=BODY_TIMEOUT_S,
        )

    def _serve_stream(self, request: HttpRequest, opened: AcceptedSubscription) -> None:
        node = self._server.node
        if self._transport.is_closing():
            node.sessions.close(opened.session)
            return
        assert opened.head is not None  # noqa: S101 - set for event streams
        chunked = not request.is_http_10
        head = encode_head(opened.head, None, keeps_alive=request.keeps_alive, chunked=chunked)
        self._responses.write(head, request.claims, request.address)
        self._stream = stream = SseSink(
            self._transport, opened.session, node.sessions, chunked=chunked,
            is_writable=lambda: self._responses.is_writable, on_end=self._end_stream,
        )  # fmt: skip
        stream.start(opened.after)

    def _end_stream(self) -> None:
        self._stream = None
        if self._current is not None and not self._transport.is_closing():
            self._current.body.discard()
            self._end_exchange()

    # ---- responses

    def _respond(self, request: HttpRequest, response: Response) -> None:
        content = response.body
        data = encode_head(response, len(content), keeps_alive=request.keeps_alive)
        if request.method != "HEAD" and response.status != 204:
            data += content
        self._write(request, data, is_whole=True)
        self._finish_response(request)

    async def _respond_in_chunks(self, request: HttpRequest, response: Response) -> None:
        """Write a long response as its peer reads it. Only one chunk is held in memory."""
        rest = response.rest
        assert rest is not None  # noqa: S101 - see _serve
        try:
            if self._transport.is_closing():
                return
            is_chunked = not request.is_http_10
            head = encode_head(response, None, keeps_alive=request.keeps_alive, chunked=is_chunked)
            if request.method == "HEAD":
                self._write(request, head)
            else:
                first = response.body
                self._write(request, head + (encode_chunk(first) if is_chunked else first))
                del first, response
                while await self._accepts_more():
                    # Produce a chunk only when the previous one was written, to hold one at a time.
                    chunk = await anext(rest, None)
                    if self._transport.is_closing():
                        return
                    if chunk is None:
                        break
                    self._write(request, encode_chunk(chunk) if is_chunked else chunk)
                    del chunk
                    await self._pacer.acquire(SHARE_S)  # the next chunk may cost as much
                else:
                    return
                if is_chunked:
                    self._write(request, LAST_CHUNK)
        except StoreUnavailableError:
            self.abort()  # the head was sent, so only a truncated body can signal the failure
            return
        finally:
            await rest.aclose()
        self._finish_response(request)

    async def _accepts_more(self) -> bool:
        """Wait until the socket is writable. Return False if the connection is closed."""
        while not (self._responses.is_writable or self._transport.is_closing()):
            self._server.pending_connections.add(self, IDLE_TIMEOUT_S)
            await self._responses.wait_for_change()
            self._server.pending_connections.remove(self)
        return not self._transport.is_closing()

    def _write(self, request: HttpRequest, data: bytes, *, is_whole: bool = False) -> None:
        """Write a response or a part of it, and charge it to the caller."""
        claims = request.claims
        self._is_publisher = claims is not None and claims.key_name is not None
        if is_whole and request.keeps_alive:
            self._responses.write_batched(data, claims, request.address)
        else:
            self._responses.write(data, claims, request.address)

    def _finish_response(self, request: HttpRequest) -> None:
        """Continue after a response was written, as soon as its request was received whole."""
        self._state = ANSWERED
        if request.body.state is COMPLETE:
            self._end_exchange()
        else:  # read and discard the rest of the body, so that the client receives the response
            request.body.discard()
            self._server.pending_connections.add(self, BODY_TIMEOUT_S)
            self.resume_reading()
            self._charge_requests()

    def _end_exchange(self) -> None:
        """Continue with the next request: the current one was received and answered whole."""
        request = self._current
        if request is None or self._transport.is_closing():
            return
        self._current = None
        self._state = IDLE if request.keeps_alive else LINGERING
        pending = self._server.pending_connections
        if request.keeps_alive:
            is_in_head = self._parser.state is HEAD
            pending.touch(self, HEAD_TIMEOUT_S if is_in_head else IDLE_TIMEOUT_S)
            self._serve_queue()
            return
        self._parser.clear_queue()  # later requests are not answered
        self._charge_requests()
        pending.touch(self, LINGER_S)
        if self._parser.state is STOPPED and self._transport.can_write_eof():
            # Closing a socket with unread data resets the connection, and the client may lose the
            # response. So discard what it sends until it closes.
            self._transport.write_eof()
        else:
            self._transport.close()

    def _reject(self, error: RequestError) -> None:
        """Answer with an error after the earlier responses, then close.

        The rest of the stream is discarded.
        """
        request = self._parser.stop()
        if request is not None and request.body.state is DISCARDING:
            request.keeps_alive = False  # keep the response that was written
            request.body.complete()
            if request is self._current:
                self._end_exchange()
            return
        if request is None:
            last = self._parser.queue[-1] if self._parser.queue else self._current
            if self._state is LINGERING or (last is not None and not last.keeps_alive):
                self._serve_queue()  # the last response is written, or still queued
                return
            request = HttpRequest("", "/", "", {}, self._address)
            self._parser.queue.append(request)
        request.fail(error)
        self._serve_queue()

    # ---- memory that is held for the peer

    def _charge_requests(self) -> None:
        """Charge the caller for its requests that are held in memory, whole or in part."""
        current = self._current
        size = self._parser.held_bytes + len(self._unread)
        if current is not None:
            size += current.weight
        if size != self._charged and not self._transport.is_closing():
            self._charged = size
            request = current or self._parser.receiving
            claims = None if request is None else request.claims
            address = self._address if request is None else request.address
            self._server.request_bytes.hold(self, caller_of(claims, address), size)

    def over_budget(self) -> None:
        """See :class:`byte_budget.Holder`."""
        self.abort()

    # ---- upgrading to a WebSocket

    def _start_upgrade(self, upgrade: Upgrade, more: bytes) -> None:
        """Handle a request after which the parser has stopped.

        Args:
            more: bytes that follow those of ``upgrade``.
        """
        request = upgrade.request
        self._server.write_batch.flush()  # an earlier response, before the one to the handshake
        if self._transport.is_closing():
            return
        if request.error is not None:
            self._parser.stop()
            self._serve_queue()
        elif self._current is not None or len(self._parser.queue) != 1:
            self.abort()  # responses to earlier requests would be written into the WebSocket
        else:
            self._parser.clear_queue()
            self._current = request
            self._state = UPGRADING
            self._server.pending_connections.remove(self)
            self._transport.pause_reading()
            self._run_in_order(self._upgrade, request, upgrade.rest + more, is_quick=True)

    async def _upgrade(self, request: HttpRequest, rest: bytes) -> None:
        try:
            await upgrade_to_websocket(
                self._server, self._transport, self._descriptor, request, rest, self._detach
            )
        except RequestError as error:
            if not self._transport.is_closing():
                self._parser.stop()
                self._transport.resume_reading()
                self._respond(request, error.response)
        except Exception as error:  # noqa: BLE001 - logged
            self._fail(error)

    # ---- closing

    def _fail(self, error: Exception) -> None:
        """Log an unexpected error and close the connection."""
        self._server.node.fault("unhandled error while serving request; closing connection", error)
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
        """Release everything: the connection has ended, or is a WebSocket now."""
        self._state = CLOSED
        self._unread = b""
        self._parser.close()
        self._responses.close()
        self._server.pending_connections.remove(self)
        self._server.request_bytes.release(self)
        self._server.connections.discard(self)
