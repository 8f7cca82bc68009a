"""Authenticate clients by keys and tokens.

See PROTOCOL.md, "Authentication and authorization".
"""

from __future__ import annotations

from .claims import UNRESTRICTED, Claims
from .jwks import KeysUnavailableError
from .keys import KeyRing, Keys
from .tokens import (
    LEEWAY_S,
    MAX_LIFETIME_S,
    MAX_TEXT,
    MAX_TOKEN_BYTES,
    Authenticator,
    InvalidTokenError,
    MalformedTokenError,
)

__all__ = [
    "LEEWAY_S",
    "MAX_LIFETIME_S",
    "MAX_TEXT",
    "MAX_TOKEN_BYTES",
    "UNRESTRICTED",
    "Authenticator",
    "Claims",
    "InvalidTokenError",
    "KeyRing",
    "Keys",
    "KeysUnavailableError",
    "MalformedTokenError",
]  # fmt: skip
