"""WebSockets: the upgrade, the protocol of one connection, and the sink of a subscription.

See PROTOCOL.md, "WebSocket", and RFC 6455, sections 4.2.2 and 5 to 7.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol

from ...protocol.control import MAX_CLIENT_TEXT_BYTES, CloseCode, ControlFrame
from ..deadlines import PendingConnections
from ..http.subscribe import CloseHandshakeError
from ..resources.pacing import Pacer
from ..rooms.backlog import MAX_JOINED_BYTES
from ..rooms.hub import FanoutGroup
from ..rooms.room_delivery import GroupMember
from ..rooms.sessions import ClientConnection, Session
from ..rooms.subscription import Subscription
from ..stores.base import Entry
from .fanout import GroupSocket, PauseListener, SharedSocket, SocketFanoutGroup
from .flow_control import PacedProtocol
from .requests import HttpRequest, encode_switching_protocols
from .server_state import ServerState
from .writes import WriteBatch, reset, write_direct
from .ws_codec import (
    Close,
    Decoder,
    Ping,
    Pong,
    ProtocolFailure,
    accept_key,
    close_frame,
    encode_entry_frame,
    ping_frame,
    pong_frame,
    text_frame,
)

CLOSE_HANDSHAKE_S = 10.0
"""Time for the peer to read the server's close frame and to answer it."""

MAX_FRAMES_PER_S = 1000
"""Most frames per second that a client may send, including control frames and fragments."""

MAX_DROPPED_BYTES = 1024 * 1024
"""Most bytes that are read and discarded after a protocol violation, so that the client can receive
the close frame."""

_PING = ping_frame()


class WebSocketHandler(Protocol):
    """Receives the events of one WebSocket. The event loop calls it, so it must not block."""

    def on_activity(self) -> None:
        """A frame of any kind was received. :meth:`on_message` follows if it ends a message."""

    def on_message(self, message: str | bytes) -> None:
        """A whole message was received: text as ``str``, binary as ``bytes``."""

    def on_pause(self) -> None:
        """The socket is blocked."""

    def on_resume(self) -> None:
        """The socket is writable again."""

    def on_close(self) -> None:
        """The closing handshake has begun, by the peer or by a protocol violation.

        No message is received or sent any more. :meth:`on_disconnect` follows.
        """

    def on_disconnect(self) -> None:
        """The connection has ended. Called once, after every other event."""


