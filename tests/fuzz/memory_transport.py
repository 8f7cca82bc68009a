"""A connection without a socket, on an event loop whose clock can be moved."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from .target import require

HIGH_WATER_BYTES = 64 * 1024  # asyncio's own
SKIPS = 5


class Loop(asyncio.SelectorEventLoop):
    """asyncio's loop, stepped by hand.

    Attributes:
        problems: what the exception handler was called with.
    """

    def __init__(self) -> None:
        super().__init__()
        self._skipped_s = 0.0
        self._readied = 0
        self.problems: list[dict[str, Any]] = []
        self.set_exception_handler(lambda _, context: self.problems.append(context))

    def time(self) -> float:
        return super().time() + self._skipped_s

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        self._readied += 1
        return super().call_soon(callback, *args, context=context)

    def settle(self) -> None:
        """Run until nothing is ready any more. What waits for a timer goes on waiting."""
        for _ in range(10_000):
            before = self._readied
            super().call_soon(self.stop)
            self.run_forever()
            if self._readied == before:
                return
        require(False, "the loop comes to rest")

    def run(self, function: Callable[..., object], *args: object) -> None:
        """Call a function from within the loop, and let all settle that it brings about.

        Raises:
            Exception: what it raised.
        """
        errors: list[Exception] = []

        def call() -> None:
            try:
                function(*args)
            except Exception as error:  # noqa: BLE001 - raised below
                errors.append(error)

        self.call_soon(call)
        self.settle()
        for error in errors:
            raise error

    def skip(self, duration_s: float) -> None:
        """Let time pass, in steps: what a timer brings about may start another."""
        for _ in range(SKIPS):
            self._skipped_s += duration_s / SKIPS
            self.settle()


class MemoryTransport(asyncio.Transport):
    """Behaves as asyncio's own for sockets, errors included.

    Attributes:
        output: what the peer has read.
        is_reading_peer: whether the peer reads; what it does not take is buffered here.
        peak_bytes: the most that was ever buffered.
        is_gone: ``connection_lost`` was called.
        is_aborted: our side has reset the connection.
    """

    def __init__(self, loop: Loop, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("127.0.0.1", 50_000)})
        self._loop = loop
        self._protocol = protocol
        self._input: deque[bytes] = deque()
        self._buffer = bytearray()
        self._high = HIGH_WATER_BYTES
        self._low = HIGH_WATER_BYTES // 4
        self._is_paused = False  # our protocol reads nothing
        self._is_blocked = False  # our protocol was asked to pause writing
        self._is_closing = False
        self._has_eof = False
        self.output = bytearray()
        self.is_reading_peer = True
        self.peak_bytes = 0
        self.is_gone = False
        self.is_aborted = False
        protocol.connection_made(self)

    # ---- the peer

    def feed(self, data: bytes) -> None:
        """The peer sends."""
        if not self._is_closing:
            self._input.append(data)
            self._deliver()

    def end_input(self) -> None:
        """The peer closes its half. asyncio closes the transport unless the protocol keeps it."""
        if not self._is_closing and not self._protocol.eof_received():
            self.close()

    def read_on(self) -> None:
        """The peer reads from now on."""
        self.is_reading_peer = True
        self._flush()

    def drop(self) -> None:
        """The peer resets the connection."""
        self.abort()

    def _deliver(self) -> None:
        while self._input and not (self._is_paused or self._is_closing):
            self._protocol.data_received(self._input.popleft())

    def _flush(self) -> None:
        self.output += self._buffer
        self._buffer.clear()
        if self._is_blocked and not self.is_gone:
            self._is_blocked = False
            self._protocol.resume_writing()
        if self._is_closing:
            self._lose()

    def _lose(self) -> None:
        if not self.is_gone:
            self.is_gone = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    # ---- asyncio.Transport

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def is_closing(self) -> bool:
        return self._is_closing

    def is_reading(self) -> bool:
        return not (self._is_paused or self._is_closing)

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        if self._is_paused and not self._is_closing:
            self._is_paused = False
            self._loop.call_soon(self._deliver)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def can_write_eof(self) -> bool:
        return True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._has_eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not data or self.is_gone:
            return
        if self.is_reading_peer:
            self.output += data
            return
        self._buffer += data
        self.peak_bytes = max(self.peak_bytes, len(self._buffer))
        if len(self._buffer) > self._high and not self._is_blocked:
            self._is_blocked = True
            self._protocol.pause_writing()

    def write_eof(self) -> None:
        if not self._is_closing:
            self._has_eof = True

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self._buffer:
                self._lose()

    def abort(self) -> None:
        self.is_aborted = True
        self._is_closing = True
        self._buffer.clear()
        self._lose()
