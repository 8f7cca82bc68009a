"""Parse the URL of a Redis store."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from ....errors import ConfigurationError
from ..base import OPTION
from .durability import Durability

DEFAULT_PREFIX = "synap"

_FORMS = {
    "single": f"{OPTION}: expected redis://[user:password@]host[:port][/database][?option=value]",
    "sentinel": (
        f"{OPTION}: expected "
        "redis+sentinel://[user:password@]host[:port],host[:port]/name[/database][?option=value]"
    ),
    "cluster": (
        f"{OPTION}: expected redis+cluster://[user:password@]host[:port],host[:port][?prefix=name]"
    ),
}

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_HOST = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?"
)
_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}
_OPTIONS = (
    *("prefix", "durability", "ca", "cert", "key"),
    *("sentinel_username", "sentinel_password"),
)
_ESCAPES = (
    "in a user or password, write %23 for '#', %26 for '&', %2F for '/', %3F for '?' and %40 for "
    "'@'"
)

SCHEMES = tuple(
    f"{engine}{tls}{kind}"
    for engine in ("redis", "valkey")
    for tls in ("", "s")
    for kind in ("", "+sentinel", "+cluster")
)
"""The schemes of the URLs: the engine, ``s`` for TLS, and how the primary is found."""


class Peer(NamedTuple):
    """Host and port of a server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Login(NamedTuple):
    """A user and its password.

    Attributes:
        user: None: the default user.
    """

    user: str | None
    password: str

    def __repr__(self) -> str:
        return "Login(…)"


class RedisAddress(NamedTuple):
    """Where the store is, and how to log in.

    Attributes:
        peers: the server, all Sentinels, or some nodes of a cluster.
        service: the name by which the Sentinels know the primary; None without Sentinels.
        prefix: what the names of all keys begin with.
        durability: when a publish is answered.
        ca: a PEM file with the authorities to trust; None: those of the system.
        cert, key: PEM files of the client's certificate and its private key, which may be in the
            first, too; None: without one.
        is_cluster: whether it is a Redis Cluster.
        sentinel_login: how to log in at the Sentinels; None: they have no password.
    """

    peers: tuple[Peer, ...]
    service: str | None
    database: int
    user: str | None
    password: str | None
    tls: bool
    prefix: str
    durability: Durability = Durability.PRIMARY
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    is_cluster: bool = False
    sentinel_login: Login | None = None

    def __repr__(self) -> str:
        return f"RedisAddress({self.shown})"

    @property
    def login(self) -> Login | None:
        """How to log in at the server; None: it has no password."""
        return None if self.password is None else Login(self.user, self.password)

    @property
    def shown(self) -> str:
        """The address for logs, without users and passwords."""
        service = "" if self.service is None else f"/{self.service}"
        database = "" if self.is_cluster else f"/{self.database}"
        return f"{','.join(map(str, self.peers))}{service}{database}"


def parse_address(url: str) -> RedisAddress:
    """Parse the URL of a Redis store. Errors never repeat it: it may contain a password.

    Raises:
        ConfigurationError: names the part that is invalid.
    """
    parts = urlsplit(url)
    engine, _, kind = parts.scheme.partition("+")
    expected = _FORMS[kind or "single"]
    if parts.fragment or url.endswith("#"):
        raise ConfigurationError(f"{expected}; {_ESCAPES}")
    if "@" in parts.path or "@" in parts.query:
        raise ConfigurationError(f"{expected}; {_ESCAPES}")
    credentials, _, hosts = parts.netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    if user and not password:
        raise ConfigurationError(
            f"{expected}; the password is missing: write user:password@, or :password@ for no user"
        )
    peers = tuple(_parse_peers(hosts, kind, expected))
    path = parts.path.removeprefix("/")
    service = None
    if kind == "cluster" and path:
        raise ConfigurationError(f"{expected}; a cluster has no databases")
    if kind == "sentinel":
        service, _, path = path.partition("/")
        if not service:
            raise ConfigurationError(f"{expected}; the name of the primary is missing")
    elif not kind and len(peers) > 1:
        raise ConfigurationError(
            f"{expected}; several hosts need redis+sentinel:// or redis+cluster://"
        )
    if path and not (path.isascii() and path.isdigit() and len(path) < 6):
        raise ConfigurationError(f"{expected}; the database is no number")
    options = _parse_options(parts.query, expected)
    address = RedisAddress(
        peers,
        None if service is None else unquote(service),
        int(path or 0),
        unquote(user) or None,
        unquote(password) or None,
        engine in ("rediss", "valkeys"),
        _parse_prefix(options, expected),
        _parse_durability(options, expected),
        options.get("ca"),
        options.get("cert"),
        options.get("key"),
        kind == "cluster",
        _parse_sentinel_login(options, kind, expected),
    )
    if not address.tls and (address.ca or address.cert or address.key):
        raise ConfigurationError(f"{expected}; ca=, cert= and key= need TLS: write {engine}s://")
    if address.key and not address.cert:
        raise ConfigurationError(f"{expected}; key= needs cert=, the certificate of that key")
    return address


def _parse_peers(hosts: str, kind: str, expected: str) -> list[Peer]:
    peers = []
    for each in hosts.split(","):
        found = _HOST.fullmatch(each)
        if not each:
            raise ConfigurationError(f"{expected}; the host is missing")
        if found is None or (found["port"] is not None and not 0 < int(found["port"]) < 65536):
            raise ConfigurationError(f"{expected}; the host is invalid, or the port is no number")
        port = found["port"] or _PORTS[kind]
        peers.append(Peer(found["ipv6"] or found["name"], int(port)))
    return peers


def _parse_options(query: str, expected: str) -> dict[str, str]:
    pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)  # a plus is no space
    options = dict(pairs)
    if not options.keys() <= set(_OPTIONS):
        known = ", ".join(f"{name}=" for name in _OPTIONS)
        raise ConfigurationError(f"{expected}; the options after '?' are {known}")
    if len(options) < len(pairs):
        raise ConfigurationError(f"{expected}; an option after '?' is given twice")
    for name, value in options.items():
        if not value:
            raise ConfigurationError(f"{expected}; {name}= is empty")
    return options


def _parse_prefix(options: dict[str, str], expected: str) -> str:
    prefix = options.get("prefix", DEFAULT_PREFIX)
    if not _PREFIX.fullmatch(prefix):
        raise ConfigurationError(
            f"{expected}; prefix: expected 1 to 64 characters of A-Z a-z 0-9 _ . : -"
        )
    return prefix


def _parse_sentinel_login(options: dict[str, str], kind: str, expected: str) -> Login | None:
    user, password = options.get("sentinel_username"), options.get("sentinel_password")
    if password is None:
        if user is not None:
            raise ConfigurationError(
                f"{expected}; sentinel_username= needs sentinel_password=, its password"
            )
        return None
    if kind != "sentinel":
        raise ConfigurationError(
            f"{expected}; sentinel_password= needs Sentinels: write redis+sentinel://"
        )
    return Login(user, password)


def _parse_durability(options: dict[str, str], expected: str) -> Durability:
    try:
        return Durability(options.get("durability", Durability.PRIMARY.value))
    except ValueError:
        levels = ", ".join(level.value for level in Durability)
        raise ConfigurationError(f"{expected}; durability: expected one of {levels}") from None
