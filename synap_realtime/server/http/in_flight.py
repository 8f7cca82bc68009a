"""Operations that draining waits for. See PROTOCOL.md, "Draining"."""

from __future__ import annotations

import asyncio
from types import TracebackType

from ..errors import UnavailableError


class InFlight:
    """The operations of a node that are not answered yet. Each is a ``with`` block on this object.

    Attributes:
        is_draining: whether new operations are rejected.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self._count = 0
        self._is_idle = asyncio.Event()

    def ensure_accepting(self) -> None:
        """Check that the node is not draining.

        Raises:
            UnavailableError: it is.
        """
        if self.is_draining:
            raise UnavailableError("the server is shutting down")

    def __enter__(self) -> None:
        """Start an operation.

        Raises:
            UnavailableError: the node is draining.
        """
        if self.is_draining:
            self.ensure_accepting()
        self._count += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._count -= 1
        if self.is_draining:
            self._is_idle.set()

    async def drain(self) -> None:
        """Reject new operations, and wait until those in flight have ended."""
        self.is_draining = True
        while self._count:
            self._is_idle.clear()
            await self._is_idle.wait()
