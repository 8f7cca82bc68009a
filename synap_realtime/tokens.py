"""Mint tokens: JWTs (RFC 7519) that grant access to rooms for a limited time.

See PROTOCOL.md, "Authentication and authorization".
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterable
from typing import Any

from .errors import ConfigurationError, InvalidArgumentError
from .extras import lacks
from .protocol.rooms import UserId, id_text, parse_pattern, user_room

SCOPES = ("subscribe", "broadcast", "presence", "metrics", "admin")
"""The scopes of a token. Without a ``scope`` claim it is ``subscribe``."""

DEFAULT_TTL_S = 900
"""The default lifetime of a token, in seconds."""

MIN_SECRET_BYTES = 32
"""A key must be at least as long as the hash (RFC 7518, section 3.2)."""

KEYGEN_COMMAND = "synap-realtime generate-keys"
_DEVICE = re.compile(r"[A-Za-z0-9._~:@|=+\-]{1,64}")


def mint_token(
    user_id: UserId | None = None,
    *,
    rooms: Iterable[str] = (),
    scope: str = "subscribe",
    device: str | None = None,
    expires_in_s: float = DEFAULT_TTL_S,
    secret: str | None = None,
    issuer: str | None = None,
    audience: str | None = None,
) -> str:
    """Mint a token for a user, or for rooms, signed with a secret of the server (HS256).

    ::

        token = mint_token(str(user.id), rooms=["request_*"])

    Args:
        user_id: grants access to the room of this user.
        rooms: further rooms that it grants access to. A ``*`` at the end matches any rest.
        scope: some of ``subscribe``, ``broadcast``, ``presence``, ``metrics``, ``admin``,
            separated by spaces.
        device: the name of the user's device. Each device has a separate acknowledged cursor.
        expires_in_s: the lifetime in seconds. Every token expires.
        secret: default ``REALTIME_TOKEN_SECRET``.
        issuer, audience: the ``iss`` and ``aud``, if the server expects them.

    Raises:
        InvalidArgumentError: names the argument that is invalid.
        ConfigurationError: the secret is missing or too short, or PyJWT is not installed.
    """
    claims: dict[str, Any] = {}
    if user_id is not None:
        user_room(user_id)
        claims["sub"] = id_text("user_id", user_id)
    if patterns := [parse_pattern(room) for room in rooms]:
        claims["rooms"] = patterns
    claims["scope"] = " ".join(parse_scopes(scope))
    if device is not None:
        claims["device"] = parse_device(device)
    if issuer is not None:
        claims["iss"] = issuer
    if audience is not None:
        claims["aud"] = audience
    if not 0 < expires_in_s < 10**9:
        raise InvalidArgumentError(
            "expires_in_s", f"expected more than 0 s and less than 10^9 s, got {expires_in_s!r}"
        )
    now = time.time()
    claims |= {"iat": int(now), "exp": int(now + expires_in_s), "jti": str(uuid.uuid4())}
    return _sign(claims, secret or os.environ.get("REALTIME_TOKEN_SECRET", ""))


def inspect_token(token: str, secret: str | None) -> tuple[str | None, dict[str, Any]]:
    """Return the problem of a token, and its claims. The problem is None if it is valid.

    Without a secret, the signature is not verified, and the problem says so.
    """
    jwt = _pyjwt()
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        return f"not a JWT ({error})", {}
    if not secret:
        return "the signature was not verified: set REALTIME_TOKEN_SECRET", claims
    try:
        options = {"require": ["exp"], "verify_aud": False}
        jwt.decode(token, secret, algorithms=["HS256"], options=options)
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
        return str(error) or type(error).__name__, claims
    return None, claims


def parse_scopes(text: str) -> list[str]:
    """Parse scopes that are separated by spaces.

    Raises:
        InvalidArgumentError: one of them is unknown, or there are none.
    """
    names = str(text).split()
    if not names or not set(names) <= set(SCOPES):
        raise InvalidArgumentError("scope", f"expected some of {', '.join(SCOPES)}; got {text!r}")
    return names


def parse_device(text: object) -> str:
    """Check the name of a device: 1 to 64 characters of ``A-Z a-z 0-9 . _ ~ : @ | = + -``.

    Raises:
        InvalidArgumentError: it is not one.
    """
    if not isinstance(text, str) or not _DEVICE.fullmatch(text):
        raise InvalidArgumentError("device", "expected 1 to 64 of A-Z a-z 0-9 . _ ~ : @ | = + -")
    return text


def _sign(claims: dict[str, Any], secret: str) -> str:
    check_secret("REALTIME_TOKEN_SECRET", secret)
    return str(_pyjwt().encode(claims, secret, algorithm="HS256"))


def _pyjwt() -> Any:
    try:
        import jwt
    except ImportError as error:
        raise ConfigurationError(lacks("a token", error, "auth")) from None
    return jwt


def check_secret(name: str, secret: str) -> None:
    """Check that a secret is long enough.

    Raises:
        ConfigurationError: it is not text, or too short. The message does not show it.
    """
    try:
        size = len(secret.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(f"{name}: expected UTF-8 text") from None
    if size < MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"{name}: expected at least {MIN_SECRET_BYTES} bytes; create one with: {KEYGEN_COMMAND}"
        )
