"""Verify credentials: return the claims of a key or a token, or the reason why it is invalid."""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, TypeGuard

from ...errors import ConfigurationError, InvalidArgumentError
from ...extras import lacks
from ...protocol.rooms import parse_pattern
from ...tokens import SCOPES, parse_device
from .claims import Claims
from .jwks import ALGORITHMS, Jwks, KeysUnavailableError
from .keys import KeyRing, Keys

MAX_TOKEN_BYTES = 8 * 1024
MAX_PATTERNS = 1000
_NOTHING: Mapping[str, Any] = MappingProxyType({})
MAX_TEXT = 512
"""The longest user id and token id, in characters."""

LEEWAY_S = 10.0
"""The difference between two clocks that is tolerated."""

MAX_LIFETIME_S = 90 * 86_400.0
"""The default for the longest lifetime of a token. Revocations are kept for as long."""


class InvalidTokenError(Exception):
    """The credential is not valid. The message begins with the cause ("token expired", "invalid
    signature", "audience mismatch") and contains nothing of the token but names of claims.

    Attributes:
        expired: the token was valid before, so the client needs a new one.
        user: for the log, the ``sub`` of a token whose signature is valid; else None.
    """

    def __init__(self, reason: str, *, expired: bool = False, user: str | None = None) -> None:
        super().__init__(reason)
        self.expired = expired
        self.user = user


class MalformedTokenError(Exception):
    """The text is not a complete JWT. The message shows nothing of it."""


class VerificationKey(NamedTuple):
    """A key that may have signed a token, prepared for its one algorithm.

    Attributes:
        algorithm: ``Hs256``, or an ``Algorithm`` of PyJWT.
        key: of the algorithm.
        anchor: see :attr:`Claims.anchor`.
    """

    algorithm: Any
    key: Any
    anchor: bytes


class SignedToken(NamedTuple):
    """The parts of a JWT (RFC 7515, section 7.1). The signature is not verified yet."""

    header: Mapping[str, Any]
    payload: bytes
    signing_input: bytes
    signature: bytes


