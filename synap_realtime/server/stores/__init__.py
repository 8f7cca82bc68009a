"""Stores of rooms' notifications. ``base.py`` defines the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ...errors import ConfigurationError
from ...redaction import redacted
from ..config import REFERENCE, resolve
from .base import OPTION, Retention, Store


class _Kind(NamedTuple):
    """A kind of store that a URL can name.

    Attributes:
        check_path: checks the path of the URL, which begins with the slash after the host.
        open: opens the store at a path.
        is_shared: whether it is a :class:`~.base.ClusterStore`, which several workers can share.
    """

    check_path: Callable[[str], None]
    open: Callable[[str, Retention], Store]
    is_shared: bool


def _check_no_path(path: str) -> None:
    if path:
        raise ConfigurationError(f"{OPTION}: memory:// takes no path, got {path!r}")


def _open_memory(_path: str, retention: Retention) -> Store:
    from .memory import MemoryStore

    return MemoryStore(retention)


def _check_file(path: str) -> None:
    if path == "/:memory:":
        raise ConfigurationError(
            f"{OPTION}: sqlite needs a file; for a store in memory use memory://"
        )
    if not path.removeprefix("/"):
        raise ConfigurationError(
            f"{OPTION}: sqlite needs a file: sqlite:///rooms.db in this directory, or an absolute "
            "path as in sqlite:////var/lib/rooms.db"
        )


def _open_sqlite(path: str, retention: Retention) -> Store:
    from .sqlite.store import SqliteStore

    return SqliteStore(path, retention)


_KINDS = {
    "memory": _Kind(_check_no_path, _open_memory, is_shared=False),
    "sqlite": _Kind(_check_file, _open_sqlite, is_shared=False),
}
"""The stores of this package, by the scheme of their URLs."""


class StoreUrl(NamedTuple):
    """A parsed URL of a store.

    Attributes:
        scheme: the kind of store.
        path: the decoded path, without the slash after the host. So it may be a relative path.
    """

    scheme: str
    path: str


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
            "would not reach the subscribers of another. Use one worker, or name a ClusterStore of "
            "your own with --store module:function"
        )


def open_store(url: str, retention: Retention) -> Store:
    """Open the store that a URL names.

    Args:
        url: ``memory://``; ``sqlite:///rooms.db`` (a relative path) or ``sqlite:////var/rooms.db``
            (an absolute path), as in SQLAlchemy. Or ``module:function``: a function that takes the
            retention and returns a :class:`Store`.
        retention: how long the store keeps notifications.

    Raises:
        ConfigurationError: the URL is invalid, or the store cannot be opened.
    """
    if is_own(url):
        return _open_custom(url, retention)
    scheme, path = parse_store_url(url)
    return _KINDS[scheme].open(path, retention)


def parse_store_url(url: str) -> StoreUrl:
    """Parse and check the URL of a store, without opening it.

    Raises:
        ConfigurationError: the URL is invalid.
    """
    expected = f"{OPTION}: expected memory://, sqlite:///path or module:function"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"{expected}; the value is not a URL") from None
    if "://" not in url:
        # The value is not shown: without a scheme it may be a password.
        hint = "the value has no scheme" if url else "the value is empty"
        raise ConfigurationError(f"{expected}; {hint}")
    if parts.scheme == "sqlite":
        if parts.query or parts.fragment or url.endswith(("?", "#")):
            raise ConfigurationError(
                f"{expected}; options after '?' or '#' are not supported (in a path, write %3F or "
                "%23)"
            )
        if parts.netloc:
            raise ConfigurationError(
                f"{expected}; write three slashes before a relative path, and four before an "
                "absolute one: sqlite:///rooms.db, sqlite:////var/lib/rooms.db"
            )
    if parts.scheme not in _KINDS or parts.netloc or parts.query or parts.fragment:
        # Only the scheme is shown: another kind of URL may contain a password.
        raise ConfigurationError(f"{expected}, got {redacted(parts.scheme)}://…")
    path = unquote(parts.path)
    _KINDS[parts.scheme].check_path(path)
    return StoreUrl(parts.scheme, path.removeprefix("/"))
