"""Flow control: read no more than is needed, and measure what clients have not read.

:class:`PacedProtocol` is for what is received, and :class:`ResponseFlow` for what is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar, Protocol

from ..auth.claims import Claims
from ..resources.byte_budget import MIN_UNREAD_BYTES, ByteBudget, caller_of
from ..resources.pacing import Pacer
from .writes import WriteBatch, reset, unsent_bytes, write_direct

UNREAD_CHECK_INTERVAL_S = 0.5
"""Time between two measurements of the responses that clients have not read."""

READER_TIMEOUT_S = 20.0
"""Time between two checks of a pending response."""

MIN_READ_BYTES = 64 * 1024
"""A peer must read at least this much of a pending response in each ``READER_TIMEOUT_S``."""


class PacedProtocol(asyncio.Protocol):
    """Base of protocols that handle received data in slices; see :class:`Pacer`.

    The transport is not read while data waits for its share of the event loop, nor after
    :meth:`pause_reading`.

    Attributes:
        immediate_read_bytes: smaller reads are handled without waiting for a share of the loop.
        slice_bytes: how much is handled in a row.
    """

    __slots__ = ("_is_reading_paused", "_pacer", "_read_to", "_transport", "_unread")

    immediate_read_bytes: ClassVar[int]
    slice_bytes: ClassVar[int]

    _transport: asyncio.Transport

    def __init__(self, pacer: Pacer) -> None:
        """
        Args:
            pacer: divides the event loop's time between all connections.
        """
        self._pacer = pacer
        self._unread = b""  # received data that waits for its share of the event loop
        self._read_to = 0  # how much of it was handled
        self._is_reading_paused = False

    def data_received(self, data: bytes) -> None:
        if self._unread:  # TLS delivers decrypted data even while reading is paused
            self._unread = self._unread[self._read_to :] + data
            self._read_to = 0
        elif len(data) <= self.immediate_read_bytes or self._has_time():
            self._handle_data(data, 0)
        else:
            self._postpone(data, 0)
            self._on_data_handled(0)

    def pause_reading(self) -> None:
        """Read nothing more until :meth:`resume_reading`."""
        if not self._is_reading_paused and not self._transport.is_closing():
            self._is_reading_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again, as soon as no received data waits."""
        if self._is_reading_paused:
            self._is_reading_paused = False
            if not self._unread:
                self._transport.resume_reading()

    def _handle_slice(self, data: bytes, start: int) -> bool:
        """Handle one slice, which begins at ``start``. Return whether to go on with the next."""
        raise NotImplementedError

    def _on_data_handled(self, size: int) -> None:
        """Called when all data was handled, or the rest of it waits.

        Args:
            size: the number of bytes that were handled.
        """

    def _has_time(self) -> bool:
        """Return whether this connection may use more of the loop iteration; see :class:`Pacer`."""
        return self._pacer.has_time()

    def _handle_data(self, data: bytes, start: int) -> None:
        """Handle at least one slice, and more while this loop iteration has time."""
        begin, size = start, len(data)
        while start < size:
            if self._transport.is_closing() or not self._handle_slice(data, start):
                return
            start += self.slice_bytes
            if start < size and not self._has_time():
                self._postpone(data, start)
                break
        self._on_data_handled(min(start, size) - begin)

    def _postpone(self, data: bytes, start: int) -> None:
        if not self._transport.is_closing():
            self._unread, self._read_to = data, start
            self._transport.pause_reading()
            self._pacer.add(self._handle_unread, len(data))

    def _handle_unread(self) -> None:
        data, self._unread = self._unread, b""
        if data and not self._transport.is_closing():
            if not self._is_reading_paused:
                self._transport.resume_reading()
            self._handle_data(data, self._read_to)


class Writer(Protocol):
    """Writes responses to a connection."""

    def charge_unread(self) -> bool:
        """Charge the bytes that the peer has not read yet. Return False if there are none."""
        ...


