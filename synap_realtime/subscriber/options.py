"""Validate the arguments of ``subscribe``."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote

from ..endpoint import SCHEMES, ServerUrl, authorization_header, parse_server_url
from ..errors import ConfigurationError, InvalidArgumentError
from ..protocol.control import MAX_ROOMS, SUBPROTOCOL, SUBPROTOCOL_V2
from ..protocol.rooms import Room, parse_room

Token = str | Callable[[], str | Awaitable[str]] | None
"""A bearer token, or a function that is called at each connect and before the token expires."""

After = str | Mapping[str, str] | None
"""Where to start: one position, or one for each room."""

_POSITION = re.compile(r"[A-Za-z0-9-]{1,64}")  # the format of a cursor is opaque to clients


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """The state of a subscription, passed to ``on_state_change``.

    Attributes:
        status: ``connected``, or ``reconnecting`` after a disconnect or a failed connect.
        attempt: the number of the next consecutive reconnect, from 1; 0 when connected.
        delay_s: seconds until the next reconnect.
        reason: the cause; empty when connected.
    """

    status: Literal["connected", "reconnecting"]
    attempt: int = 0
    delay_s: float = 0.0
    reason: str = ""


OnStateChange = Callable[[SubscriptionState], object] | None
OnGap = Callable[[str], object] | None


_NO_IDS = ("None", "undefined", "null", "nan", "NaN")
"""The results of formatting a missing id into ``f"user_{user_id}"``."""


def check_token(token: object) -> None:
    """Check a token that is not a function.

    Raises:
        ConfigurationError: it is not text, is empty, or cannot be sent in a header.
    """
    if not isinstance(token, str) or not token:
        kind = "an empty one" if token == "" else type(token).__name__
        raise ConfigurationError(f"token: expected a token, or a function of one; got {kind}")
    authorization_header("token", token)


def brought(token: object) -> str | None:
    """Check the return value of a token function. None and an empty text mean no token.

    Raises:
        InvalidArgumentError: it is not text.
    """
    if token is not None and not isinstance(token, str):
        kind = type(token).__name__
        raise InvalidArgumentError("token", f"expected its function to return a string, not {kind}")
    return token or None


class Options(NamedTuple):
    """The validated arguments of ``subscribe``."""

    room: Room
    address: ServerUrl
    token: Token
    after: str | None
    max_reconnects: int | None
    acknowledge: bool
    on_gap: OnGap
    on_state_change: OnStateChange

    @property
    def subprotocol(self) -> str:
        return SUBPROTOCOL

    def continuing(self, after: str | None, token: str | None) -> Options:
        """Return a copy that starts elsewhere, and first uses this token of its function."""
        function = self.token
        if token is None or not callable(function):
            return self._replace(after=after)
        unused = [token]
        return self._replace(after=after, token=lambda: unused.pop() if unused else function())

    def uri(self, after: str | None, *, with_token: bool) -> str:
        """The WebSocket's address. A token replaces the URL's user and password."""
        query = f"?after={quote(after, safe='')}" if after else ""
        base = base_address(self.address, with_token=with_token)
        return f"{base}/rooms/{quote(self.room, safe='')}/subscribe{query}"


class RoomsOptions(NamedTuple):
    """The validated arguments of ``subscribe`` for several rooms."""

    positions: dict[Room, str | None]
    address: ServerUrl
    token: Token
    max_reconnects: int | None
    acknowledge: bool
    on_gap: OnGap
    on_state_change: OnStateChange

    @property
    def rooms(self) -> tuple[Room, ...]:
        return tuple(self.positions)

    @property
    def subprotocol(self) -> str:
        return SUBPROTOCOL_V2

    def uri(self, after: str | None, *, with_token: bool) -> str:  # noqa: ARG002 - of each room
        """The WebSocket's address; see :meth:`Options.uri`."""
        return f"{base_address(self.address, with_token=with_token)}/subscribe"

    def of(self, room: Room) -> Options:
        """Return the arguments for one of the rooms."""
        return Options(
            room=room,
            address=self.address,
            token=self.token,
            after=self.positions[room],
            max_reconnects=self.max_reconnects,
            acknowledge=self.acknowledge,
            on_gap=self.on_gap,
            on_state_change=self.on_state_change,
        )

    def starting_at(self, positions: dict[Room, str | None]) -> RoomsOptions:
        """Return a copy whose rooms start elsewhere."""
        return self._replace(positions=positions)