class Authenticator:
    """Verify API keys and tokens with the keys of this server and of identity providers."""

    def __init__(
        self,
        keys: KeyRing,
        *,
        issuer: str | None = None,
        audience: str | None = None,
        leeway_s: float = LEEWAY_S,
        max_lifetime_s: float = MAX_LIFETIME_S,
        clock: Callable[[], float] = time.time,
        keep_raw_claims: bool = True,
    ) -> None:
        """
        Args:
            issuer, audience: the ``iss`` and ``aud`` that tokens must have. Without an audience, a
                token that has an ``aud`` is rejected: it was minted for another service.
            max_lifetime_s: a token that is valid for longer, counted from ``iat`` or else from now,
                is rejected.
            clock: returns seconds since 1970.
            keep_raw_claims: an authorizer reads all claims of a token.

        Raises:
            ConfigurationError: tokens can be verified only with PyJWT, which is not installed.
        """
        self._ring = keys
        self.keys = keys.current
        """The current keys."""
        self._issuer = issuer
        self._audience = audience
        self._leeway_s = leeway_s
        self._max_lifetime_s = max_lifetime_s
        self._clock = clock
        self._keep_raw_claims = keep_raw_claims
        self._prepared_for: Keys | None = None
        self._prepared: Sequence[VerificationKey] = ()
        self._jwks: dict[str, Jwks] = {}
        self._changes = 0
        current = keys.current()
        if current.jwks_urls or not all(map(_PLAIN_SECRET.fullmatch, current.token_secrets)):
            try:
                import jwt  # noqa: F401
            except ImportError as error:
                raise ConfigurationError(lacks("a server with token keys", error, "auth")) from None
        if current.jwks_urls:
            # Importing the HTTP client takes half a second. At the first token it would block the
            # event loop.
            from ... import network  # noqa: F401

    async def authenticate(self, credential: str) -> Claims:
        """Return the claims of an API key or a token.

        Raises:
            InvalidTokenError: the credential is invalid.
            KeysUnavailableError: the signing keys are temporarily unavailable.
        """
        if len(credential) > MAX_TOKEN_BYTES:
            raise InvalidTokenError(f"token too long: more than {MAX_TOKEN_BYTES} bytes")
        keys = self._ring.current()
        if (claims := keys.claims_for_key(credential)) is not None:
            return claims
        return await self.authenticate_token(credential)

    async def authenticate_token(self, token: str) -> Claims:
        """Return the claims of a token, which is no API key.

        Raises:
            InvalidTokenError, KeysUnavailableError: as :meth:`authenticate`.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidTokenError(f"token too long: more than {MAX_TOKEN_BYTES} bytes")
        if token.count(".") != 2:
            raise InvalidTokenError("unknown key: not a key of this server, and not a JWT")
        signed = _parse_token(token)
        if "crit" in signed.header:  # RFC 7515, section 4.1.11
            raise InvalidTokenError("unsupported header parameter 'crit'")
        anchor = _find_signer(signed, await self._candidates(self._ring.current(), signed.header))
        if anchor is None:
            raise InvalidTokenError("invalid signature: not signed by a key of this server")
        members = _parse_object(signed.payload)
        if members is None:
            raise InvalidTokenError("malformed token: not a JWT")
        return self._parse_claims(members, token, anchor)

    async def id_of(self, token: str) -> str | None:
        """Return the id that revokes a token: its ``jti``, else a hash of the signed part.

        The signature is verified, unless the signing keys are unavailable. The token may be
        expired, not valid yet, or for another audience.

        Returns:
            None if no key of this server has signed the token. Such a token is invalid anyway.

        Raises:
            MalformedTokenError: the text is not a JWT.
        """
        keys = self._ring.current()
        if not (keys.token_secrets or keys.jwks_urls):
            return None
        try:
            signed = _parse_token(token)
        except InvalidTokenError:
            signed = None
        members = None if signed is None else _parse_object(signed.payload)
        if signed is None or members is None or not signed.signature:
            raise MalformedTokenError("expected a whole JWT: header, payload and signature")
        try:
            if _find_signer(signed, await self._candidates(keys, signed.header)) is None:
                return None
        except InvalidTokenError:
            return None
        except KeysUnavailableError:
            pass  # an identity provider that is down must not prevent a revocation
        return _token_id(members, token)

    def refresh(self) -> bool:
        """Reload a changed key file, and start to fetch old JWK sets.

        Call this a few times a second.

        Returns:
            Whether a key may have been removed since the last call, so that :meth:`vouches_for` has
            to be checked again.
        """
        has_changed = self._ring.refresh()
        if has_changed:
            urls = self._ring.current().jwks_urls
            for url in [url for url in self._jwks if url not in urls]:
                self._jwks.pop(url).cancel()
        for jwks in self._jwks.values():
            jwks.refresh()
        before, self._changes = self._changes, sum(jwks.changes for jwks in self._jwks.values())
        return has_changed or self._changes != before

    def vouches_for(self, claims: Claims) -> bool:
        """Return whether the key that verified these claims is still trusted with their scopes."""
        if claims.anchor is None:
            return True  # on a server without keys
        keys = self._ring.current()
        if claims.key_name is not None:
            now = keys.api_keys.get(claims.anchor)
            return now is not None and now.scopes >= claims.scopes
        return claims.anchor in keys.token_secrets.values() or any(
            jwks.has(claims.anchor) for url, jwks in self._jwks.items() if url in keys.jwks_urls
        )

    async def close(self) -> None:
        for jwks in self._jwks.values():
            jwks.cancel()

    async def _candidates(self, keys: Keys, header: Mapping[str, Any]) -> Sequence[VerificationKey]:
        """Return the keys that may have signed a token with this header."""
        algorithm = header.get("alg")
        if not isinstance(algorithm, str):
            raise InvalidTokenError("malformed token: 'alg' is not a string")
        # The algorithm selects the type of key, and no key is used with another algorithm. This
        # prevents algorithm confusion: a token that is signed by HS256 with a public key as the
        # secret (RFC 8725, section 3.1).
        if algorithm == "HS256":
            return self._shared_keys(keys)
        if algorithm in ALGORITHMS:
            return await self._public_keys(keys, algorithm, header.get("kid"))
        raise InvalidTokenError(f"unsupported algorithm: expected HS256, {', '.join(ALGORITHMS)}")

    def _shared_keys(self, keys: Keys) -> Sequence[VerificationKey]:
        """Return the token secrets, which are prepared once and not for each token."""
        if keys is not self._prepared_for:
            self._prepared = [
                VerificationKey(Hs256, Hs256.prepare(_secret_bytes(secret)), digest)
                for secret, digest in keys.token_secrets.items()
            ]
            self._prepared_for = keys
        return self._prepared

    async def _public_keys(
        self, keys: Keys, algorithm: str, kid: object
    ) -> Sequence[VerificationKey]:
        if kid is not None and not isinstance(kid, str):
            raise InvalidTokenError("malformed token: 'kid' is not a string")
        found: list[VerificationKey] = []
        unavailable: KeysUnavailableError | None = None
        for url in keys.jwks_urls:
            if (jwks := self._jwks.get(url)) is None:
                jwks = self._jwks[url] = Jwks(url)
            try:
                found += [
                    VerificationKey(key.jwk.Algorithm, key.jwk.key, key.digest)
                    for key in await jwks.find(algorithm, kid)
                ]
            except KeysUnavailableError as error:
                unavailable = error
        if not found and unavailable is not None:
            raise unavailable
        return found

    def _parse_claims(self, members: Mapping[str, Any], token: str, anchor: bytes) -> Claims:
        """Return the claims of a token whose signature was verified."""
        try:
            user = _optional_text(members, "sub")
            if members.get("exp") is None:
                raise InvalidTokenError("missing claim 'exp'", user=user)
            issued_at, expires_at = _numeric_date(members, "iat"), _numeric_date(members, "exp")
            self._check_times(issued_at, _numeric_date(members, "nbf"), expires_at, user)
            self._check_issuer(members, user)
            self._check_audience(members, user)
            self._check_lifetime(issued_at, expires_at)
            return Claims(
                user=user,
                rooms=_patterns(members.get("rooms")),
                scopes=_scopes(members.get("scope")),
                device=None if members.get("device") is None else parse_device(members["device"]),
                token_id=_optional_text(members, "jti") or _hash(token),
                issued_at=issued_at,
                expires_at=expires_at,
                raw_claims=members if self._keep_raw_claims else _NOTHING,
                anchor=anchor,
            )
        except InvalidArgumentError as error:
            reason = f"invalid claim {error.field!r}: {_problem(error)}"
            raise InvalidTokenError(reason) from None

    def _check_times(
        self,
        issued_at: float | None,
        begins_at: float | None,
        expires_at: float | None,
        user: str | None,
    ) -> None:
        """Check that a token is valid now (RFC 7519, sections 4.1.4 to 4.1.6)."""
        now = self._clock()
        latest = now + self._leeway_s
        if (issued_at or 0.0) > latest or (begins_at or 0.0) > latest:
            raise InvalidTokenError(
                "token not valid yet: 'nbf' or 'iat' is in the future", user=user
            )
        if expires_at is not None and expires_at <= now - self._leeway_s:
            raise InvalidTokenError("token expired", expired=True, user=user)

    def _check_issuer(self, members: Mapping[str, Any], user: str | None) -> None:
        if self._issuer is None:
            return
        if "iss" not in members:
            raise InvalidTokenError("missing claim 'iss'", user=user)
        if members["iss"] != self._issuer:
            raise InvalidTokenError(
                "issuer mismatch: not the 'iss' that this server expects", user=user
            )

    def _check_audience(self, members: Mapping[str, Any], user: str | None) -> None:
        """Check ``aud``: a string or a list of strings (RFC 7519, section 4.1.3)."""
        audience = members.get("aud")
        if self._audience is None:
            if audience:
                raise InvalidTokenError(
                    "audience mismatch: the token has an 'aud', and this server expects none",
                    user=user,
                )
            return
        if not audience:
            raise InvalidTokenError("missing claim 'aud'", user=user)
        names = [audience] if isinstance(audience, str) else audience
        if not _is_texts(names) or self._audience not in names:
            raise InvalidTokenError(
                "audience mismatch: not the 'aud' that this server expects", user=user
            )

    def _check_lifetime(self, issued_at: float | None, expires_at: float | None) -> None:
        """Reject a token that would outlive its revocation.

        See :meth:`ServerSettings.revocation_retention_s`.
        """
        begins_at = self._clock() + self._leeway_s if issued_at is None else issued_at
        if expires_at is not None and expires_at - begins_at > self._max_lifetime_s:
            raise InvalidTokenError(
                f"token lifetime too long: more than {self._max_lifetime_s:g} s "
                "(--token-max-lifetime-s)"
            )


class Hs256:
    """HMAC with SHA-256 (RFC 7518, section 3.2), in place of PyJWT's ``Algorithm``.

    Loading PyJWT and its cryptography takes a tenth of the time that the server takes to start, and
    most servers need neither.
    """

    @staticmethod
    def prepare(key: bytes) -> hmac.HMAC:
        """Return the state that has read the key: setting it up takes longer than a signature."""
        return hmac.new(key, digestmod="sha256")

    @staticmethod
    def verify(message: bytes, key: hmac.HMAC, signature: bytes) -> bool:
        computed = key.copy()
        computed.update(message)
        return hmac.compare_digest(computed.digest(), signature)


_PLAIN_SECRET = re.compile(r"[A-Za-z0-9_\-+/=.~]+")
"""A secret that is no public key: PEM and SSH have spaces, JWK quotes, DER control characters."""


def _secret_bytes(secret: str) -> bytes:
    """Return the bytes of a secret.

    Raises:
        InvalidTokenError: the secret is a public key. Everyone could sign with it, see RFC 8725,
            section 2.1.
    """
    if _PLAIN_SECRET.fullmatch(secret):
        return secret.encode()
    import jwt

    try:
        key: bytes = jwt.get_algorithm_by_name("HS256").prepare_key(secret)
    except jwt.InvalidKeyError:
        raise InvalidTokenError("unsupported algorithm for the key") from None
    return key


@lru_cache(64)  # the headers of one issuer are mostly the same
def _decode_header(segment: str) -> Mapping[str, Any]:
    """Decode the header of a JWT (RFC 7515, section 4).

    Raises:
        ValueError: it is not a JSON object; its ``kid`` is not a string (section 4.1.4); or it says
            that the payload is not base64url (RFC 7797).
    """
    header = _parse_object(_decode_segment(segment))
    if header is None or not isinstance(header.get("kid", ""), str) or not header.get("b64", True):
        raise ValueError("not the header of a JWT")
    return header


def _parse_token(token: str) -> SignedToken:
    """Split a JWT (RFC 7515, section 7.1) and decode its parts.

    Raises:
        InvalidTokenError: it has not three parts, or one is malformed.
    """
    try:
        head, payload, signature = token.split(".")
        return SignedToken(
            _decode_header(head),
            _decode_segment(payload),
            f"{head}.{payload}".encode(),
            _decode_segment(signature),
        )
    except ValueError:
        raise InvalidTokenError("malformed token: not a JWT") from None


def _decode_segment(segment: str) -> bytes:
    """Decode a segment of a JWT: base64url (RFC 7515, section 2).

    Some identity providers do not remove the padding. Any other spelling of the same bytes is
    rejected, so that no token has two.

    Raises:
        ValueError: it is not base64url.
    """
    padded = segment if segment.endswith("=") else segment + "=" * (-len(segment) % 4)
    encoded = padded.encode()
    decoded = binascii.a2b_base64(encoded.translate(_TO_BASE64))
    if binascii.b2a_base64(decoded, newline=False).translate(_FROM_BASE64) != encoded:
        raise ValueError("not base64url")
    return decoded


_TO_BASE64, _FROM_BASE64 = bytes.maketrans(b"-_", b"+/"), bytes.maketrans(b"+/", b"-_")


def _find_signer(token: SignedToken, candidates: Sequence[VerificationKey]) -> bytes | None:
    """Return the anchor of the key that has signed a token; None if none of them has."""
    for algorithm, key, anchor in candidates:
        if algorithm.verify(token.signing_input, key, token.signature):
            return anchor
    return None


def _parse_object(content: bytes) -> Mapping[str, Any] | None:
    """Return the members of a JSON object; None if the bytes are not one in UTF-8."""
    try:
        text = content.decode()
        # Most have no white space around them, which raw_decode() does not look for.
        members, end = _JSON.raw_decode(text)
        if end != len(text):
            members = _JSON.decode(text)
    except (ValueError, RecursionError):
        return None
    return members if isinstance(members, dict) else None


_JSON = json.JSONDecoder()


def _problem(error: InvalidArgumentError) -> str:
    """Return the problem without the value, which may be secret."""
    return error.problem.partition("; got ")[0]


def _token_id(members: Mapping[str, Any], token: str) -> str:
    try:
        return _optional_text(members, "jti") or _hash(token)
    except InvalidArgumentError:  # such a token is invalid anyway
        return _hash(token)


def _hash(token: str) -> str:
    """Return a hash of the token without its signature.

    Anyone can compute a second valid signature from an ES256 signature. With the signature in the
    hash, that would evade a revocation.
    """
    token = token.rpartition(".")[0]
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _optional_text(members: Mapping[str, Any], name: str) -> str | None:
    value = members.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise InvalidArgumentError(name, f"expected a string of 1 to {MAX_TEXT} characters")
    # UTF-8 cannot encode a lone surrogate, so no frame or log line could contain the value.
    if _UNPRINTABLE.search(value):
        raise InvalidArgumentError(name, "expected no control characters and no lone surrogates")
    return value


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def _numeric_date(members: Mapping[str, Any], name: str) -> float | None:
    if name not in members:
        return None
    value = members[name]
    is_number = type(value) is int or type(value) is float  # not bool; exact types are faster
    if not is_number or not -math.inf < value < math.inf:
        raise InvalidArgumentError(name, "expected seconds since 1970")
    if abs(value) < _MAX_SECONDS:
        return float(value)
    return _MAX_SECONDS if value > 0 else -_MAX_SECONDS  # an integer may be larger than any float


_MAX_SECONDS = 1e11  # 3,000 years


def _patterns(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_PATTERNS:
        raise InvalidArgumentError("rooms", "expected a list")
    return tuple(parse_pattern(pattern) for pattern in value)


def _is_texts(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _scopes(value: object) -> frozenset[str]:
    """Parse a ``scope`` claim (RFC 8693, section 4.2). Unknown scopes are ignored."""
    if value is None:
        value = "subscribe"
    if isinstance(value, str):
        return _scopes_in(value)
    if not _is_texts(value):
        raise InvalidArgumentError("scope", "expected words separated by spaces")
    return _known(value)


@lru_cache(64)  # most tokens have the same
def _scopes_in(text: str) -> frozenset[str]:
    return _known(text.split())


def _known(words: Sequence[str]) -> frozenset[str]:
    scopes = frozenset(words) & _ALL_SCOPES
    return _KNOWN.setdefault(scopes, scopes)


_ALL_SCOPES = frozenset(SCOPES)
_KNOWN: dict[frozenset[str], frozenset[str]] = {}  # equal sets share one object
