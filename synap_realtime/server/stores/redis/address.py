"""Parse the URL of a Redis store."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from ....errors import ConfigurationError
from ..base import OPTION

DEFAULT_PREFIX = "synap"

EXPECTED = f"{OPTION}: expected redis://[user:password@]host[:port][/database][?prefix=name]"

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_PORT = 6379
_TLS = {"rediss": True, "valkeys": True, "redis": False, "valkey": False}

SCHEMES = frozenset(_TLS)


class RedisAddress(NamedTuple):
    """Where the store is, and how to log in.

    Attributes:
        prefix: what the names of all keys begin with.
    """

    host: str
    port: int
    database: int
    user: str | None
    password: str | None
    tls: bool
    prefix: str

    def __repr__(self) -> str:
        return f"RedisAddress({self.shown})"

    @property
    def shown(self) -> str:
        """The address for logs, without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.database}"


def parse_address(url: str) -> RedisAddress:
    """Parse the URL of a Redis store. Errors never repeat it: it may contain a password.

    Raises:
        ConfigurationError: names the part that is invalid.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigurationError(f"{EXPECTED}; not a URL, or the port is no number") from None
    if not parts.hostname:
        raise ConfigurationError(f"{EXPECTED}; the host is missing")
    if parts.fragment:
        raise ConfigurationError(f"{EXPECTED}; in a user or password, write %23 for '#'")
    database = parts.path.removeprefix("/")
    if database and not (database.isascii() and database.isdigit() and len(database) < 6):
        raise ConfigurationError(f"{EXPECTED}; the database is no number")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = options.pop("prefix", DEFAULT_PREFIX)
    if options:
        raise ConfigurationError(f"{EXPECTED}; the only option after '?' is prefix=")
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(
            f"{EXPECTED}; prefix: expected 1 to 64 characters of A-Z a-z 0-9 _ . : -"
        )
    return RedisAddress(
        parts.hostname,
        port or _PORT,
        int(database or 0),
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        _TLS[parts.scheme],
        prefix,
    )
