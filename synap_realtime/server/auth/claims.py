"""What a key or a token says of who shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...protocol.rooms import Room, matches, user_of
from ...tokens import SCOPES


@dataclass(frozen=True, slots=True)
class Claims:
    """What a credential says, after it was found to be genuine.

    Attributes:
        user: the user's id (``sub``); None for a key, and for a token that names nobody.
        rooms: patterns of the rooms that it opens, beside the user's own.
        scopes: of ``subscribe``, ``broadcast``, ``presence``, ``metrics`` and ``admin``.
        device: which of the user's devices it was made for.
        key: the name of the publisher's key; None for a token.
        token_id: ``jti``, else a hash of what was signed: for revoking it. None for a key.
        issued_at, expires_at: seconds since 1970; None: not said, or a key, which does not end.
        members: all that the token says, for a rule of one's own.
        anchor: the trust anchor that vouches for it: the digest of the API key, of the secret or of
            the public key that signed the token. None: on a server without keys.
    """

    user: str | None = None
    rooms: tuple[str, ...] = ()
    scopes: frozenset[str] = frozenset()
    device: str | None = None
    key: str | None = None
    token_id: str | None = None
    issued_at: float | None = None
    expires_at: float | None = None
    members: Mapping[str, Any] = field(default_factory=dict, repr=False)
    anchor: bytes | None = field(default=None, repr=False)

    def opens(self, room: Room) -> bool:
        """Whether the room is the user's own, or one of those that the credential names."""
        if "*" in self.rooms:
            return True
        if self.user is not None and user_of(room) == self.user:
            return True
        return any(matches(pattern, room) for pattern in self.rooms)


ANYONE = Claims(rooms=("*",), scopes=frozenset(SCOPES))
"""On a server without keys, which answers this machine only: everyone may everything."""
