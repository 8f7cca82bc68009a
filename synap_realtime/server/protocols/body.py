"""Receive the body of a request. See RFC 9112, section 6."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable

from ..messages import MAX_BODY_BYTES, RequestError, bad_request, body_too_large, body_too_slow
from .responses import CONTINUE

AHEAD_BYTES = 64 * 1024
"""The bytes that are received before they are needed. Above this, reading pauses."""


def incomplete_body() -> RequestError:
    return bad_request("Incomplete body", "client disconnected before the body was complete")


class BodyState(enum.Enum):
    """How far a body has been received.

    A body that is not complete when its request is answered is discarded, so that the client
    receives the response.
    """

    RECEIVING = enum.auto()
    DISCARDING = enum.auto()
    COMPLETE = enum.auto()


# In Python 3.11, each access to a member by its class costs as much as a call.
RECEIVING, DISCARDING, COMPLETE = BodyState


class RequestBody:
    """A body, as far as it has been received.

    Attributes:
        content: the bytes that are held: none if the body is too large, or discarded.
        size: the number of bytes that were received, including discarded ones.
    """

    __slots__ = ("_error", "_waiter", "content", "size", "state")

    def __init__(self) -> None:
        self.state = RECEIVING
        self.content: bytes | bytearray = b""
        self.size = 0
        self._error: RequestError | None = None
        self._waiter: asyncio.Future[None] | None = None  # while the server waits for the body

    @property
    def is_ahead(self) -> bool:
        """Whether more was received than is held for a body that nothing waits for yet."""
        return self._waiter is None and self.size > AHEAD_BYTES and self.state is not DISCARDING

    def append(self, data: bytes) -> None:
        """Add a part of the body. What is too large or no longer needed is dropped."""
        self.size += len(data)
        if self.state is DISCARDING:
            return
        if self.size > MAX_BODY_BYTES:
            self.content = b""
            self.notify()
        elif not self.content:
            self.content = data
        else:  # in a list, many small chunks would take more memory than their bytes
            if isinstance(self.content, bytes):
                self.content = bytearray(self.content)
            self.content += data

    def complete(self, error: RequestError | None = None) -> None:
        """End the body.

        Args:
            error: raised by :meth:`read`, because the rest of the body is invalid.
        """
        self.state = COMPLETE
        self._error = error
        self.notify()

    def discard(self) -> None:
        """Drop what is held, and what is received from now on."""
        self.content = b""
        if self.state is not COMPLETE:
            self.state = DISCARDING

    def take(self) -> bytes | None:
        """Return the body if it is complete. It is no longer held here then."""
        if self.state is not COMPLETE or self.size > MAX_BODY_BYTES:
            return None
        content, self.content = bytes(self.content), b""
        return content

    def notify(self) -> None:
        """Wake :meth:`read`: the body is complete or too large, or the client has disconnected."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(
        self,
        transport: asyncio.Transport,
        resume_reading: Callable[[], None],
        *,
        declared_bytes: int,
        expects_continue: bool,
        timeout_s: float,
    ) -> bytes:
        """Return the whole body.

        Args:
            transport: the connection that it is received on.
            resume_reading: called when more has to be received.
            declared_bytes: the ``Content-Length``, or 0.
            expects_continue: the client sends the body only after 100 (RFC 9110, section 10.1.1).
            timeout_s: how long to wait for the body, in seconds.

        Raises:
            RequestError: 413 above ``MAX_BODY_BYTES``, 408 after the timeout, 400 if the client
                disconnects.
        """
        if transport.is_closing():
            raise incomplete_body()
        if declared_bytes > MAX_BODY_BYTES:
            raise body_too_large()
        if self.state is not COMPLETE and self.size <= MAX_BODY_BYTES:
            if expects_continue and not self.size:
                transport.write(CONTINUE)
            await self._wait(resume_reading, timeout_s)
        if self.size > MAX_BODY_BYTES:
            raise body_too_large()
        if self._error is not None:
            raise self._error
        if self.state is not COMPLETE:
            if transport.is_closing():
                raise incomplete_body()
            raise body_too_slow(timeout_s)
        return bytes(self.content)

    async def _wait(self, resume_reading: Callable[[], None], timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        resume_reading()
        timer = loop.call_later(timeout_s, self.notify)
        try:
            await self._waiter
        finally:
            timer.cancel()
