"""The claims of an authenticated client."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ...protocol.rooms import Room, room_owner
from ...tokens import SCOPES


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a credential that was verified.

    Attributes:
        user: the user's id (``sub``); None for a key, and for a token without ``sub``.
        rooms: patterns of the rooms that it grants, in addition to the user's own.
        scopes: some of ``subscribe``, ``broadcast``, ``presence``, ``metrics`` and ``admin``.
        device: the user's device that the token was minted for.
        key_name: the name of the API key; None for a token.
        token_id: ``jti``, else a hash of the signed part, by which the token is revoked. None for a
            key.
        issued_at, expires_at: seconds since 1970; None if the token has no such claim, and for a
            key.
        raw_claims: all claims of the token, for an :data:`~.authorization.Authorizer`.
        anchor: the trust anchor: the digest of the API key, or of the secret or public key that
            verified the token. None on a server without keys.
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
    _names: Collection[str] = field(init=False, repr=False, compare=False)
    _prefixes: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A batch names up to 1,000 rooms, and a token as many patterns. Trying every pattern on
        # every room in Python would block the event loop for half a second.
        prefixes: tuple[str, ...]
        names: Collection[str]
        if self.rooms:
            prefixes = tuple(each[:-1] for each in self.rooms if each.endswith("*"))
            exact = tuple(each for each in self.rooms if not each.endswith("*"))
            # A set takes four times the memory of a tuple, and most tokens name one room.
            names = exact if len(exact) <= _FEW else frozenset(exact)
        else:
            prefixes, names = (), ()
        object.__setattr__(self, "_prefixes", prefixes)
        object.__setattr__(self, "_names", names)

    @property
    def caller(self) -> str | None:
        """The key, user or token whose requests are counted together; None without keys."""
        if self.key_name is not None:
            return f"key {self.key_name}"
        if self.user is not None:  # the prefix separates a user whose id is the name of a key
            return f"user {self.user}"
        return None if self.token_id is None else f"token {self.token_id}"

    def allows_room(self, room: Room) -> bool:
        """Return whether the room is the user's own, or matches a pattern of the credential."""
        if "*" in self.rooms:
            return True
        if self.user is not None and room_owner(room) == self.user:
            return True
        return room in self._names or room.startswith(self._prefixes)


_FEW = 4


UNRESTRICTED = Claims(rooms=("*",), scopes=frozenset(SCOPES))
"""The claims of every client of a server without keys. Such a server accepts only loopback clients,
and allows them every action."""
