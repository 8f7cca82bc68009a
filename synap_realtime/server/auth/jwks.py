"""Fetch the public keys of an identity provider: a JWK set (RFC 7517) at a URL."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ...errors import ConfigurationError
from ...loopback import is_loopback
from ...redaction import redacted

if TYPE_CHECKING:
    import jwt

logger = logging.getLogger(__name__)

REFRESH_AFTER_S = 300.0
"""Keys older than this are fetched again. Until then the old keys stay in use."""

MAX_AGE_S = 3600.0
"""Keys older than this are not used, because one of them may have been withdrawn."""

MIN_REFETCH_S = 10.0
"""The shortest time between two fetches. Tokens with unknown keys cannot cause more of them."""

TIMEOUT_S = 5.0
MAX_BYTES = 1024 * 1024
MAX_KEYS = 100

ALGORITHMS = {"RS256": "RSA", "ES256": "EC", "EdDSA": "OKP"}
"""The signature algorithms, each with its key type (RFC 7518, section 6.1; RFC 8037)."""


class KeysUnavailableError(Exception):
    """The signing keys are temporarily unavailable, so no token can be accepted or rejected."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key of a JWK set, and the SHA-256 of its public members without ``kid``."""

    jwk: jwt.PyJWK
    digest: bytes


class Jwks:
    """The keys at one URL.

    Attributes:
        changes: how often a fetch has returned keys that differ from the ones before.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._keys: list[PublicKey] = []
        self._by_id: Mapping[tuple[str, str | None], list[PublicKey]] = {}  # of self._keys
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self.changes = 0

    async def find(self, algorithm: str, kid: str | None) -> list[PublicKey]:
        """Return the keys that may have signed such a token; empty if there are none.

        Raises:
            KeysUnavailableError: there are no current keys, and they cannot be fetched.
        """
        found = self._by_id.get((algorithm, kid), [])
        age_s = self._age_s()
        if found and age_s <= REFRESH_AFTER_S:
            return found
        if age_s > MAX_AGE_S:
            await self._fetch()
        elif age_s > REFRESH_AFTER_S and self._can_fetch():
            self._start_fetch()
        found = self._by_id.get((algorithm, kid), [])
        if not found and self._can_fetch():
            await self._fetch()
            found = self._by_id.get((algorithm, kid), [])
        if self._age_s() > MAX_AGE_S:
            raise KeysUnavailableError(redacted(self._url))
        return found

    def refresh(self) -> None:
        """Start to fetch the keys again if they are older than :data:`REFRESH_AFTER_S`.

        This drops a key that was withdrawn even while no token is being verified.
        """
        if REFRESH_AFTER_S < self._age_s() < math.inf and self._can_fetch():
            self._start_fetch()

    def has(self, digest: bytes) -> bool:
        """Return whether a key is among those that were last fetched."""
        return any(key.digest == digest for key in self._keys)

    def cancel(self) -> None:
        """Stop fetching. The URL is no longer configured."""
        if self._fetching is not None:
            self._fetching.cancel()

    def _age_s(self) -> float:
        return self._clock() - self._fetched_at

    def _can_fetch(self) -> bool:
        return self._clock() - self._tried_at >= MIN_REFETCH_S

    def _start_fetch(self) -> asyncio.Task[None]:
        if self._fetching is None or self._fetching.done():
            self._tried_at = self._clock()
            self._fetching = asyncio.create_task(self._load())
        return self._fetching

    async def _fetch(self) -> None:
        is_fetching = self._fetching is not None and not self._fetching.done()
        if is_fetching or self._can_fetch():
            await asyncio.shield(self._start_fetch())

    async def _load(self) -> None:
        import httpx

        from ... import network

        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                network.async_client(httpx.URL(self._url), TIMEOUT_S) as client,
                client.stream("GET", self._url, headers={"Accept": "application/json"}) as response,
            ):
                if response.status_code != 200:
                    raise ValueError(f"answered {response.status_code}")
                content = await network.read_body(response, MAX_BYTES)
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
                "failed to fetch JWKS from %s: %s; keeping previous keys for at most %g s",
                redacted(self._url), reason, MAX_AGE_S,
            )  # fmt: skip
        else:
            self.replace(keys)

    def replace(self, keys: list[PublicKey]) -> None:
        """Use these keys, which were fetched now."""
        if {key.digest for key in keys} != {key.digest for key in self._keys}:
            self.changes += 1
        self._keys, self._fetched_at = keys, self._clock()
        self._by_id = _by_id(keys)


def parse_keys(content: bytes) -> list[PublicKey]:
    """Return the usable keys of a JWK set. Other keys are ignored (RFC 7517, section 5).

    Raises:
        ValueError, RecursionError: the content is not a JWK set.
    """
    import jwt

    document: Any = json.loads(content)
    members = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(members, list):
        raise ValueError("not a JWK set")  # noqa: TRY004 - the response is wrong, not the caller
    keys = []
    for member in members[:MAX_KEYS]:
        if not isinstance(member, dict) or member.get("use", "sig") != "sig":
            continue
        if member.get("kty") not in ALGORITHMS.values():
            continue  # a published shared secret is not secret
        try:
            keys.append(PublicKey(jwt.PyJWK(member), _digest_of(member)))
        except Exception:  # noqa: BLE001 - NotImplementedError for the algorithm "none"
            kid = redacted(repr(member.get("kid")))
            logger.warning("skipping unusable JWK: kid=%s", kid)
    return keys


def _by_id(keys: Iterable[PublicKey]) -> Mapping[tuple[str, str | None], list[PublicKey]]:
    """Return the keys by their algorithm and ``kid``, and all of an algorithm by None."""
    found: dict[tuple[str, str | None], list[PublicKey]] = {}
    for key in keys:
        algorithm, kid = key.jwk.algorithm_name, key.jwk.key_id
        if key.jwk.key_type == ALGORITHMS.get(algorithm):
            found.setdefault((algorithm, None), []).append(key)
            if isinstance(kid, str):
                found.setdefault((algorithm, kid), []).append(key)
    return found


def _digest_of(member: Mapping[str, Any]) -> bytes:
    """Return a digest of the key material without its name, like a JWK thumbprint (RFC 7638)."""
    parts = {name: member[name] for name in ("kty", "crv", "e", "n", "x", "y") if name in member}
    return sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def check_jwks_url(url: str) -> None:
    """Check that the keys at a URL can be trusted.

    Raises:
        ConfigurationError: it is not a URL, or it is plain HTTP to another machine, where an
            attacker on the path could replace the keys.
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
