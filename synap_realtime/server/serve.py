"""Front 2: the room server as a program of its own, on uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncGenerator, Generator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from ..errors import ConfigurationError
from ..protocol.control import MAX_CLIENT_TEXT_BYTES
from .asgi import RoomServer, create_app
from .connections import ABORT_EXTENSION
from .settings import ServerSettings, is_loopback

logger = logging.getLogger(__name__)

DRAIN_S = 5
CUT_S = 3.0
CLOSE_HANDSHAKE_S = 10.0

HEAD_TIMEOUT_S = 20.0
"""A connection has so long to send the head of a request; half a head is not waited for."""

MAX_HEAD_BYTES = 64 * 1024
"""The head of a request has at most so many, beside those of its first packet."""

_REFUSAL = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers; who runs it says when it stops."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if isinstance(app := self.config.app, RoomServer):
            await app.drain()  # before uvicorn closes the sockets with a code of its own
        cut = asyncio.get_running_loop().call_later(CUT_S, self._cut)
        try:
            await super().shutdown(sockets)
        finally:
            cut.cancel()

    def _cut(self) -> None:
        """End who has sent half a request, or does not read its answer.

        Else uvicorn cancels them, with a traceback in the log for each.
        """
        for connection in tuple(self.server_state.connections):
            if isinstance(connection, _Http):
                connection.end()
            else:
                connection.transport.abort()


class _Http(HttpToolsProtocol):
    """uvicorn's, but an event stream whose peer does not read can be cut, and a head has an end."""

    _answering: Any = None
    _heads = 0
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        if self._answering is not None:
            self._answering.disconnected = True  # uvicorn tells only the last of those pipelined
        super().connection_lost(exc)

    def end(self) -> None:
        """Cut the connection at once."""
        if self._answering is not None:
            self._answering.disconnected = True
        self.transport.abort()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def data_received(self, data: bytes) -> None:
        before = self._heads
        super().data_received(data)
        # What came before in the packet that a head begins in is not counted: it may be a body.
        if self._head_timer is not None and before == self._heads:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_REFUSAL % b"431 Request Header Fields Too Large")
                self.transport.close()

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
        super().on_headers_complete()

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _head_is_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's, but a hostile peer gets an end, and no place in memory or in the log."""

    def data_received(self, data: bytes) -> None:
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
                self.conn.send_close(1007)
                self.handle_parser_exception()
                return
        super().send_receive_event_to_app()

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
        self.loop.call_later(CLOSE_HANDSHAKE_S, self.transport.abort)


@contextlib.asynccontextmanager
async def running(app: Any, host: str = "127.0.0.1", port: int = 0) -> AsyncGenerator[str]:
    """Serve an ASGI app inside this event loop: a room server, or what stands beside it.

    Yields:
        Its address, ``http://127.0.0.1:8787``. Requests are taken from then on, and answered as
        soon as the app has started.

    Raises:
        ConfigurationError: the address cannot be had, or is open to others.
    """
    if not is_loopback(host):
        raise ConfigurationError(
            f"--host {host} would let every machine that reaches this one publish and listen: "
            "this server has no keys. Use 127.0.0.1, and put a proxy that authenticates in front"
        )
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigurationError(
            f"could not listen on {host}:{port} ({error.strerror}); "
            "choose another port, or 0 for a free one"
        ) from error
    # asyncio sets TCP_NODELAY only on sockets that name their protocol. Without it, the second part
    # of each answer waits 40 ms for the peer's ACK of the first.
    listener = socket.socket(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listener.detach()
    )
    config = uvicorn.Config(
        app,
        http=_Http,
        ws=_WebSocket,
        # Room for a clear close code (4540) where a client sends a little too much.
        ws_max_size=16 * MAX_CLIENT_TEXT_BYTES,
        proxy_headers=False,  # the peer is who it is; what a header says of it is not asked
        ws_per_message_deflate=False,
        log_config=None,
        # Its own lines at "info" hold whole addresses, and an address can hold a token.
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    shown = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{shown}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


async def until_stopped() -> None:
    """Wait for SIGINT or SIGTERM."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await stop.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


async def serve(settings: ServerSettings) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        ConfigurationError: the settings cannot work, or the port is taken.
    """
    app = create_app(settings)
    async with running(app, settings.host, settings.port) as url:
        logger.info("%s", app.promise)
        logger.info("listening on %s", url)
        await until_stopped()
        logger.info("stopping")


def run(settings: ServerSettings) -> None:
    """:func:`serve`, with logging and, where there is one, uvloop."""
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        runner.run(serve(settings))