class UnreadResponses:
    """Polls how much of each connection's responses is unread, until everything was read.

    Polling is needed because no event reports that the kernel's send buffer has become empty. A
    peer may leave a response in it for as long as a connection may be idle.
    """

    def __init__(self) -> None:
        self._writers: set[Writer] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, writer: Writer) -> None:
        """Track a connection after it wrote a response, or after its peer stopped reading."""
        if writer.charge_unread():
            self._writers.add(writer)
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(UNREAD_CHECK_INTERVAL_S, self._check)

    def discard(self, writer: Writer) -> None:
        """Track a connection no longer."""
        self._writers.discard(writer)

    def close(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = None
        for writer in tuple(self._writers):
            if not writer.charge_unread():
                self._writers.discard(writer)
        if self._writers:
            self._timer = asyncio.get_running_loop().call_later(
                UNREAD_CHECK_INTERVAL_S, self._check
            )


class WriteStallGuard:
    """Watches the progress of one peer while a response is pending.

    A peer that stops reading is aborted, so that it cannot pin memory.
    """

    __slots__ = ("_left", "_timer")

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0

    def watch(self, transport: asyncio.Transport, on_stall: Callable[[], None]) -> None:
        """Start watching.

        Args:
            transport: the connection whose write buffer is watched.
            on_stall: called once if the peer reads too slowly.
        """
        self._left = transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(READER_TIMEOUT_S, self._check, transport, on_stall)

    def stop(self) -> None:
        """Stop watching: the response was read, or the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, transport: asyncio.Transport, on_stall: Callable[[], None]) -> None:
        if transport.get_write_buffer_size() > self._left - MIN_READ_BYTES:
            on_stall()
        else:
            self.watch(transport, on_stall)


class ResponseFlow:
    """Writes the responses of one connection, and charges what its client does not read.

    Attributes:
        is_writable: whether the transport is not paused.
    """

    __slots__ = (
        "_address",
        "_budget",
        "_claims",
        "_descriptor",
        "_resumed",
        "_stall",
        "_transport",
        "_unmeasured",
        "_unread",
        "_write_batch",
        "is_writable",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        address: str | None,
        budget: ByteBudget,
        unread: UnreadResponses,
        write_batch: WriteBatch,
        descriptor: int | None,
    ) -> None:
        """
        Args:
            transport: the connection. Its write buffer limits are such that it pauses as soon as
                it buffers anything.
            address: of the client, charged until a response is written.
            budget: of unread responses.
            unread: measures the responses of all connections.
            write_batch: collects the writes of this event-loop iteration, of all sockets.
            descriptor: of the socket; None if what is written has to pass the transport (TLS).
        """
        self.is_writable = True
        self._transport = transport
        self._descriptor = descriptor
        self._write_batch = write_batch
        self._claims: Claims | None = None
        self._address = address
        self._budget = budget
        self._unread = unread
        self._unmeasured = 0  # written since the unread bytes were last measured
        self._stall: WriteStallGuard | None = None  # while the transport is paused
        self._resumed: asyncio.Future[None] | None = None  # while a chunked response is blocked

    def pause(self) -> None:
        """The transport is paused, until :meth:`resume`."""
        self.is_writable = False
        self._stall = WriteStallGuard()
        self._stall.watch(self._transport, self._abort)
        self._unread.add(self)

    def resume(self) -> None:
        """The transport is writable again."""
        self.is_writable = True
        self._stop_watching()
        self._wake()

    def write(self, data: bytes, claims: Claims | None, address: str | None) -> None:
        """Write a part of a response. Charge it to its caller if it may stay unread for long."""
        self._write_batch.flush()
        self._claims = claims
        self._address = address
        self.write_now(data)

    def write_batched(self, data: bytes, claims: Claims | None, address: str | None) -> None:
        """Write a response at the end of this event-loop iteration, or before the next write."""
        self._claims = claims
        self._address = address
        self._write_batch.add_response(self, data)

    def write_now(self, data: bytes) -> bool:
        """Write before what the batch holds. For the batch and :meth:`write` only."""
        transport = self._transport
        if transport.is_closing():
            return False
        if self._descriptor is None or not self.is_writable:
            transport.write(data)
        elif not write_direct(transport, self._descriptor, data):
            self._abort()
            return False
        self._unmeasured += len(data)
        if self._unmeasured >= MIN_UNREAD_BYTES:
            self._unmeasured = 0
            self._unread.add(self)
        return self.is_writable

    async def wait_for_change(self) -> None:
        """Wait until the transport is writable again, or the connection has ended."""
        self._resumed = asyncio.get_running_loop().create_future()
        await self._resumed

    def close(self) -> None:
        """Stop, because the connection has ended or is a WebSocket now."""
        self._stop_watching()
        self._budget.release(self)
        self._unread.discard(self)
        self._wake()

    def charge_unread(self) -> bool:
        """See :class:`Writer`."""
        transport = self._transport
        if transport.is_closing():
            return False
        size = transport.get_write_buffer_size() + unsent_bytes(transport)
        self._budget.hold(self, caller_of(self._claims, self._address), size)
        return size > 0

    def over_budget(self) -> None:
        """See :class:`byte_budget.Holder`."""
        self._abort()

    def _abort(self) -> None:
        reset(self._transport)

    def _stop_watching(self) -> None:
        if self._stall is not None:
            self._stall.stop()
            self._stall = None

    def _wake(self) -> None:
        resumed, self._resumed = self._resumed, None
        if resumed is not None and not resumed.done():
            resumed.set_result(None)
