"""What a key or a token says of who shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...protocol.rooms import Room, room_owner
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
    key_name: str | None = None
    token_id: str | None = None
    issued_at: float | None = None
    expires_at: float | None = None
    raw_claims: Mapping[str, Any] = field(default_factory=dict, repr=False)
    anchor: bytes | None = field(default=None, repr=False)
    _names: frozenset[str] = field(init=False, repr=False, compare=False)
    _prefixes: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A batch names a thousand rooms, and a token as many patterns: to try each with each in
        # Python would keep the event loop for half a second.
        if self.rooms:
            prefixes = tuple(each[:-1] for each in self.rooms if each.endswith("*"))
            names = frozenset(each for each in self.rooms if not each.endswith("*"))
        else:
            prefixes, names = (), _NO_NAMES
        object.__setattr__(self, "_prefixes", prefixes)
        object.__setattr__(self, "_names", names)

    def allows_room(self, room: Room) -> bool:
        """Whether the room is the user's own, or one of those that the credential names."""
        if "*" in self.rooms:
            return True
        if self.user is not None and room_owner(room) == self.user:
            return True
        return room in self._names or room.startswith(self._prefixes)


_NO_NAMES: frozenset[str] = frozenset()


UNRESTRICTED = Claims(rooms=("*",), scopes=frozenset(SCOPES))
"""On a server without keys, which answers this machine only: everyone may everything."""
