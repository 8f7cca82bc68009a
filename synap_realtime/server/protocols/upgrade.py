"""Upgrade a connection to a WebSocket. See RFC 6455, section 4.2.2."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ...protocol.control import MAX_CLIENT_TEXT_BYTES
from ..http.subscribe import CloseHandshakeError
from .requests import HttpRequest
from .responses import encode_switching_protocols
from .server_state import ServerState
from .websocket import NullHandler, WebSocketHandler, WebSocketProtocol, WebSocketSink
from .ws_codec import accept_key

MAX_MESSAGE_BYTES = 16 * MAX_CLIENT_TEXT_BYTES
"""Largest WebSocket message that is received. One over the protocol's own limit closes with 4540;
one over this limit closes with 1009."""


async def upgrade_to_websocket(
    server: ServerState,
    transport: asyncio.Transport,
    request: HttpRequest,
    rest: bytes,
    on_accepted: Callable[[], None],
) -> None:
    """Authorize a WebSocket handshake, answer it, and start the subscription.

    Args:
        server: the state that the connections of the server share.
        transport: the connection.
        request: the handshake.
        rest: the bytes that follow it.
        on_accepted: called before HTTP ends on the connection.

    Raises:
        RequestError: the handshake is rejected. It is not answered yet.
    """
    node = server.node
    try:
        opened = await node.router.accept_websocket(request)
    except CloseHandshakeError as error:
        if not transport.is_closing():
            on_accepted()
            socket = _switch_protocols(server, transport, request, NullHandler())
            socket.close(error.code, error.reason)
        return
    if transport.is_closing():
        node.sessions.close(opened.session)
        return
    sink = WebSocketSink(
        opened.session, node.sessions, server.idle_timeouts, server.connections,
        server.create_group, supports_control_frames=request.supports_control_frames,
    )  # fmt: skip
    on_accepted()
    sink.socket = socket = _switch_protocols(server, transport, request, sink)
    sink.start(opened.after)
    if rest:
        socket.data_received(rest)


def _switch_protocols(
    server: ServerState,
    transport: asyncio.Transport,
    request: HttpRequest,
    handler: WebSocketHandler,
) -> WebSocketProtocol:
    accept = accept_key(request.headers["sec-websocket-key"])
    transport.write(encode_switching_protocols(accept, request.chosen_subprotocol))
    socket = WebSocketProtocol(
        transport,
        handler,
        pending_connections=server.pending_connections,
        write_batch=server.write_batch,
        pacer=server.pacer,
        max_message_bytes=MAX_MESSAGE_BYTES,
    )
    transport.set_protocol(socket)
    transport.resume_reading()
    return socket
