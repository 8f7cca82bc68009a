"""The public keys of an identity provider: a JWK set (RFC 7517) at an address."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...errors import ConfigurationError
from ...redaction import redacted
from ..config import is_loopback

if TYPE_CHECKING:
    import jwt

logger = logging.getLogger(__name__)

REFRESH_AFTER_S = 300.0
"""Keys older than this are fetched anew, while the old ones still count."""

MAX_AGE_S = 3600.0
"""Keys older than this do not count: one that was withdrawn must not live on."""

MIN_REFETCH_S = 10.0
"""A key that is not there is looked for once in this time, however many ask for it."""

TIMEOUT_S = 5.0
MAX_BYTES = 1024 * 1024
MAX_KEYS = 100

ALGORITHMS = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
"""What a token may be signed with, and the type of key (RFC 7518, section 6.1; RFC 8037)."""


class KeysUnavailableError(Exception):
    """The keys cannot be had now: nobody can say whether the token is good."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key of a JWK set, and the SHA-256 of its public members, whatever its ``kid``."""

    jwk: jwt.PyJWK
    digest: bytes


class Jwks:
    """The keys at one address.

    Attributes:
        changes: how often what was fetched were other keys than before.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._keys: list[PublicKey] = []
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self.changes = 0

    async def find(self, algorithm: str, kid: str | None) -> list[PublicKey]:
        """The keys that may have signed such a token; empty if there is none.

        Raises:
            KeysUnavailableError: nobody knows.
        """
        if self._age_s() > MAX_AGE_S:
            await self._fetch()
        elif self._age_s() > REFRESH_AFTER_S and self._may_try():
            self._begin()
        found = self._matching(algorithm, kid)
        if not found and self._may_try():
            await self._fetch()
            found = self._matching(algorithm, kid)
        if self._age_s() > MAX_AGE_S:
            raise KeysUnavailableError(redacted(self._url))
        return found

    def refresh(self) -> None:
        """Begin to fetch the keys again, if they were fetched before and are due. A key that was
        withdrawn stops counting so, also while no token asks for keys."""
        if REFRESH_AFTER_S < self._age_s() < math.inf and self._may_try():
            self._begin()

    def has(self, digest: bytes) -> bool:
        """Whether a key is among those that were last fetched."""
        return any(key.digest == digest for key in self._keys)

    def cancel(self) -> None:
        """Stop fetching: nobody asks for these keys any more."""
        if self._fetching is not None:
            self._fetching.cancel()

    def _age_s(self) -> float:
        return self._clock() - self._fetched_at

    def _may_try(self) -> bool:
        return self._clock() - self._tried_at >= MIN_REFETCH_S

    def _matching(self, algorithm: str, kid: str | None) -> list[PublicKey]:
        kind = ALGORITHMS[algorithm]
        return [
            key
            for key in self._keys
            if key.jwk.key_type == kind
            and key.jwk.algorithm_name == algorithm
            and (kid is None or key.jwk.key_id == kid)
        ]

    def _begin(self) -> asyncio.Task[None]:
        if self._fetching is None or self._fetching.done():
            self._tried_at = self._clock()
            self._fetching = asyncio.create_task(self._load())
        return self._fetching

    async def _fetch(self) -> None:
        is_under_way = self._fetching is not None and not self._fetching.done()
        if is_under_way or self._may_try():
            await asyncio.shield(self._begin())

    async def _load(self) -> None:
        import httpx

        from ... import network

        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                network.async_client(httpx.URL(self._url), TIMEOUT_S) as client,
                client.stream("GET", self._url, headers={"Accept": "application/json"}) as answer,
            ):
                if answer.status_code != 200:
                    raise ValueError(f"answered {answer.status_code}")
                content = await network.read_body(answer, MAX_BYTES)
            keys = parse_keys(content)
        except (
            ConfigurationError,
            httpx.HTTPError,
            httpx.InvalidURL,
            ValueError,
            RecursionError,
            OSError,
        ) as error:
            reason = redacted(str(error)) or type(error).__name__
            logger.error(
                "fetching JWKS failed, keeping previous keys for at most %g s: %s: %s",
                MAX_AGE_S, redacted(self._url), reason,
            )  # fmt: skip
        else:
            if {key.digest for key in keys} != {key.digest for key in self._keys}:
                self.changes += 1
            self._keys, self._fetched_at = keys, self._clock()


def parse_keys(content: bytes) -> list[PublicKey]:
    """Return the usable keys of a JWK set; others are ignored (RFC 7517, section 5).

    Raises:
        ValueError, RecursionError: it is no JWK set.
    """
    import jwt

    document: Any = json.loads(content)
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise ValueError("is no JWK set")  # noqa: TRY004 - what came is wrong, not a caller
    keys = []
    for member in members[:MAX_KEYS]:
        if not isinstance(member, dict) or member.get("use", "sig") != "sig":
            continue
        if member.get("kty") not in ALGORITHMS.values():
            continue  # a shared secret has no place in public
        try:
            keys.append(PublicKey(jwt.PyJWK(member), _digest_of(member)))
        except Exception:  # noqa: BLE001 - of a key with the algorithm "none", NotImplementedError
            kid = redacted(repr(member.get("kid")))
            logger.warning("JWKS key ignored: it cannot be used: kid=%s", kid)
    return keys


def _digest_of(member: Mapping[str, Any]) -> bytes:
    """In the manner of a JWK thumbprint (RFC 7638): of what makes the key, not of what names it."""
    parts = {name: member[name] for name in ("kty", "crv", "e", "n", "x", "y") if name in member}
    return sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def check_jwks_url(url: str) -> None:
    """
    Raises:
        ConfigurationError: it is no address, or others on the way could change what it holds.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        ok = bool(host) and (
            parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
        )
    except ValueError:
        ok = False
    if not ok:
        raise ConfigurationError(
            "--jwks-urls (SYNAP_REALTIME_JWKS_URLS, or jwks_urls in the file of --keys-file): "
            "expected "
            f"https://…, got {redacted(url)!r}"
        )
