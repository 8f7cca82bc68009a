"""uvicorn's HTTP and WebSocket protocols, with an end for hostile peers.

What uvicorn leaves open, keeps in memory or logs with a traceback is bounded here.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.protocol import State

from ..protocol.control import CloseCode
from .connections import ABORT_EXTENSION

CLOSE_HANDSHAKE_S = 10.0

HEAD_TIMEOUT_S = 20.0
"""A connection has so long to send the head of a request; half a head is not waited for."""

READER_TIMEOUT_S = 20.0
MIN_READ_BYTES = 64 * 1024
"""Of an answer that waits, a peer takes at least so much in each ``READER_TIMEOUT_S``."""

MAX_FRAMES_PER_S = 1000
"""Of one WebSocket, with pings, pongs and fragments, which are no messages."""

MAX_HEAD_BYTES = 64 * 1024
"""The head of a request has at most so many, beside those of its first packet."""

MAX_PIPELINED = 100
"""So many requests of one connection wait for the answer before theirs."""

_SLICE_BYTES = 32 * 1024  # of what comes is read at once: a body is in few pieces
_FRAMES_BYTES = 4096  # some 700 frames

_REFUSAL = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(Protocol):
    """What can be cut at once."""

    def end(self) -> None: ...


class HalfOpen:
    """Sockets that wait for a request, or for the rest of one, or for a peer who takes its answer,
    or the server's close: strangers, as far as we know.

    However many knock, so many stay. Who has waited for longest goes first: a client that means it
    has sent its request long before.
    """

    def __init__(self, most: int) -> None:
        """
        Args:
            most: 0 is no limit.
        """
        self._most = most
        self._waiting: OrderedDict[Connection, None] = OrderedDict()

    def begin(self, connection: Connection) -> None:
        self._waiting[connection] = None
        if self._most and len(self._waiting) > self._most:
            oldest, _ = self._waiting.popitem(last=False)
            oldest.end()

    def end(self, connection: Connection) -> None:
        self._waiting.pop(connection, None)


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's, but an event stream whose peer does not read can be cut, a head has an end, and
    those who send none do not add up."""

    _answering: Any = None
    _heads = 0
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, half_open: HalfOpen, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._half_open = half_open

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        self._half_open.begin(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        self._stop_watching()
        if self._answering is not None:
            self._answering.disconnected = True  # uvicorn tells only the last of those pipelined
        super().connection_lost(exc)

    def end(self) -> None:
        """Cut the connection at once."""
        if self._answering is not None:
            self._answering.disconnected = True
        self.transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._half_open.begin(self)
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()
        if self._is_answering():
            self._half_open.end(self)

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        self._half_open.begin(self)

    def _watch_reader(self) -> None:
        """Who asks and takes no answer would stay for ever, with all that waits for it."""
        left = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(READER_TIMEOUT_S, self._look_at_reader, left)

    def _look_at_reader(self, before: int) -> None:
        if self.transport.get_write_buffer_size() > before - MIN_READ_BYTES:
            self.end()
        else:
            self._watch_reader()

    def _stop_watching(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _SLICE_BYTES):
            if start and self.transport.is_closing():
                return
            self._read(data[start : start + _SLICE_BYTES])

    def _read(self, data: bytes) -> None:
        before = self._heads
        super().data_received(data)
        # What came before in the packet that a head begins in is not counted: it may be a body.
        if self._head_timer is not None and before == self._heads:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {ABORT_EXTENSION: self.end}  # type: ignore[dict-item]
        self._heads += 1
        self._head_bytes = 0
        if self._head_timer is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head_timer is not None:  # else it is a trailer: uvicorn would keep them all
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_is_there()
        if len(self.pipeline) >= MAX_PIPELINED:
            self.end()
        if self.transport.is_closing():
            return
        if not self._is_odd_upgrade():
            super().on_headers_complete()
        elif self._has_body():
            self._refuse(b"400 Bad Request")
        else:
            super().on_headers_complete()
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing():  # else there may be no request that it could be of
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.transport.is_closing():
            super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        if self._is_answering():
            # It would go on writing into the WebSocket, and hear no more whether the peer reads.
            self.end()
        else:
            super().handle_websocket_upgrade()

    def _is_odd_upgrade(self) -> bool:
        """Whether the request asks for a protocol that nobody here speaks (h2c).

        The parser stops behind the head of one, and takes its body for the next request: one that
        was smuggled past a proxy, which knows better. So there is none.
        """
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()

    def _has_body(self) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b" 0"))
            for name, value in self.headers
        )

    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request, whatever uvicorn declares
        return cycle is not None and not cycle.response_complete

    def _refuse(self, status: bytes) -> None:
        """The last word on this connection; nothing at all, where an answer is under way."""
        if self._is_answering():
            self.end()
        elif not self.transport.is_closing():
            self.transport.write(_REFUSAL % status)
            self.transport.close()
            self._half_open.begin(self)

    def _unsupported_upgrade_warning(self) -> None:
        """It was answered; uvicorn would write a line."""

    def on_response_complete(self) -> None:
        self._answering.body = b""  # what nobody read; else it stays as long as the connection
        super().on_response_complete()
        if self._answering.response_complete:
            self._half_open.begin(self)  # also one that is to be closed: the answer may wait

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _head_is_there(self) -> None:
        self._half_open.end(self)
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, but a hostile peer gets an end, and no place in memory or in the log."""

    _end: asyncio.TimerHandle | None = None
    _gone = False
    _second = 0
    _frames = 0

    def __init__(self, *args: Any, half_open: HalfOpen, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._half_open = half_open

    def end(self) -> None:
        """Cut the connection at once."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        for start in range(0, len(data), _FRAMES_BYTES):
            if start and self.transport.is_closing():
                return
            self._read(data[start : start + _FRAMES_BYTES])

    def handle_events(self) -> None:
        """One that says too much is ended here: the app would hear of it behind all the rest, and
        of what is no message not at all."""
        second = int(self.loop.time())
        if second != self._second:
            self._second, self._frames = second, 0
        self._frames += len(self.conn.events)
        super().handle_events()
        if self._frames > MAX_FRAMES_PER_S and not self.transport.is_closing():
            if self.conn.state is State.OPEN:
                self.conn.send_close(int(CloseCode.TOO_MANY_MESSAGES))
                self.transport.write(b"".join(self.conn.data_to_send()))
            self.close_sent = self.disconnected = True  # the app's next word has nowhere to go
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
            self.transport.close()
            self._await_end()

    def _read(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # A head that is no handshake, such as one with a body: uvicorn would leave it open.
            refusal = b"".join(self.conn.data_to_send()) or _REFUSAL % b"400 Bad Request"
            self.handshake_initiated = self.handshake_complete = self.close_sent = True
            self.transport.write(refusal)
            self.transport.close()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn would log it as an error, with a traceback
                self.frames = []
                if self.conn.state is State.OPEN:  # else a close was behind it in the packet
                    self.conn.send_close(1007)
                    self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

    def handle_parser_exception(self) -> None:
        super().handle_parser_exception()
        self.disconnected = True  # else uvicorn logs what the app is just writing as its error

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:  # it does not read: the pong would wait in memory, behind all the others
            self.conn.data_to_send()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # else uvicorn logs a refusal as an error of the app

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self._await_end()

    def _await_end(self) -> None:
        """The last word was said: what is left to the peer is to take it, and to answer."""
        if not self._gone and self._end is None:
            self._half_open.begin(self)
            self._end = self.loop.call_later(CLOSE_HANDSHAKE_S, self.end)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._gone = True
        self._half_open.end(self)
        if self._end is not None:
            self._end.cancel()  # it would hold the connection's memory until then
