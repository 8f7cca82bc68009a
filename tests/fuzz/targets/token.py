"""Credentials: only those made with this server's keys are accepted, and none raises an error."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json

from synap_realtime.protocol.rooms import user_room
from synap_realtime.server.auth.claims import Claims
from synap_realtime.server.auth.keys import KeyRing
from synap_realtime.server.auth.tokens import Authenticator, InvalidTokenError, MalformedTokenError
from synap_realtime.server.messages import json_response

from ..target import Target, require

SECRET = "fuzz-secret-0123456789abcdef-0123456789"
API_KEY = "fuzz-key-0123456789abcdef-0123456789"
LEEWAY_S = 10.0
LIFETIME_S = 100 * 366 * 86_400.0
"""So long that the tokens of the corpus are valid until 2100."""

NOW = 1.8e9
"""In seconds since 1970: the outcome of an input does not depend on the day."""

SIGNED = b"J"
"""An input that begins so is signed here: the header up to a line feed, then the payload."""


class TokenTarget(Target):
    """A credential as it came in a header, or the parts of a token, to be signed by the target."""

    name = "token"
    max_bytes = 9 * 1024

    def __init__(self) -> None:
        ring = KeyRing(token_secrets=[SECRET], api_keys={"fuzz": API_KEY})
        self._authenticator = Authenticator(
            ring, leeway_s=LEEWAY_S, max_lifetime_s=LIFETIME_S, clock=lambda: NOW
        )
        self._loop = asyncio.new_event_loop()

    def check(self, data: bytes) -> None:
        credential = _credential(data)
        with contextlib.suppress(MalformedTokenError):
            self._loop.run_until_complete(self._authenticator.id_of(credential))
        try:
            claims = self.authenticate(data)
        except InvalidTokenError as error:
            require(len(str(error)) < 300, "a reason is short")
            return
        if credential == API_KEY:
            return
        require(_is_genuine(credential), "an accepted token is signed by this server, and in time")
        self._check_claims(claims)

    def authenticate(self, data: bytes) -> Claims:
        """
        Raises:
            InvalidTokenError: the credential is not valid.
        """
        return self._loop.run_until_complete(self._authenticator.authenticate(_credential(data)))

    def _check_claims(self, claims: Claims) -> None:
        """What an accepted token says can be shown to others."""
        shown = {"user": claims.user, "device": claims.device, "id": claims.token_id}
        json_response(200, {**shown, "rooms": claims.rooms})
        repr(claims)
        if claims.user is not None:
            claims.user.encode()
            require(
                claims.allows_room(user_room("other-user")) == _opens_other(claims),
                "own rooms only",
            )
        require(claims.expires_at is not None, "every token ends")

    def close(self) -> None:
        self._loop.close()


def _opens_other(claims: Claims) -> bool:
    other = "user_other-user"
    return claims.user == "other-user" or any(
        pattern == other or (pattern.endswith("*") and other.startswith(pattern[:-1]))
        for pattern in claims.rooms
    )


def _credential(data: bytes) -> str:
    return _signed(data[1:]) if data.startswith(SIGNED) else data.decode("latin-1")


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _signed(parts: bytes) -> str:
    header, _, payload = parts.partition(b"\n")
    text = _base64(header) + b"." + _base64(payload)
    signature = hmac.new(SECRET.encode(), text, hashlib.sha256).digest()
    return (text + b"." + _base64(signature)).decode()


def _is_genuine(token: str) -> bool:
    """RFC 7515, section 5.2, by hand."""
    text, _, signature = token.rpartition(".")
    header, _, payload = text.partition(".")
    expected = hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).digest()
    given = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    members = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    algorithm = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))["alg"]
    is_signed = hmac.compare_digest(expected, given) and algorithm == "HS256"
    return is_signed and int(members["exp"]) > NOW - LEEWAY_S - 1


TARGET = TokenTarget
