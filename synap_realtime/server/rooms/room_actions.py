"""Execute the actions of a client whose connection has many rooms.

See PROTOCOL.md, "Many rooms on one connection".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ...errors import InvalidArgumentError
from ...protocol.actions import (
    Action,
    ActionError,
    Subscribe,
    Unsubscribe,
    parse_room_action,
)
from ...protocol.control import MAX_ROOMS, Ack, Authenticate
from ...protocol.cursor import parse_cursor
from ...protocol.rooms import Room, key_of
from ...tokens import parse_device
from ..auth.authorization import AccessControl
from ..auth.claims import Claims
from ..auth.limits import Limits
from ..errors import (
    PermissionDeniedError,
    RateLimitedError,
    RejectedError,
    StoreUnavailableError,
    UnauthenticatedError,
)
from .connection_rooms import ConnectionRooms

RETRY_AFTER_S = 1.0
"""When a client should repeat an action that the server cannot serve now."""


class ActingClient(Protocol):
    """The connection whose client acts.

    Attributes:
        address: of the client.
        claims: the current ones of the connection.
        is_draining: whether it accepts no new rooms.
    """

    address: str | None
    claims: Claims
    is_draining: bool

    def reauthenticate(self, token: str) -> None:
        """Replace the token of the connection."""
        ...


class RoomActions:
    """The actions of one client. One that fails is answered, and harms nothing else."""

    __slots__ = ("_access", "_client", "_limits", "_reject", "_rooms")

    def __init__(
        self,
        client: ActingClient,
        rooms: ConnectionRooms,
        access: AccessControl,
        limits: Limits,
        reject: Callable[[ActionError], None],
    ) -> None:
        """
        Args:
            rooms: of the connection.
            reject: answers an action that has failed.
        """
        self._client = client
        self._rooms = rooms
        self._access = access
        self._limits = limits
        self._reject = reject

    def execute(self, message: str) -> None:
        """Execute the action of a message."""
        try:
            self._act(parse_room_action(message))
        except ActionError as error:
            self._answer(error)

    def _act(self, action: Action) -> None:
        match action:
            case Subscribe():
                self._subscribe(action)
            case Unsubscribe(room):
                self._check_subscribed("unsubscribe", room)
                self._rooms.unsubscribe(room)
            case Ack(cursor, room) if room is not None:
                self._check_subscribed("ack", room)
                if (session := self._rooms.find(room)) is not None:
                    session.subscription.acknowledge(parse_cursor(cursor))
            case Authenticate(token, None):
                self._client.reauthenticate(token)
            case Authenticate(token, room) if room is not None:
                if (session := self._rooms.find(room)) is None:
                    raise _not_subscribed("authenticate", room)
                session.reauthenticate(token)

    def _check_subscribed(self, action: str, room: Room) -> None:
        if room not in self._rooms:
            raise _not_subscribed(action, room)

    def _subscribe(self, action: Subscribe) -> None:
        room = action.room
        if room in self._rooms:
            details = "room: the connection is subscribed to it; unsubscribe first"
            raise ActionError("already_subscribed", details, action="subscribe", room=room)
        if len(self._rooms) >= MAX_ROOMS:
            details = f"room: a connection has at most {MAX_ROOMS} rooms; open another one"
            raise ActionError("too_many_rooms", details, action="subscribe", room=room)
        if self._client.is_draining:
            raise ActionError(
                "unavailable", "the server is shutting down",
                action="subscribe", room=room, retry_after_s=RETRY_AFTER_S,
            )  # fmt: skip
        self._check_names(action)
        self._rooms.begin(room, self._admit_and_replay(action))

    def _check_names(self, action: Subscribe) -> None:
        """Check the device, and that neither name is a credential: presence and the log show them.

        Raises:
            ActionError: a name is invalid.
        """
        room, device = action.room, action.device
        try:
            if device is not None:
                parse_device(device)
        except InvalidArgumentError as error:
            details = f"device: {error.problem}"
            raise ActionError("invalid_request", details, action="subscribe", room=room) from None
        for name, text in (("room", key_of(room)), ("device", device)):
            if text is not None and self._access.is_credential(text):
                details = f"{name}: this is a credential; send it as token"
                raise ActionError("invalid_request", details, action="subscribe", room=room)

    async def _admit_and_replay(self, action: Subscribe) -> None:
        room = action.room
        try:
            claims = await self._admit(action)
            session = self._rooms.open(
                room, claims, device=action.device, wants_presence=action.wants_presence,
                owns_claims=action.token is not None,
            )  # fmt: skip
        except (RejectedError, StoreUnavailableError) as error:
            self._rooms.abandon(room)
            self._answer(_to_action_error(error, room))
            return
        await self._rooms.replay(session, action.after)

    async def _admit(self, action: Subscribe) -> Claims:
        """Authenticate and authorize a room. Return its claims.

        Raises:
            RejectedError, StoreUnavailableError: it is not allowed, or not now.
        """
        access, client, room = self._access, self._client, action.room
        claims = client.claims
        if action.token is None:
            self._limits.check_request(claims, client.address)
        else:
            claims = await access.authenticate_renewed(action.token, claims, client.address)
            if claims.user != client.claims.user:
                raise PermissionDeniedError("the token is another user's")
        while True:
            await access.authorize(claims, "subscribe", room)
            if action.wants_presence:
                await access.authorize(claims, "presence", room)
            if action.token is not None or claims is client.claims:
                return claims
            claims = client.claims  # renewed in the meantime

    def _answer(self, error: ActionError) -> None:
        if error.room is not None and self._access.is_credential(key_of(error.room)):
            error.room = None
        self._reject(error)


def _not_subscribed(action: str, room: Room) -> ActionError:
    details = "room: the connection is not subscribed to it"
    return ActionError("not_subscribed", details, action=action, room=room)


def _to_action_error(error: RejectedError | StoreUnavailableError, room: Room) -> ActionError:
    """Return the error that answers a subscribe action."""
    details, action = str(error), "subscribe"
    match error:
        case UnauthenticatedError():
            return ActionError("unauthorized", details, action=action, room=room)
        case PermissionDeniedError():
            return ActionError("forbidden", details, action=action, room=room)
        case RateLimitedError():
            after_s = error.retry_after_s
            return ActionError(
                "rate_limited", details, action=action, room=room, retry_after_s=after_s
            )
        case _:
            after_s = RETRY_AFTER_S
            return ActionError(
                "unavailable", details, action=action, room=room, retry_after_s=after_s
            )
