"""What a caller asked for, checked at the call."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote

from ..endpoint import SCHEMES, ServerUrl, authorization_header, parse_server_url
from ..errors import ConfigurationError, InvalidArgumentError
from ..protocol.rooms import Room, parse_room

Token = str | Callable[[], str | Awaitable[str]] | None
"""A bearer token, or a function that is called anew at every dial."""

_POSITION = re.compile(r"[A-Za-z0-9-]{1,64}")  # a cursor is opaque to clients; so is its shape


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """How a subscription stands, for ``on_state``.

    Attributes:
        name: ``connected``, or ``reconnecting`` when the connection is lost or could not be made.
        attempt: which reconnection in a row comes next, from 1; 0 when connected.
        delay_s: seconds until then.
        reason: why, in words; empty when connected.
    """

    status: Literal["connected", "reconnecting"]
    attempt: int = 0
    delay_s: float = 0.0
    reason: str = ""


OnStateChange = Callable[[SubscriptionState], object] | None
OnGap = Callable[[str], object] | None


_NO_IDS = ("None", "undefined", "null", "nan", "NaN")
"""What an id that is not there yet becomes in ``f"user_{user_id}"``."""


def check_token(token: object) -> None:
    """Check a token that is no function.

    Raises:
        ConfigurationError: it is no text, or empty, or no header can carry it.
    """
    if not isinstance(token, str) or not token:
        kind = "an empty one" if token == "" else type(token).__name__
        raise ConfigurationError(f"token: expected a token, or a function of one; got {kind}")
    authorization_header("token", token)


def brought(token: object) -> str | None:
    """What a token function has returned; None is no token, and neither is an empty text.

    Raises:
        InvalidArgumentError: it is no text.
    """
    if token is not None and not isinstance(token, str):
        kind = type(token).__name__
        raise InvalidArgumentError("token", f"expected its function to return a string, not {kind}")
    return token or None


class Options(NamedTuple):
    """The checked arguments of ``subscribe``."""

    room: Room
    address: ServerUrl
    token: Token
    after: str | None
    max_reconnects: int | None
    acknowledge: bool
    on_gap: OnGap
    on_state_change: OnStateChange

    def uri(self, after: str | None, *, with_token: bool) -> str:
        """The WebSocket's address. A token takes the place of the URL's user and password."""
        url = self.address.url
        if with_token:
            url = url.copy_with(username=None, password=None)
        base = re.sub("^http", "ws", str(url)).rstrip("/")
        query = f"?after={quote(after, safe='')}" if after else ""
        return f"{base}/rooms/{quote(self.room, safe='')}/subscribe{query}"


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
    """Check the arguments of ``subscribe``.

    Raises:
        InvalidArgumentError: names the argument that is wrong.
        ConfigurationError: the URL or the token cannot work.
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
        raise InvalidArgumentError("room", f"its id was not there yet; got {room!r}")
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
