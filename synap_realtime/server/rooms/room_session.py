"""One room of a connection with many rooms: its claims, and what it is charged to."""

from __future__ import annotations

from ...protocol.control import CloseCode, ControlFrame
from ..auth.authorization import AccessControl
from ..auth.claims import Claims
from ..deadlines import TimerQueue
from .room_delivery import RoomHost, RoomSink, RoomSubscription
from .sessions import Session


class RoomSession(Session):
    """One room of a connection with many rooms.

    Attributes:
        connection: the connection.
        sink: writes the room's notifications to the connection.
    """

    __slots__ = ("_owns_claims", "connection", "sink")

    is_connection = False

    def __init__(
        self,
        connection: RoomHost,
        sink: RoomSink,
        subscription: RoomSubscription,
        claims: Claims,
        access: AccessControl,
        timers: TimerQueue,
        *,
        owns_claims: bool,
        user: str | None,
        device: str | None,
        wants_presence: bool,
    ) -> None:
        """
        Args:
            owns_claims: the room has a token of its own; else its claims are the connection's.
            user, device, wants_presence: see :class:`Session`.
        """
        self.connection = connection
        self.sink = sink
        self._owns_claims = owns_claims
        super().__init__(
            subscription, sink.room, claims, access, timers, user=user,
            address=connection.address, device=device, transport=connection.transport,
            wants_presence=wants_presence,
        )  # fmt: skip

    @property
    def owns_claims(self) -> bool:
        return self._owns_claims

    @property
    def close_code(self) -> CloseCode | None:
        return None if self.connection.close_code is not None else super().close_code

    def send_control(self, frame: ControlFrame) -> None:
        self.connection.send_control(frame.in_room(self.room))

    def _schedule(self) -> None:
        if self._owns_claims:  # else the connection watches the expiry
            super()._schedule()

    def _replace_claims(self, claims: Claims) -> None:
        if self._owns_claims:
            super()._replace_claims(claims)
        else:
            self._owns_claims = True
            self.share_claims(claims)
            self._schedule()

    def share_claims(self, claims: Claims) -> None:
        """Take the new claims of the connection."""
        self.claims = self.subscription.claims = claims
