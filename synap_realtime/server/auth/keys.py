"""The keys that a server trusts: those of its settings, and those of a file that is reloaded."""

from __future__ import annotations

import logging
import re
import stat
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pydantic

from ...errors import ConfigurationError, InvalidArgumentError
from ...redaction import redacted
from ...tokens import KEYGEN_COMMAND, check_secret, parse_scopes
from ..config import FileWatcher
from .claims import Claims
from .jwks import check_jwks_url

logger = logging.getLogger(__name__)


class ApiKey(pydantic.BaseModel):
    """An API key and its scope."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    key: str = pydantic.Field(repr=False)
    scope: str = "broadcast"


class KeyFile(pydantic.BaseModel):
    """The content of the file of ``--keys-file`` (TOML).

    ::

        token_secrets = ["…"]              # HS256, newest first; older ones are being rotated out
        jwks_urls = ["https://…"]          # RS256, ES256, EdDSA

        [api_keys]                         # by name; the name is used in logs and limits
        jobs = "…"                         # scope: broadcast
        prometheus = { key = "…", scope = "metrics" }
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    token_secrets: tuple[str, ...] = pydantic.Field(default=(), repr=False)
    jwks_urls: tuple[str, ...] = ()
    api_keys: Mapping[str, str | ApiKey] = pydantic.Field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys that are trusted at one moment. The repr shows none of them.

    Attributes:
        token_secrets: the secrets that may have signed a token, each with its SHA-256.
        jwks_urls: where identity providers publish their keys.
        api_keys: the claims of each API key, by the SHA-256 of the key.
    """

    token_secrets: Mapping[str, bytes]
    jwks_urls: tuple[str, ...]
    api_keys: Mapping[bytes, Claims]

    def __repr__(self) -> str:
        return (
            f"Keys(token_secrets={len(self.token_secrets)}, jwks_urls={len(self.jwks_urls)}, "
            f"api_keys={len(self.api_keys)})"
        )

    def __bool__(self) -> bool:
        return bool(self.token_secrets or self.jwks_urls or self.api_keys)

    def claims_for_key(self, credential: str) -> Claims | None:
        """Return the claims of an API key; None if it is not a key of this server.

        The key is looked up by its digest, so that the duration reveals nothing about it.
        """
        return self.api_keys.get(digest_of(credential))


class KeyRing:
    """The current keys of the settings and of the file.

    A ring that has keys never becomes empty, because a server without keys does not authenticate. A
    key file that is missing, unreadable, malformed or without any key keeps the previous keys. To
    run without keys, restart without them.
    """

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
            ConfigurationError: names the key that cannot be used, or the problem of the file. The
                message shows no key.
        """
        self._own = KeyFile(
            token_secrets=tuple(token_secrets), jwks_urls=tuple(jwks_urls), api_keys=api_keys or {}
        )
        self._file = file
        self._watched = FileWatcher(*([file] if file else []), settles=True, clock=clock)
        try:
            self._keys = _merge(self._own, KeyFile())
        except ConfigurationError as error:
            raise ConfigurationError(_with_variable(str(error))) from None
        if file is not None:
            self._keys = self._read(file)
        self._problem: tuple[object, str] | None = None

    def current(self) -> Keys:
        """Return the keys that were last read. Reads no file: see :meth:`refresh`."""
        return self._keys

    def refresh(self) -> bool:
        """Reload the key file if it has changed. Call this a few times a second.

        A reload that fails keeps the previous keys, writes one log line for each state of the file,
        and is tried again at the next call.

        Returns:
            Whether the keys have changed.
        """
        if self._file is None or not self._watched.have_changed():
            return False
        try:
            keys = self._read(self._file)
        except ConfigurationError as error:
            problem = (self._watched.state, str(error))
            if problem != self._problem:
                logger.error("keys file reload failed, keeping previous keys: %s", error)
            self._problem = problem
            self._watched.report_again()  # the file may be readable a moment later
            return False
        self._problem = None
        if keys == self._keys:
            return False
        self._keys = keys
        logger.info("keys file reloaded: %s: %r", redacted(str(self._file)), keys)
        return True

    def _read(self, file: Path) -> Keys:
        """Read the file, and merge its keys with those of the settings.

        Raises:
            ConfigurationError: the file cannot be read, is malformed, or has no keys.
        """
        shown = redacted(str(file))
        try:
            return _merge(self._own, _parse(_content_of(file)))
        except FileNotFoundError as error:
            problem = f"{error.strerror}; {_CREATE_HINT}"
        except OSError as error:
            problem = f"{error.strerror}; check its mode and its owner"
        except (ValueError, RecursionError) as error:
            problem = _without_secrets(error)
        except ConfigurationError as error:
            problem = str(error)
        raise ConfigurationError(f"--keys-file (SYNAP_REALTIME_KEYS_FILE): {shown}: {problem}")


def digest_of(text: str) -> bytes:
    """Return the SHA-256 of a key, by which it is looked up."""
    return sha256(text.encode(errors="surrogatepass")).digest()


MAX_FILE_BYTES = 1024 * 1024
"""A key file is read whole. A larger file is something else that was named by mistake."""


def _content_of(file: Path) -> str:
    if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe would block
        raise ConfigurationError(f"not a regular file; {_CREATE_HINT}")
    with file.open("rb") as opened:
        content = opened.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ConfigurationError(f"larger than {MAX_FILE_BYTES} bytes; {_CREATE_HINT}")
    return content.decode()


def _parse(content: str) -> KeyFile:
    keys = KeyFile.model_validate(tomllib.loads(content))
    if not (keys.token_secrets or keys.jwks_urls or keys.api_keys):
        raise ConfigurationError(
            f"the file has no keys; {_CREATE_HINT}, or start without --keys-file"
        )
    return keys


_CREATE_HINT = f"create one with: {KEYGEN_COMMAND} --out keys.toml"


def _without_secrets(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return redacted(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
    if isinstance(error, tomllib.TOMLDecodeError):
        return redacted(_QUOTED.sub("…", str(error)))  # the error may quote a secret of the file
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else "malformed"


_QUOTED = re.compile(r"\('.*?'\S*\)|'[^']{2,}'|\"[^\"]{2,}\"")


def _with_variable(problem: str) -> str:
    """Name the environment variable of a key that did not come from the file."""
    for kind in ("token secret", "API key"):
        if problem.startswith(kind):
            return f"SYNAP_REALTIME_{kind.upper().replace(' ', '_')}S: {problem}"
    return problem


def _merge(own: KeyFile, file: KeyFile) -> Keys:
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
            problem = (
                f"{error.field}: {error.problem.partition('; got ')[0]}"  # the value may be the key
            )
            raise ConfigurationError(f"API key {redacted(name)!r}: {problem}") from None
        check_secret(f"API key {redacted(name)!r}", key)
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigurationError(
                f"API key {redacted(name)!r}: expected ASCII without spaces, because an HTTP "
                "header carries it"
            )
    urls = own.jwks_urls + file.jwks_urls
    for url in urls:
        check_jwks_url(url)
    digests = {name: digest_of(each.key) for name, each in api_keys.items()}
    claims = {
        digest: Claims(rooms=("*",), scopes=scopes[name], key_name=name, anchor=digest)
        for name, digest in digests.items()
    }
    return Keys({secret: digest_of(secret) for secret in secrets}, urls, claims)
