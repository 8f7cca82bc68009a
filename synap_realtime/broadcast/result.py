"""The result of a broadcast."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BroadcastError


@dataclass(frozen=True, slots=True)
class BroadcastResult:
    """The result of one broadcast. Delivery never raises; call :meth:`raise_for_status` to raise.

    Attributes:
        success: the server of every room has accepted the notification. True without subscribers:
            the room retains it for later ones.
        broadcast_count: number of connections it was delivered to, over all rooms.
        id: the notification's id.
        rooms: the rooms that accepted it. With ``success`` these are all requested rooms.
        attempts: number of HTTP requests, retries included.
        error: why it failed; ``None`` on success.
        duplicate: every room had a notification with this id already; nothing new was delivered.
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
