"""Server-Sent Events: their encoding, and the sink of a subscription.

See PROTOCOL.md, "Server-Sent Events".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from ...protocol.control import CloseCode, ControlFrame
from ..http.subscribe import SSE_RETRY_MS
from ..rooms.backlog import MAX_JOINED_BYTES, UnbatchedSink
from ..rooms.registry import SessionRegistry
from ..rooms.sessions import ClientConnection
from ..stores.base import Entry
from .requests import LAST_CHUNK, encode_chunk
from .writes import reset

HEARTBEAT_S = 15.0
"""The interval of comment lines. Proxies close a stream that is idle for longer."""

COMMENT = b":\n\n"


def encode_retry() -> bytes:
    """Return the beginning of a stream, which sets the reconnect delay of browsers."""
    return f"retry: {SSE_RETRY_MS}\n\n".encode()


def encode_event(message: Entry | ControlFrame, position: str | None = None) -> bytes:
    """Encode a notification or a control frame as one event.

    Args:
        position: the id of the event; None: the cursor.
    """
    if isinstance(message, Entry):
        return f"id: {position or message.cursor}\ndata: {message.text}\n\n".encode()
    fields = ""
    if cursor := message.data.get("cursor"):
        fields += f"id: {position or cursor}\n"
    if retry_ms := message.data.get("reconnectAfterMs"):
        fields += f"retry: {retry_ms}\n"
    data = json.dumps(message.data, separators=(",", ":"))
    return f"event: {message.type}\n{fields}data: {data}\n\n".encode()


class SseSink(UnbatchedSink):
    """Writes an event stream, the body of an HTTP response."""

    max_joined_bytes = MAX_JOINED_BYTES

    def __init__(
        self,
        transport: asyncio.Transport,
        session: ClientConnection,
        sessions: SessionRegistry,
        *,
        chunked: bool,
        is_writable: Callable[[], bool],
        on_end: Callable[[], None],
    ) -> None:
        """
        Args:
            transport: the connection, after the response's head was written.
            session: the session of the subscriber.
            sessions: closes the session.
            chunked: the body is chunked; otherwise it ends with the connection.
            is_writable: whether the transport is not paused.
            on_end: called when the body was written to its end.
        """
        self._transport = transport
        self._session = session
        self._sessions = sessions
        self._chunked = chunked
        self._is_writable = is_writable
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, after: str | None) -> None:
        self._write(encode_retry())
        self._schedule_heartbeat()
        self._task = self._session.start(after, self)

    @property
    def is_writable(self) -> bool:
        return self._is_writable()

    def send(self, entry: Entry) -> bool:
        self._write(encode_event(entry, self._session.position))
        return self._is_writable()

    send_batched = send

    def send_joined(self, entries: Sequence[Entry]) -> bool:
        self._write(b"".join([encode_event(entry) for entry in entries]))
        return self._is_writable()

    def send_control(self, frame: ControlFrame) -> None:
        self._write(encode_event(frame, self._session.position))

    def close(self, code: CloseCode) -> None:
        is_writable = self._is_writable()
        self._close()
        if is_writable and code is not CloseCode.SLOW_CONSUMER:
            if self._chunked and not self._transport.is_closing():
                self._transport.write(LAST_CHUNK)
            self._on_end()
        else:  # the peer does not read, so the end of the body would stay in the buffer
            reset(self._transport)

    def on_resume(self) -> None:
        self._session.delivery.on_writable()

    def on_disconnect(self) -> None:
        """Stop: the connection has ended."""
        if self._task is not None:
            self._task.cancel()
        self._close()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._sessions.close_soon(self._session)

    def _write(self, text: bytes) -> None:
        # After a failed write, the event loop closes a socket before it calls connection_lost().
        if not self._transport.is_closing():
            self._transport.write(encode_chunk(text) if self._chunked else text)

    def _schedule_heartbeat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._heartbeat)

    def _heartbeat(self) -> None:
        if self.is_writable:
            self._write(COMMENT)
        self._schedule_heartbeat()
