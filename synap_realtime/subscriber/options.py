"""Validate the arguments of ``subscribe``."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote

from ..endpoint import SCHEMES, ServerUrl, authorization_header, parse_server_url
from ..errors import ConfigurationError, InvalidArgumentError
from ..protocol.control import MAX_ROOMS, SUBPROTOCOL
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


class Arguments(NamedTuple):
    """The arguments of ``subscribe``, as they were given."""

    room: str | list[str] | tuple[str, ...]
    url: str | None = None
    token: Token = None
    after: After = None
    max_reconnects: int | None = None
    acknowledge: bool = True
    on_gap: OnGap = None
    on_state_change: OnStateChange = None


class Options(NamedTuple):
    """The validated arguments of ``subscribe``.

    Attributes:
        positions: where each room starts.
    """

    positions: Mapping[Room, str | None]
    address: ServerUrl
    token: Token
    max_reconnects: int | None
    acknowledge: bool
    on_gap: OnGap
    on_state_change: OnStateChange

    def continuing(self, positions: Mapping[Room, str | None], token: str | None) -> Options:
        """Return a copy that starts elsewhere, and first uses this token of its function."""
        function = self.token
        if token is None or not callable(function):
            return self._replace(positions=positions)
        unused = [token]

        def renewed() -> str | Awaitable[str]:
            try:
                return unused.pop()  # atomic: several threads may call this
            except IndexError:
                return function()

        return self._replace(positions=positions, token=renewed)

    def by_room(self) -> list[RoomOptions]:
        """Return the options of each room for a connection of its own."""
        return [RoomOptions(room, after, self) for room, after in self.positions.items()]


class RoomOptions(NamedTuple):
    """The options of one room that has a connection of its own."""

    room: Room
    after: str | None
    common: Options

    @property
    def address(self) -> ServerUrl:
        return self.common.address

    @property
    def token(self) -> Token:
        return self.common.token

    @property
    def subprotocol(self) -> str:
        return SUBPROTOCOL

    def uri(self, after: str | None, *, with_token: bool) -> str:
        """The WebSocket's address. A token replaces the URL's user and password."""
        query = f"?after={quote(after, safe='')}" if after else ""
        base = base_address(self.address, with_token=with_token)
        return f"{base}/rooms/{quote(self.room, safe='')}/subscribe{query}"


def base_address(address: ServerUrl, *, with_token: bool) -> str:
    url = address.url
    if with_token:
        url = url.copy_with(username=None, password=None)
    return re.sub("^http", "ws", str(url)).rstrip("/")


def check(arguments: Arguments) -> Options:
    """Validate the arguments of ``subscribe``.

    Raises:
        InvalidArgumentError: an argument is invalid; names it.
        ConfigurationError: the URL or the token is invalid.
    """
    token, url = arguments.token, arguments.url
    if token is not None and not callable(token):
        check_token(token)
    given: object = url
    if given is not None and (not isinstance(given, str) or not given):
        raise ConfigurationError("url: expected http://…, https://…, ws://… or wss://…, or None")
    limit: object = arguments.max_reconnects
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise InvalidArgumentError("max_reconnects", f"expected 0 or more, or None; got {limit!r}")
    acknowledge: object = arguments.acknowledge
    if not isinstance(acknowledge, bool):
        raise InvalidArgumentError("acknowledge", f"expected True or False; got {acknowledge!r}")
    positions = _positions(arguments.room, arguments.after)
    callbacks = {"on_gap": arguments.on_gap, "on_state_change": arguments.on_state_change}
    for field, function in callbacks.items():
        if function is not None and not callable(function):
            raise InvalidArgumentError(field, "expected a function")
    return Options(
        positions,
        parse_server_url(url, SCHEMES),
        token,
        arguments.max_reconnects,
        acknowledge,
        arguments.on_gap,
        arguments.on_state_change,
    )


def _positions(room: str | list[str] | tuple[str, ...], after: After) -> Mapping[Room, str | None]:
    """Validate the rooms, and where each of them starts."""
    if not isinstance(room, list | tuple):
        if isinstance(after, Mapping):
            raise InvalidArgumentError("after", "expected one position for one room, got a mapping")
        return {_room(room): _position(after)}
    if not 1 <= len(room) <= MAX_ROOMS:
        raise InvalidArgumentError("room", f"expected 1 to {MAX_ROOMS} rooms; got {len(room)}")
    if not isinstance(after, Mapping):
        return dict.fromkeys(map(_room, room), _position(after))
    rooms = [_room(each) for each in room]
    if unknown := set(after) - set(rooms):
        raise InvalidArgumentError("after", f"names {len(unknown)} rooms that are not in room")
    return {each: _position(after.get(each)) for each in rooms}


def _position(after: object) -> str | None:
    if after is None or after == "":
        return None
    if not isinstance(after, str) or not _POSITION.fullmatch(after):
        raise InvalidArgumentError("after", "expected a cursor, 'earliest' or 'latest'")
    return after


def _room(room: str) -> Room:
    checked = parse_room(room)
    if checked.partition("_")[2] in _NO_IDS:
        raise InvalidArgumentError("room", f"its id was missing; got {room!r}")
    return checked
