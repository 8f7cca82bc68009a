"""Stores of rooms' notifications. ``base.py`` defines the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from ...errors import ConfigurationError
from ...extras import needed_by
from ...redaction import redacted
from ..config import REFERENCE, resolve
from .base import OPTION, Retention, Store
from .redis.address import SCHEMES as REDIS_SCHEMES
from .redis.address import parse_address


class _Kind(NamedTuple):
    """A kind of store that a URL can name.

    Attributes:
        parse: checks a URL of this kind, and returns what ``open`` takes.
        open: opens the store.
        is_shared: whether it is a :class:`~.base.ClusterStore`, which several workers can share.
    """

    parse: Callable[[SplitResult], str]
    open: Callable[[str, Retention], Store]
    is_shared: bool


_EXPECTED = f"{OPTION}: expected memory://, sqlite:///path, redis://host or module:function"


def _parse_memory(url: SplitResult) -> str:
    if url.path:
        raise ConfigurationError(f"{OPTION}: memory:// takes no path, got {unquote(url.path)!r}")
    if url.netloc or url.query or url.fragment:
        raise ConfigurationError(f"{_EXPECTED}, got memory://…")
    return ""


def _open_memory(_name: str, retention: Retention) -> Store:
    from .memory import MemoryStore

    return MemoryStore(retention)


def _parse_sqlite(url: SplitResult) -> str:
    if url.query or url.fragment:
        raise ConfigurationError(
            f"{_EXPECTED}; options after '?' or '#' are not supported (in a path, write %3F or %23)"
        )
    if url.netloc:
        raise ConfigurationError(
            f"{_EXPECTED}; write three slashes before a relative path, and four before an absolute "
            "one: sqlite:///rooms.db, sqlite:////var/lib/rooms.db"
        )
    path = unquote(url.path)
    if path == "/:memory:":
        raise ConfigurationError(
            f"{OPTION}: sqlite needs a file; for a store in memory use memory://"
        )
    if not path.removeprefix("/"):
        raise ConfigurationError(
            f"{OPTION}: sqlite needs a file: sqlite:///rooms.db in this directory, or an absolute "
            "path as in sqlite:////var/lib/rooms.db"
        )
    return path.removeprefix("/")


def _open_sqlite(path: str, retention: Retention) -> Store:
    from .sqlite.store import SqliteStore

    return SqliteStore(path, retention)


def _parse_redis(url: SplitResult) -> str:
    parse_address(url.geturl())
    return url.geturl()


def _open_redis(url: str, retention: Retention) -> Store:
    with needed_by("the store on Redis", "redis"):
        from .redis.startup import check_server
        from .redis.store import RedisStore

    address = parse_address(url)
    check_server(address)
    return RedisStore(address, retention)


_REDIS = _Kind(_parse_redis, _open_redis, is_shared=True)
_KINDS = {
    "memory": _Kind(_parse_memory, _open_memory, is_shared=False),
    "sqlite": _Kind(_parse_sqlite, _open_sqlite, is_shared=False),
    **dict.fromkeys(REDIS_SCHEMES, _REDIS),
}
"""The stores of this package, by the scheme of their URLs."""


class StoreUrl(NamedTuple):
    """A parsed URL of a store.

    Attributes:
        scheme: the kind of store.
        name: the decoded path of a file, which may be relative; or the URL of a server, which may
            contain a password.
    """

    scheme: str
    name: str


def is_own(url: str) -> bool:
    """Return whether a URL names a custom store, as ``module:function``."""
    return REFERENCE.fullmatch(url) is not None


def _open_custom(reference: str, retention: Retention) -> Store:
    open_custom = resolve(OPTION, reference)
    if not callable(open_custom):
        raise ConfigurationError(
            f"{OPTION}: {redacted(reference)}: expected def open(retention) -> Store"
        )
    try:
        store: Store = open_custom(retention)
    except ConfigurationError:
        raise
    except Exception as error:
        problem = redacted(f"{reference} raised {type(error).__name__}: {error}")
        raise ConfigurationError(f"{OPTION}: {problem}") from error
    return store


def check_shared(url: str) -> None:
    """Check that several workers can share the store of a URL. A custom store is checked later.

    Raises:
        ConfigurationError: the URL is invalid, or the store belongs to one process.
    """
    if is_own(url):
        return
    scheme = parse_store_url(url).scheme
    if not _KINDS[scheme].is_shared:
        raise ConfigurationError(
            "--workers (SYNAP_REALTIME_WORKERS): several workers need a store that they share, and "
            f"a {scheme} store belongs to one process: a notification published at one worker "
            "would not reach the subscribers of another. Use one worker, or --store redis://host"
        )


def open_store(url: str, retention: Retention) -> Store:
    """Open the store that a URL names.

    Args:
        url: ``memory://``; ``sqlite:///rooms.db`` (a relative path) or ``sqlite:////var/rooms.db``
            (an absolute path), as in SQLAlchemy; ``redis://host``, see
            :func:`~.redis.address.parse_address`. Or ``module:function``: a function that takes
            the retention and returns a :class:`Store`.
        retention: how long the store keeps notifications.

    Raises:
        ConfigurationError: the URL is invalid, or the store cannot be opened.
    """
    if is_own(url):
        return _open_custom(url, retention)
    scheme, name = parse_store_url(url)
    return _KINDS[scheme].open(name, retention)


def parse_store_url(url: str) -> StoreUrl:
    """Parse and check the URL of a store, without opening it.

    Raises:
        ConfigurationError: the URL is invalid.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"{_EXPECTED}; the value is not a URL") from None
    if "://" not in url:
        # The value is not shown: without a scheme it may be a password.
        hint = "the value has no scheme" if url else "the value is empty"
        raise ConfigurationError(f"{_EXPECTED}; {hint}")
    if parts.scheme not in _KINDS:
        # Only the scheme is shown: another kind of URL may contain a password.
        raise ConfigurationError(f"{_EXPECTED}, got {redacted(parts.scheme)}://…")
    if parts.scheme == "sqlite" and url.endswith(("?", "#")):
        parts = parts._replace(query="?")
    return StoreUrl(parts.scheme, _KINDS[parts.scheme].parse(parts))
