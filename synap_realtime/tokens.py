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
"""What a token may be good for. Without a ``scope``: ``subscribe``."""

DEFAULT_TTL_S = 900
"""Seconds for which a token is good unless told otherwise."""

MIN_SECRET_BYTES = 32
"""RFC 7518, section 3.2: a key as long as the hash, at least."""

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
    """A token for one user, or for some rooms, signed with a secret that the server knows (HS256).

    ::

        token = mint_token(str(user.id), rooms=["request_*"])

    Args:
        user_id: opens this user's room.
        rooms: opens these as well; a ``*`` at the end of one stands for any rest.
        scope: some of ``subscribe``, ``broadcast``, ``presence``, ``metrics``, ``admin``, with
            spaces between.
        device: tells this device from the user's others: it has its own place in the log.
        expires_in_s: how long it is good. Every token ends.
        secret: default ``REALTIME_TOKEN_SECRET``.
        issuer, audience: where the server asks for them.

    Raises:
        InvalidArgumentError: names the argument that is wrong.
        ConfigurationError: there is no secret, or it is too short, or PyJWT is not installed.
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
        raise InvalidArgumentError("expires_in_s", f"expected some seconds, got {expires_in_s!r}")
    now = time.time()
    claims |= {"iat": int(now), "exp": int(now + expires_in_s), "jti": str(uuid.uuid4())}
    return _sign(claims, secret or os.environ.get("REALTIME_TOKEN_SECRET", ""))


def inspect_token(token: str, secret: str | None) -> tuple[str | None, dict[str, Any]]:
    """What is wrong with a token, and what it says.

    Without a secret, its signature is not checked, and that is the first thing wrong with it.
    """
    jwt = _pyjwt()
    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:
        return f"it is no JWT ({error})", {}
    if not secret:
        return "its signature was not checked: set REALTIME_TOKEN_SECRET", claims
    try:
        options = {"require": ["exp"], "verify_aud": False}
        jwt.decode(token, secret, algorithms=["HS256"], options=options)
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
        return str(error) or type(error).__name__, claims
    return None, claims


def parse_scopes(text: str) -> list[str]:
    """
    Raises:
        InvalidArgumentError: one of them is none.
    """
    names = str(text).split()
    if not names or not set(names) <= set(SCOPES):
        raise InvalidArgumentError("scope", f"expected some of {', '.join(SCOPES)}; got {text!r}")
    return names


def parse_device(text: object) -> str:
    """A device's name: 1 to 64 characters of ``A-Z a-z 0-9 . _ ~ : @ | = + -``.

    Raises:
        InvalidArgumentError: it is none.
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
    """
    Raises:
        ConfigurationError: it is no text, or too short. The message does not show it.
    """
    try:
        size = len(secret.encode())
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"{name}: expected text; it has bytes that are not UTF-8"
        ) from None
    if size < MIN_SECRET_BYTES:
        raise ConfigurationError(
            f"{name}: expected at least {MIN_SECRET_BYTES} bytes; make one with: {KEYGEN_COMMAND}"
        )