class WebSocketProtocol(PacedProtocol):
    """Reads and writes one WebSocket, and closes the connections of hostile peers.

    An idle connection has no timer, no task and no buffer.

    The caller performs the handshake: it calls ``transport.set_protocol(socket)``, starts to write,
    calls :meth:`flush_response`, and then ``socket.data_received(rest)`` with the bytes that
    followed the request.

    Attributes:
        descriptor: the socket's descriptor, if it can be written to directly. It is open until
            :meth:`connection_lost` has returned.
        group: the group whose writes it shares, or the groups of its rooms; None unless
            :attr:`is_writable`.
        index: its position in the group, which sets it.
    """

    __slots__ = (
        "_decoder",
        "_dropped",
        "_handler",
        "_has_failed",
        "_is_closing",
        "_is_paused",
        "_pending_connections",
        "_pending_pong",
        "_response",
        "_second",
        "_write_batch",
        "descriptor",
        "group",
        "index",
    )

    max_frames_per_s: ClassVar[int] = MAX_FRAMES_PER_S
    immediate_read_bytes = 256
    slice_bytes = 1024  # about 170 frames: the frame rate is checked after each slice

    def __init__(
        self,
        transport: asyncio.Transport,
        handler: WebSocketHandler,
        *,
        pending_connections: PendingConnections,
        write_batch: WriteBatch,
        pacer: Pacer,
        max_message_bytes: int,
        descriptor: int | None = None,
        response: bytes = b"",
    ) -> None:
        """
        Args:
            transport: the connection. Its write buffer limits are such that it pauses as soon as
                it buffers anything.
            handler: receives the events.
            pending_connections: holds the connection from its close frame until the peer
                has closed it.
            write_batch: collects the frames of this event-loop iteration, of all sockets.
            pacer: divides the event loop's time between all connections.
            max_message_bytes: a longer message closes the connection with 1009.
            descriptor: of the socket; None if what is written has to pass the transport (TLS).
            response: the 101 response. It is written together with the first frame, because each
                write wakes the peer.
        """
        super().__init__(pacer)
        self.descriptor = descriptor
        self.group: PauseListener | None = None
        self.index = -1
        self._transport = transport
        self._handler = handler
        self._pending_connections = pending_connections
        self._write_batch = write_batch
        self._response = response
        self._pending_pong = b""  # answers the latest ping that came while the socket was blocked
        self._decoder = Decoder(max_message_bytes)
        self._second = 0
        self._dropped = 0
        self._is_paused = transport.get_write_buffer_size() > 0
        self._is_closing = False  # a close frame was written, or the connection was aborted
        self._has_failed = False  # after a protocol violation: received data is discarded

    @property
    def is_writable(self) -> bool:
        """Whether the socket is neither blocked nor closing."""
        return not (self._is_paused or self._is_closing)

    def write(self, frame: bytes) -> bool:
        """Write a frame after the pending ones. The transport buffers what the socket rejects.

        The frame is accepted even if the socket is not writable: the caller has to check
        :attr:`is_writable`. After :meth:`close` it is dropped.

        Returns:
            :attr:`is_writable` afterwards.
        """
        self._write_batch.flush()
        return self.write_now(frame)

    def write_now(self, frame: bytes) -> bool:
        """Write a frame before those of the write batch. For the batch and :meth:`write` only."""
        transport = self._transport
        # After a failed write, the event loop closes a socket before it calls connection_lost().
        if self._is_closing or transport.is_closing():
            return False
        if self._response:
            frame, self._response = self._response + frame, b""
        if self.descriptor is None or self._is_paused:
            transport.write(frame)
            return not self._is_paused
        if not write_direct(transport, self.descriptor, frame):
            self.abort()
        return self.is_writable

    def flush_response(self) -> None:
        """Write the response to the handshake, if no frame was written yet."""
        if self._response:
            self.write_now(b"")

    def write_batched(self, frame: bytes) -> bool:
        """Write a frame now, or at the end of this event-loop iteration: see :class:`WriteBatch`.

        Returns:
            :attr:`is_writable`, as far as it is known before the flush. If the flush blocks, the
            handler's ``on_pause`` is called.
        """
        if self._is_paused or self._is_closing:
            return self.write(frame)
        return self._write_batch.add(self, frame)

    def resume_write(self, frame: bytes, sent: int) -> None:
        """See :class:`fanout.GroupSocket`."""
        if sent < 0 or self._transport.is_closing():
            self.abort()
        else:
            # A view, not a copy: the rest of one frame may be pending for thousands of sockets.
            self._transport.write(memoryview(frame)[sent:])

    def close(self, code: int, reason: str = "") -> None:
        """Send a close frame, and wait at most ``CLOSE_HANDSHAKE_S`` for the peer's.

        Frames that were written before are sent first. Messages are not received any more.

        Args:
            code: the close code.
            reason: truncated to the 123 bytes that a close frame can hold.
        """
        if not self._is_closing and not self._transport.is_closing():
            self._send_close(code, reason)

    def abort(self) -> None:
        """Close immediately, without a close frame."""
        self._is_closing = True
        self._leave_group()
        reset(self._transport)

    def _handle_slice(self, data: bytes, start: int) -> bool:
        if self._has_failed:
            self._drop(len(data) - start)
            return False
        self._read(data[start : start + self.slice_bytes])
        return True

    def pause_writing(self) -> None:
        self._is_paused = True
        self._leave_group()
        if not self._is_closing:
            self._handler.on_pause()

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._is_closing:
            return
        if self._pending_pong:
            pong, self._pending_pong = self._pending_pong, b""
            self.write(pong)
        if not (self._is_paused or self._is_closing):
            self._handler.on_resume()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._is_closing = True
        self._unread = b""
        self._leave_group()
        self._pending_connections.remove(self)
        # The handler refers to this socket. The reference cycle would keep the buffers in memory
        # until the garbage collector runs.
        handler, self._handler = self._handler, NullHandler()
        handler.on_disconnect()

    def _read(self, data: bytes) -> None:
        decoder = self._decoder
        second = int(asyncio.get_running_loop().time())
        if second != self._second:
            self._second = second
            decoder.frames = 0
        pongs: list[bytes] = []
        frames = decoder.frames
        events = decoder.feed(data)
        if decoder.frames != frames and not self._is_closing:
            self._handler.on_activity()
        for event in events:
            if self._transport.is_closing():  # a write failed, or the handler aborted
                return
            if isinstance(event, Ping):
                pongs.append(pong_frame(event.payload))
            elif not isinstance(event, Pong):  # a pong needs no reply
                self._answer_pings(pongs)
                self._handle_event(event)
        self._answer_pings(pongs)
        if decoder.frames > self.max_frames_per_s:
            self._fail(CloseCode.RATE_LIMITED, "too many frames")

    def _answer_pings(self, pongs: list[bytes]) -> None:
        """Send the pongs in one write, so that a flood of pings does not block the event loop."""
        if pongs and self._is_paused:
            # A peer that does not read must not fill memory with pongs. Answering the latest ping
            # is enough (RFC 6455, section 5.5.3).
            self._pending_pong = pongs[-1]
        elif pongs:
            self.write(b"".join(pongs))
        pongs.clear()

    def _handle_event(self, event: str | bytes | Close | ProtocolFailure) -> None:
        if isinstance(event, (str, bytes)):
            if not self._is_closing:
                self._handler.on_message(event)
        elif isinstance(event, Close):
            self._finish_close(event)
        else:
            self._fail(event.code, event.reason)

    def _finish_close(self, close: Close) -> None:
        """Answer the peer's close frame, then close: the server closes first (section 7.1.1)."""
        if not self._is_closing:
            self._send_close(close.code)
            self._handler.on_close()
        self._transport.close()

    def _fail(self, code: int, reason: str) -> None:
        """Send a close frame for a protocol violation, and close (section 7.1.7).

        Closing a socket with unread data resets the connection, and the peer may lose the close
        frame. So only the server's half is closed, and received data is discarded until the peer
        has closed its half (section 7.1.1).
        """
        if self._has_failed or self._transport.is_closing():
            return
        self._has_failed = True
        if not self._is_closing:
            self._send_close(code, reason)
            self._handler.on_close()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # TLS cannot close one half
            self._transport.close()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > MAX_DROPPED_BYTES:
            self.abort()

    def _send_close(self, code: int | None, reason: str = "") -> None:
        self._write_batch.flush()
        self._is_closing = True
        self._leave_group()
        self._transport.write(self._response + close_frame(code, reason))
        self._response = b""
        self._pending_connections.add(self, CLOSE_HANDSHAKE_S)

    def _leave_group(self) -> None:
        if self.group is not None:
            self.group.on_pause(self)