def base_address(address: ServerUrl, *, with_token: bool) -> str:
    url = address.url
    if with_token:
        url = url.copy_with(username=None, password=None)
    return re.sub("^http", "ws", str(url)).rstrip("/")


def check_any(
    room: str | list[str] | tuple[str, ...],
    url: str | None,
    token: Token,
    *,
    after: After,
    max_reconnects: int | None,
    acknowledge: bool,
    on_gap: OnGap,
    on_state_change: OnStateChange,
) -> Options | RoomsOptions:
    """Validate the arguments of ``subscribe``, for one room or for several.

    Raises:
        InvalidArgumentError, ConfigurationError: as :func:`check`.
    """
    if isinstance(room, list | tuple):
        return check_rooms(
            room, url, token,
            after=after, max_reconnects=max_reconnects, acknowledge=acknowledge, on_gap=on_gap,
            on_state_change=on_state_change,
        )  # fmt: skip
    if isinstance(after, Mapping):
        raise InvalidArgumentError("after", "expected one position for one room, got a mapping")
    return check(
        room, url, token,
        after=after, max_reconnects=max_reconnects, acknowledge=acknowledge, on_gap=on_gap,
        on_state_change=on_state_change,
    )  # fmt: skip


def check_rooms(
    rooms: list[str] | tuple[str, ...],
    url: str | None,
    token: Token,
    *,
    after: After,
    max_reconnects: int | None,
    acknowledge: bool,
    on_gap: OnGap,
    on_state_change: OnStateChange,
) -> RoomsOptions:
    """Validate the arguments of ``subscribe`` for several rooms.

    Raises:
        InvalidArgumentError, ConfigurationError: as :func:`check`.
    """
    if not 1 <= len(rooms) <= MAX_ROOMS:
        raise InvalidArgumentError("room", f"expected 1 to {MAX_ROOMS} rooms; got {len(rooms)}")
    starts: Mapping[str, str | None] = {}
    if isinstance(after, Mapping):
        starts, after = after, None
        if unknown := set(starts) - set(rooms):
            raise InvalidArgumentError("after", f"names {len(unknown)} rooms that are not in room")
    each = [
        check(
            room, url, token,
            after=starts.get(room, after), max_reconnects=max_reconnects, acknowledge=acknowledge,
            on_gap=on_gap, on_state_change=on_state_change,
        )
        for room in rooms
    ]  # fmt: skip
    first = each[0]
    return RoomsOptions(
        positions={options.room: options.after for options in each},
        address=first.address,
        token=token,
        max_reconnects=max_reconnects,
        acknowledge=acknowledge,
        on_gap=on_gap,
        on_state_change=on_state_change,
    )


def check(
    room: str,
    url: str | None,
    token: Token,
    *,
    after: str | None,
    max_reconnects: int | None,
    acknowledge: bool,
    on_gap: OnGap,
    on_state_change: OnStateChange,
) -> Options:
    """Validate the arguments of ``subscribe``.

    Raises:
        InvalidArgumentError: an argument is invalid; names it.
        ConfigurationError: the URL or the token is invalid.
    """
    if token is not None and not callable(token):
        check_token(token)
    given: object = url
    if given is not None and (not isinstance(given, str) or not given):
        raise ConfigurationError("url: expected http://…, https://…, ws://… or wss://…, or None")
    position: object = after
    if position is not None and not (
        isinstance(position, str) and (not position or _POSITION.fullmatch(position))
    ):
        raise InvalidArgumentError("after", "expected a cursor, 'earliest' or 'latest'")
    limit: object = max_reconnects
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise InvalidArgumentError("max_reconnects", f"expected 0 or more, or None; got {limit!r}")
    if not isinstance(acknowledge, bool):
        raise InvalidArgumentError("acknowledge", f"expected True or False; got {acknowledge!r}")
    if (checked := parse_room(room)).partition("_")[2] in _NO_IDS:
        raise InvalidArgumentError("room", f"its id was missing; got {room!r}")
    for field, function in (("on_gap", on_gap), ("on_state_change", on_state_change)):
        if function is not None and not callable(function):
            raise InvalidArgumentError(field, "expected a function")
    return Options(
        room=checked,
        address=parse_server_url(url, SCHEMES),
        token=token,
        after=after or None,
        max_reconnects=max_reconnects,
        acknowledge=acknowledge,
        on_gap=on_gap,
        on_state_change=on_state_change,
    )
