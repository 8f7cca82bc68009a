"""What a caller asked for, checked at the call."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote

from ..endpoint import SCHEMES, Address, bearer, parse_address
from ..errors import InvalidArgumentError
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

    name: Literal["connected", "reconnecting"]
    attempt: int = 0
    delay_s: float = 0.0
    reason: str = ""


OnState = Callable[[SubscriptionState], object] | None
OnGap = Callable[[str], object] | None


class Options(NamedTuple):
    """The checked arguments of ``subscribe``."""

    room: Room
    address: Address
    token: Token
    after: str | None
    attempts: int | None
    acknowledge: bool
    on_gap: OnGap
    on_state: OnState

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
    attempts: int | None,
    acknowledge: bool,
    on_gap: OnGap,
    on_state: OnState,
) -> Options:
    """Check the arguments of ``subscribe``.

    Raises:
        InvalidArgumentError: names the argument that is wrong.
        ConfigurationError: the URL or the token cannot work.
    """
    if token is not None and not callable(token):
        bearer("token", token)
    position: object = after
    if position is not None and not (
        isinstance(position, str) and (not position or _POSITION.fullmatch(position))
    ):
        raise InvalidArgumentError("after", "expected a cursor, 'earliest' or 'latest'")
    limit: object = attempts
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
        raise InvalidArgumentError("attempts", f"expected 0 or more, or None; got {limit!r}")
    for field, function in (("on_gap", on_gap), ("on_state", on_state)):
        if function is not None and not callable(function):
            raise InvalidArgumentError(field, "expected a function")
    return Options(
        room=parse_room(room),
        address=parse_address(url, SCHEMES),
        token=token or None,
        after=after or None,
        attempts=attempts,
        acknowledge=bool(acknowledge),
        on_gap=on_gap,
        on_state=on_state,
    )
