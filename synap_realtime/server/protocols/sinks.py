"""Sinks of subscriptions: WebSockets and event streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ...protocol.control import CloseCode, ControlFrame
from ..app import Node
from ..rooms.hub import FanoutGroup
from ..rooms.sessions import Session
from ..rooms.subscription import Subscription, UnbatchedSink
from ..sse import COMMENT, HEARTBEAT_S, encode_event, encode_retry
from ..stores.base import Entry, StoreUnavailableError
from ..ws_codec import ping_frame, text_frame
from .descriptors import reset
from .eager import run_eagerly
from .fanout import SocketFanoutGroup
from .frames import encode_entry_frame
from .keepalive import IdleTimeouts
from .pending_connections import Closable
from .websocket import WebSocketProtocol

PING = ping_frame()


class WebSocketSink:
    """Handles a WebSocket and is the sink of its subscription."""

    __slots__ = (
        "_connections",
        "_keepalive",
        "_node",
        "_pending_answer",
        "_session",
        "_start",
        "_subscription",
        "_supports_control_frames",
        "create_group",
        "socket",
    )  # fmt: skip

    socket: WebSocketProtocol

    def __init__(
        self,
        session: Session,
        node: Node,
        keepalive: IdleTimeouts,
        connections: set[Closable],
        create_group: Callable[[], SocketFanoutGroup],
        *,
        supports_control_frames: bool,
    ) -> None:
        self.create_group = create_group
        self._session = session
        self._subscription = session.subscription
        self._node = node
        self._keepalive = keepalive
        self._connections = connections
        self._supports_control_frames = supports_control_frames
        self._start: asyncio.Task[None] | None = None
        self._pending_answer: str | None = None  # to a ping, until the socket is writable
        connections.add(self)
        keepalive.touch(self)

    def start(self, after: str | None) -> None:
        loop = asyncio.get_running_loop()
        self._start = run_eagerly(loop, _start(self._subscription, after, self))

    @property
    def is_writable(self) -> bool:
        return self.socket.is_writable

    def send(self, entry: Entry) -> bool:
        return self.socket.write(encode_entry_frame(entry))

    def send_batched(self, entry: Entry) -> bool:
        return self.socket.write_batched(encode_entry_frame(entry))

    def send_control(self, frame: ControlFrame) -> None:
        if self._supports_control_frames:
            self.socket.write(text_frame(frame.encoded().encode()))

    def close(self, code: CloseCode) -> None:
        self.socket.close(code, self._subscription.reason)
        _close_session_soon(self._node, self._session)

    def abort(self) -> None:
        self.socket.abort()

    @property
    def can_group(self) -> bool:
        return self.socket.descriptor is not None

    def join_group(self, group: FanoutGroup) -> None:
        assert isinstance(group, SocketFanoutGroup)  # noqa: S101 - made by create_group
        group.add(self.socket, self._subscription)

    def leave_group(self) -> None:
        group = self.socket.group
        assert isinstance(group, SocketFanoutGroup)  # noqa: S101
        group.discard(self.socket)

    def on_activity(self) -> None:
        self._keepalive.touch(self)

    def on_message(self, message: str | bytes) -> None:
        answer = self._subscription.on_client_message(message)
        if answer is None:
            return
        if self.socket.is_writable:
            self.socket.write(text_frame(answer.encode()))
        else:
            # One answer for all pings, so that a peer that does not read cannot fill memory.
            self._pending_answer = answer

    def on_pause(self) -> None:
        self._subscription.on_write_blocked()

    def on_resume(self) -> None:
        answer, self._pending_answer = self._pending_answer, None
        if answer is None or self.socket.write(text_frame(answer.encode())):
            self._subscription.on_writable()

    def on_close(self) -> None:
        _close_session_soon(self._node, self._session)

    def on_disconnect(self) -> None:
        if self._start is not None:
            self._start.cancel()
        self._keepalive.remove(self)
        self._connections.discard(self)
        self._node.close_session(self._session)

    def ping(self) -> None:
        # A blocked socket needs no ping: its slow-consumer timer is running.
        if self.socket.is_writable:
            self.socket.write(PING)

    def on_idle(self) -> None:
        self._subscription.close(CloseCode.IDLE_TIMEOUT)

    def shutdown(self) -> None:
        """Close with ``DRAINING``. The server stops."""
        self._subscription.close(CloseCode.DRAINING)


class SseSink(UnbatchedSink):
    """Writes an event stream, the body of an HTTP response."""

    def __init__(
        self,
        transport: asyncio.Transport,
        session: Session,
        node: Node,
        *,
        chunked: bool,
        is_writable: Callable[[], bool],
        on_end: Callable[[], None],
    ) -> None:
        """
        Args:
            transport: the connection, after the response's head was written.
            session: the session of the subscriber.
            node: closes the session.
            chunked: the body is chunked; otherwise it ends with the connection.
            is_writable: whether the transport is not paused.
            on_end: called when the body was written to its end.
        """
        self._transport = transport
        self._session = session
        self._node = node
        self._chunked = chunked
        self._is_writable = is_writable
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, after: str | None) -> None:
        self._write(encode_retry())
        self._schedule_heartbeat()
        loop = asyncio.get_running_loop()
        self._task = run_eagerly(loop, _start(self._session.subscription, after, self))

    @property
    def is_writable(self) -> bool:
        return self._is_writable()

    def send(self, entry: Entry) -> bool:
        self._write(encode_event(entry))
        return self._is_writable()

    send_batched = send

    def send_control(self, frame: ControlFrame) -> None:
        self._write(encode_event(frame))

    def close(self, code: CloseCode) -> None:
        is_writable = self._is_writable()
        self._close()
        if is_writable and code is not CloseCode.SLOW_CONSUMER:
            if self._chunked and not self._transport.is_closing():
                self._transport.write(b"0\r\n\r\n")
            self._on_end()
        else:  # the peer does not read, so the end of the body would stay in the buffer
            reset(self._transport)

    def on_resume(self) -> None:
        self._session.subscription.on_writable()

    def on_disconnect(self) -> None:
        """Stop: the connection has ended."""
        if self._task is not None:
            self._task.cancel()
        self._close()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        _close_session_soon(self._node, self._session)

    def _write(self, text: bytes) -> None:
        # After a failed write, the event loop closes a socket before it calls connection_lost().
        if not self._transport.is_closing():
            chunk = b"%x\r\n%b\r\n" % (len(text), text) if self._chunked else text
            self._transport.write(chunk)

    def _schedule_heartbeat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._heartbeat)

    def _heartbeat(self) -> None:
        if self.is_writable:
            self._write(COMMENT)
        self._schedule_heartbeat()


def _close_session_soon(node: Node, session: Session) -> None:
    """Unsubscribe without waiting for the peer to close the connection.

    Not immediately, as a broadcast to the room may be in progress.
    """
    asyncio.get_running_loop().call_soon(node.close_session, session)


async def _start(
    subscription: Subscription, after: str | None, sink: WebSocketSink | SseSink
) -> None:
    try:
        await subscription.run(after, sink)
    except StoreUnavailableError:
        subscription.close(CloseCode.DRAINING)
