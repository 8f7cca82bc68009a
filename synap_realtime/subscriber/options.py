"""Validate the arguments of ``subscribe``."""

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
"""A bearer token, or a function that is called at each connect."""

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

    def uri(self, after: str | None, *, with_token: bool) -> str:
        """The WebSocket's address. A token replaces the URL's user and password."""
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
