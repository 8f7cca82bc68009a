"""The keys that a server trusts: from its settings, and from a file that may change meanwhile."""

from __future__ import annotations

import logging
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pydantic

from ...errors import ConfigurationError, InvalidArgumentError
from ...tokens import MAKE_A_SECRET, check_secret, parse_scopes
from ..watched import Watched
from .claims import Claims
from .jwks import check_jwks_url

logger = logging.getLogger(__name__)


class ApiKey(pydantic.BaseModel):
    """A program's key, and what it is good for."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    key: str = pydantic.Field(repr=False)
    scope: str = "broadcast"


class KeyFile(pydantic.BaseModel):
    """What the file of ``--keys`` (TOML) holds.

    ::

        token_secrets = ["…"]              # HS256; the first ones may be on their way out
        jwks_urls = ["https://…"]          # RS256, ES256, EdDSA

        [api_keys]                         # programs', each with a name for logs and limits
        jobs = "…"                         # may broadcast
        prometheus = { key = "…", scope = "metrics" }
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    token_secrets: tuple[str, ...] = pydantic.Field(default=(), repr=False)
    jwks_urls: tuple[str, ...] = ()
    api_keys: Mapping[str, str | ApiKey] = pydantic.Field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Keys:
    """What is trusted at one moment. Its repr shows none of it.

    Attributes:
        token_secrets: that may have signed a token.
        jwks_urls: where the public keys of others are.
        api_keys: what each program's key is good for, by its SHA-256.
    """

    token_secrets: tuple[str, ...]
    jwks_urls: tuple[str, ...]
    api_keys: Mapping[bytes, Claims]

    def __repr__(self) -> str:
        return (
            f"Keys({len(self.token_secrets)} token secrets, {len(self.jwks_urls)} JWKS addresses, "
            f"{len(self.api_keys)} API keys)"
        )

    def __bool__(self) -> bool:
        return bool(self.token_secrets or self.jwks_urls or self.api_keys)

    def claims_of_key(self, credential: str) -> Claims | None:
        """What an API key may; None if it is none of ours. It is looked for by its digest: how long
        that takes says nothing of the key."""
        return self.api_keys.get(digest_of(credential))


class KeyRing:
    """The keys of the settings and of the file, as they are now."""

    def __init__(
        self,
        *,
        token_secrets: Sequence[str] = (),
        jwks_urls: Sequence[str] = (),
        api_keys: Mapping[str, str] | None = None,
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Raises:
            ConfigurationError: names the key that cannot be used; does not show it.
        """
        self._own = KeyFile(
            token_secrets=tuple(token_secrets), jwks_urls=tuple(jwks_urls), api_keys=api_keys or {}
        )
        self._file = file
        self._watched = Watched(*([file] if file else []), clock=clock)
        self._keys = _together(self._own, _read(file) if file else KeyFile())

    def current(self) -> Keys:
        """The keys now. A file that has become unreadable or wrong is said once, and its last
        good contents count."""
        if self._file is not None and self._watched.have_changed():
            self._reload(self._file)
        return self._keys

    def _reload(self, file: Path) -> None:
        try:
            self._keys = _together(self._own, _read(file))
        except ConfigurationError as error:
            logger.error("the keys stay as they were: %s", error)
        else:
            logger.info("%s has changed: %r", file, self._keys)


def digest_of(text: str) -> bytes:
    """SHA-256 of a key: by it, it is looked for."""
    return sha256(text.encode(errors="surrogatepass")).digest()


def _read(file: Path) -> KeyFile:
    try:
        return KeyFile.model_validate(tomllib.loads(file.read_text()))
    except OSError as error:
        raise ConfigurationError(
            f"--keys {file}: {error.strerror}; make it with: {MAKE_A_SECRET} > {file}"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"--keys {file}: {_without_secrets(error)}") from None


def _without_secrets(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return str(error) if isinstance(error, tomllib.TOMLDecodeError) else "it is not UTF-8"


def _together(own: KeyFile, file: KeyFile) -> Keys:
    secrets = own.token_secrets + file.token_secrets
    for secret in secrets:
        check_secret("token secret", secret)
    api_keys = {
        name: given if isinstance(given, ApiKey) else ApiKey(key=given)
        for name, given in {**own.api_keys, **file.api_keys}.items()
    }
    scopes = {}
    for name, each in api_keys.items():
        key = each.key
        try:
            scopes[name] = frozenset(parse_scopes(each.scope))
        except InvalidArgumentError as error:
            raise ConfigurationError(f"API key {name!r}: {error}") from None
        check_secret(f"API key {name!r}", key)
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigurationError(
                f"API key {name!r}: an HTTP header has to carry it: expected ASCII without spaces"
            )
    urls = own.jwks_urls + file.jwks_urls
    for url in urls:
        check_jwks_url(url)
    claims = {
        digest_of(each.key): Claims(rooms=("*",), scopes=scopes[name], key=name)
        for name, each in api_keys.items()
    }
    return Keys(secrets, urls, claims)
