"""A WebSocket after its handshake: one socket on one side, a handler on the other.

See PROTOCOL.md, "WebSocket", and RFC 6455, sections 5 to 7.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar, Protocol

from ...protocol.control import CloseCode
from ..pacing import Pacer
from ..ws_codec import Close, Decoder, Ping, Pong, ProtocolFailure, close_frame, pong_frame
from .descriptors import raw_fd, reset, write_direct
from .pending_connections import PendingConnections
from .writes import WriteBatch

CLOSE_HANDSHAKE_S = 10.0
"""After its last word, a connection waits so long for the peer to take it, and to answer."""

MAX_FRAMES_PER_S = 1000
"""Of one WebSocket, with pings, pongs and fragments, which are no messages."""

MAX_DROPPED_BYTES = 1024 * 1024
"""So much of what a peer goes on saying after it was failed is taken, so that it hears why."""

_IMMEDIATE_READ_BYTES = 256  # so much is always read as it comes
_SLICE_BYTES = 1024  # some 170 frames: between slices it is seen whether there were too many


class WebSocketHandler(Protocol):
    """Who listens to one WebSocket. It is called from the loop, and must not wait."""

    def on_activity(self) -> None:
        """A frame of any kind has begun; :meth:`on_message` follows if it completes a message."""

    def on_message(self, message: str | bytes) -> None:
        """A whole message: text is ``str``, binary is ``bytes``."""

    def on_pause(self) -> None:
        """The peer takes no more for now."""

    def on_resume(self) -> None:
        """The peer has taken enough: what waited may be written again."""

    def on_close(self) -> None:
        """The peer has said its last word, or was told ours for what it did: nothing is heard or
        told any more, and :meth:`on_disconnect` will follow."""

    def on_disconnect(self) -> None:
        """The connection is no more: once, and nothing after it."""


class WriteGroup(Protocol):
    """WebSockets that are written to together, past their transports."""

    def on_pause(self, socket: WebSocketProtocol) -> None:
        """Nothing may be written past its transport any more: when this returns, it has left."""


class WebSocketProtocol(asyncio.Protocol):
    """Reads and writes one WebSocket, and brings hostile peers to an end.

    An idle one has no timer, no task and no buffer.

    Who makes it has done the handshake: it has written the 101, and calls
    ``transport.set_protocol(socket)`` and then ``socket.data_received(rest)`` with what came behind
    the head.

    Attributes:
        descriptor: of its socket, if what is written there is what the peer gets. It is open until
            :meth:`connection_lost` has returned.
        company: as one of which it is written to; it is there only while :attr:`is_writable`.
        place: the company's own.
    """

    __slots__ = (
        "_decoder",
        "_dropped",
        "_half_open",
        "_handler",
        "_has_failed",
        "_is_closing",
        "_is_paused",
        "_pacer",
        "_pending_pong",
        "_read_to",
        "_second",
        "_transport",
        "_unread",
        "_write_batch",
        "descriptor",
        "group",
        "index",
    )

    max_frames_per_s: ClassVar[int] = MAX_FRAMES_PER_S

    def __init__(
        self,
        transport: asyncio.Transport,
        handler: WebSocketHandler,
        *,
        half_open: PendingConnections,
        write_batch: WriteBatch,
        pacer: Pacer,
        max_message_bytes: int,
    ) -> None:
        """
        Args:
            pacer: divides the loop's time between all connections.
            turn: what was written soon, of all sockets.
            half_open: it is there from its last word until its peer has gone.
            max_message_bytes: a longer one is answered with 1009.
        """
        self.descriptor = raw_fd(transport)
        self.group: WriteGroup | None = None
        self.index = -1
        # Whatever waits in the transport is paused for. (With 0, TLS would pause at nothing.)
        transport.set_write_buffer_limits(high=0 if self.descriptor is not None else 1)
        self._transport = transport
        self._handler = handler
        self._half_open = half_open
        self._write_batch = write_batch
        self._pacer = pacer
        self._pending_pong = b""  # for the latest ping that came while the peer did not read
        self._unread = b""  # what was received and waits for its share of the loop
        self._read_to = 0  # of it, what was read already
        self._decoder = Decoder(max_message_bytes)
        self._second = 0
        self._dropped = 0
        self._is_paused = transport.get_write_buffer_size() > 0
        self._is_closing = False  # a close frame was written, or it was cut
        self._has_failed = False  # what the peer says is dropped

    @property
    def is_writable(self) -> bool:
        """False while the peer does not take what was written, and from the last word on."""
        return not (self._is_paused or self._is_closing)

    def write(self, frame: bytes) -> bool:
        """Write a whole frame; the transport gets what the peer does not take at once.

        What :attr:`is_writable` says is for the caller to look at: the frame is taken anyway. After
        :meth:`close` it is dropped.

        Returns:
            :attr:`is_writable`, after it.
        """
        self._write_batch.flush()
        return self.write_now(frame)

    def write_now(self, frame: bytes) -> bool:
        """The same, before what was to be written soon: for the turn, and for :meth:`write`."""
        transport = self._transport
        # A loop closes a socket inside a write that fails, and says so later.
        if self._is_closing or transport.is_closing():
            return False
        if self.descriptor is None or self._is_paused:
            transport.write(frame)
            return not self._is_paused
        if not write_direct(transport, self.descriptor, frame):
            self.abort()
        return self.is_writable

    def write_batched(self, frame: bytes) -> bool:
        """Write a whole frame at the end of this turn of the loop, and before anything else that is
        written meanwhile.

        Returns:
            :attr:`is_writable`, as far as is known. If it is not any more after it, the handler
            hears so.
        """
        if self._is_paused or self._is_closing:
            return self.write(frame)
        self._write_batch.add(self, frame)
        return True

    def resume_write(self, frame: bytes, sent: int) -> None:
        """Hand the transport what the company could not write.

        Args:
            sent: so much of the frame was written; -1: the peer has gone.
        """
        if sent < 0 or self._transport.is_closing():
            self.abort()
        else:
            # Not a copy for each: the rest of one frame may wait for thousands.
            self._transport.write(memoryview(frame)[sent:])

    def close(self, code: int, reason: str = "") -> None:
        """Say the last word, and wait for the peer's for at most ``CLOSE_HANDSHAKE_S``.

        What was written before goes first. Nothing is heard any more.

        Args:
            reason: is cut to the 123 bytes that a close frame has for it.
        """
        if not self._is_closing and not self._transport.is_closing():
            self._send_close(code, reason)

    def abort(self) -> None:
        """Cut the connection at once."""
        self._is_closing = True
        self._leave_group()
        reset(self._transport)

    def data_received(self, data: bytes) -> None:
        if self._unread:  # TLS gives what it has decrypted, although reading is paused
            self._unread = self._unread[self._read_to :] + data
            self._read_to = 0
        elif len(data) <= _IMMEDIATE_READ_BYTES or self._pacer.has_time():
            self._read_slices(data, 0)
        else:
            self._wait_to_read(data, 0)

    def _read_slices(self, data: bytes, start: int) -> None:
        """Read at least one slice, and more as long as this loop iteration has time."""
        size = len(data)
        while not self._transport.is_closing():
            if self._has_failed:
                self._drop(size - start)
                return
            self._read(data[start : start + _SLICE_BYTES])
            start += _SLICE_BYTES
            if start >= size:
                return
            if not self._pacer.has_time():
                self._wait_to_read(data, start)
                return

    def _wait_to_read(self, data: bytes, start: int) -> None:
        if not self._transport.is_closing():
            self._unread, self._read_to = data, start
            self._transport.pause_reading()
            self._pacer.add(self._read_on, len(data))

    def _read_on(self) -> None:
        data, self._unread = self._unread, b""
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._read_slices(data, self._read_to)

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
        self._half_open.remove(self)
        # The handler knows this socket: a reference cycle would keep half a message in memory until
        # the garbage collector runs.
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
            if self._transport.is_closing():  # a write failed, or the handler has cut it
                return
            if isinstance(event, Ping):
                pongs.append(pong_frame(event.payload))
            elif not isinstance(event, Pong):  # which needs no answer
                self._answer_pings(pongs)
                self._take(event)
        self._answer_pings(pongs)
        if decoder.frames > self.max_frames_per_s:
            self._fail(CloseCode.RATE_LIMITED, "too many frames")

    def _answer_pings(self, pongs: list[bytes]) -> None:
        """In one write: for a flood of pings, a write for each would keep all others waiting."""
        if pongs and self._is_paused:
            # A peer that does not read must not fill memory with pongs. One answer to the latest
            # ping is enough (RFC 6455, section 5.5.3).
            self._pending_pong = pongs[-1]
        elif pongs:
            self.write(b"".join(pongs))
        pongs.clear()

    def _take(self, event: str | bytes | Close | ProtocolFailure) -> None:
        if isinstance(event, (str, bytes)):
            if not self._is_closing:
                self._handler.on_message(event)
        elif isinstance(event, Close):
            self._answer(event)
        else:
            self._fail(event.code, event.reason)

    def _answer(self, close: Close) -> None:
        """Both sides have said their last word: the server closes first (section 7.1.1)."""
        if not self._is_closing:
            self._send_close(close.code)
            self._handler.on_close()
        self._transport.close()

    def _fail(self, code: int, reason: str) -> None:
        """Say why, and close (section 7.1.7).

        With bytes unread, closing would reset the connection, and the peer might not hear why. So
        only the server's half is closed, and what comes is dropped until the peer has closed its
        half (section 7.1.1).
        """
        if self._has_failed or self._transport.is_closing():
            return
        self._has_failed = True
        if not self._is_closing:
            self._send_close(code, reason)
            self._handler.on_close()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:  # TLS knows no halves
            self._transport.close()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > MAX_DROPPED_BYTES:
            self.abort()

    def _send_close(self, code: int | None, reason: str = "") -> None:
        self._write_batch.flush()
        self._is_closing = True
        self._leave_group()
        self._transport.write(close_frame(code, reason))
        self._half_open.add(self, CLOSE_HANDSHAKE_S)

    def _leave_group(self) -> None:
        if self.group is not None:
            self.group.on_pause(self)


class NullHandler:
    """The handler of a WebSocket that is closed at once."""

    def on_activity(self) -> None: ...

    def on_message(self, message: str | bytes) -> None: ...

    def on_pause(self) -> None: ...

    def on_resume(self) -> None: ...

    def on_close(self) -> None: ...

    def on_disconnect(self) -> None: ...
