"""Who asks: keys and tokens, and what they say. See PROTOCOL.md, "Who may"."""

from __future__ import annotations

from .claims import ANYONE, Claims
from .jwks import KeysUnavailableError
from .keyring import KeyRing, Keys, digest_of
from .verify import MAX_TOKEN_BYTES, Authenticator, InvalidTokenError, id_of_token

__all__ = [
    "ANYONE", "MAX_TOKEN_BYTES", "Authenticator", "Claims", "InvalidTokenError", "KeyRing",
    "Keys", "KeysUnavailableError", "digest_of", "id_of_token",
]  # fmt: skip
