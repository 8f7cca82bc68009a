"""What became of a broadcast."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BroadcastError


@dataclass(frozen=True, slots=True)
class BroadcastResult:
    """The truth about one broadcast. Delivery never raises; ask :meth:`raise_for_status` to.

    Attributes:
        success: every room's server has the notification. True with nobody listening: the room
            keeps it for whoever comes later.
        broadcast_count: connections that it was handed to, over all rooms.
        id: the notification's id.
        rooms: the rooms that have it. With ``success`` these are all that were asked for.
        attempts: HTTP requests that were made, retries included.
        error: why it failed, ``None`` on success.
        duplicate: every room had a notification of this id already: nothing new was delivered.
    """

    success: bool
    broadcast_count: int
    id: str
    rooms: tuple[str, ...]
    attempts: int
    error: str | None = None
    duplicate: bool = False

    def raise_for_status(self) -> BroadcastResult:
        """Return this result, or raise :class:`~synap_realtime.BroadcastError` if it failed."""
        if not self.success:
            raise BroadcastError(f"notification {self.id} was not broadcast: {self.error}")
        return self