class NullHandler:
    """Handles a WebSocket whose events are of no interest, since it is closed immediately."""

    def on_activity(self) -> None: ...

    def on_message(self, message: str | bytes) -> None: ...

    def on_pause(self) -> None: ...

    def on_resume(self) -> None: ...

    def on_close(self) -> None: ...

    def on_disconnect(self) -> None: ...


class WebSocketSink:
    """Handles a WebSocket and is the sink of its subscription."""

    __slots__ = (
        "_delivery",
        "_pending_answer",
        "_server",
        "_session",
        "_supports_control_frames",
        "_task",
        "socket",
    )  # fmt: skip

    max_joined_bytes = MAX_JOINED_BYTES

    socket: WebSocketProtocol

    def __init__(
        self,
        server: ServerState,
        session: ClientConnection,
        *,
        supports_control_frames: bool,
    ) -> None:
        self._server = server
        self._session = session
        self._delivery = session.delivery
        self._supports_control_frames = supports_control_frames
        self._task: asyncio.Task[None] | None = None
        self._pending_answer: str | None = None  # to a ping, until the socket is writable
        server.connections.add(self)
        server.idle_timeouts.touch(self)

    def start(self, after: str | None) -> None:
        self._task = self._session.start(after, self)

    @property
    def is_writable(self) -> bool:
        return self.socket.is_writable

    def send(self, entry: Entry) -> bool:
        return self.socket.write(encode_entry_frame(entry))

    def send_joined(self, entries: Sequence[Entry]) -> bool:
        return self.socket.write(b"".join([encode_entry_frame(entry) for entry in entries]))

    def send_batched(self, entry: Entry) -> bool:
        return self.socket.write_batched(encode_entry_frame(entry))

    def send_control(self, frame: ControlFrame) -> None:
        if self._supports_control_frames:
            self.socket.write(text_frame(frame.encoded().encode()))

    def close(self, code: CloseCode) -> None:
        self.socket.close(code, self._delivery.reason)
        self._server.node.sessions.close_soon(self._session)

    def abort(self) -> None:
        self.socket.abort()

    def join_group(self, group: FanoutGroup | None) -> FanoutGroup | None:
        assert isinstance(self._session, Session)  # noqa: S101 - of one room
        return self._join(group, self.socket, self._session.subscription)

    def leave_group(self) -> None:
        group = self.socket.group
        assert isinstance(group, SocketFanoutGroup)  # noqa: S101
        group.discard(self.socket)

    def join_room_group(
        self, group: FanoutGroup | None, subscription: Subscription
    ) -> GroupMember | None:
        if not isinstance(rooms := self.socket.group, SharedSocket):
            rooms = self.socket.group = SharedSocket(self.socket)
        member = rooms.create_member(subscription)
        if self._join(group, member, subscription) is None:
            return None
        rooms.members.add(member)
        return member

    def _join(
        self, group: FanoutGroup | None, member: GroupSocket, subscription: Subscription
    ) -> FanoutGroup | None:
        if self.socket.descriptor is None:
            return None
        if group is None:
            group = self._server.create_group()
        assert isinstance(group, SocketFanoutGroup)  # noqa: S101 - the sinks of a server create it
        group.add(member, subscription)
        return group

    def on_activity(self) -> None:
        self._server.idle_timeouts.touch(self)

    def on_message(self, message: str | bytes) -> None:
        answer = self._session.on_client_message(message)
        if answer is None:
            return
        if self.socket.is_writable:
            self.socket.write(text_frame(answer.encode()))
        else:
            # One answer for all pings, so that a peer that does not read cannot fill memory.
            self._pending_answer = answer

    def on_pause(self) -> None:
        self._delivery.on_write_blocked()

    def on_resume(self) -> None:
        answer, self._pending_answer = self._pending_answer, None
        if answer is None or self.socket.write(text_frame(answer.encode())):
            self._delivery.on_writable()

    def on_close(self) -> None:
        self._server.node.sessions.close_soon(self._session)

    def on_disconnect(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._server.idle_timeouts.remove(self)
        self._server.connections.discard(self)
        self._server.node.sessions.close(self._session)

    def ping(self) -> None:
        # A blocked socket needs no ping: its slow-consumer timer is running.
        if self.socket.is_writable:
            self.socket.write(_PING)

    def on_idle(self) -> None:
        self._delivery.close(CloseCode.IDLE_TIMEOUT)

    def shutdown(self) -> None:
        """Close with ``DRAINING``. The server stops."""
        self._delivery.close(CloseCode.DRAINING)


MAX_MESSAGE_BYTES = 16 * MAX_CLIENT_TEXT_BYTES
"""Largest WebSocket message that is received. One over the protocol's own limit closes with 4540;
one over this limit closes with 1009."""


async def upgrade_to_websocket(
    server: ServerState,
    transport: asyncio.Transport,
    descriptor: int | None,
    request: HttpRequest,
    rest: bytes,
    on_accepted: Callable[[], None],
) -> None:
    """Authorize a WebSocket handshake, answer it, and start the subscription.

    Args:
        server: the state that the connections of the server share.
        transport: the connection.
        descriptor: see :class:`WebSocketProtocol`.
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
            socket = _switch_protocols(server, transport, descriptor, request, NullHandler())
            socket.close(error.code, error.reason)
        return
    if transport.is_closing():
        node.sessions.close(opened.session)
        return
    sink = WebSocketSink(
        server, opened.session, supports_control_frames=request.supports_control_frames
    )
    on_accepted()
    sink.socket = socket = _switch_protocols(server, transport, descriptor, request, sink)
    sink.start(opened.after)
    socket.flush_response()
    if rest:
        socket.data_received(rest)


def _switch_protocols(
    server: ServerState,
    transport: asyncio.Transport,
    descriptor: int | None,
    request: HttpRequest,
    handler: WebSocketHandler,
) -> WebSocketProtocol:
    accept = accept_key(request.headers["sec-websocket-key"])
    socket = WebSocketProtocol(
        transport,
        handler,
        pending_connections=server.pending_connections,
        write_batch=server.write_batch,
        pacer=server.pacer,
        max_message_bytes=MAX_MESSAGE_BYTES,
        descriptor=descriptor,
        response=encode_switching_protocols(accept, request.chosen_subprotocol),
    )
    transport.set_protocol(socket)
    transport.resume_reading()
    return socket
