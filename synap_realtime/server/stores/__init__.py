"""Stores of rooms' notifications. ``base.py`` defines the contract."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from ...errors import ConfigurationError
from ...redaction import redacted
from ..config.references import REFERENCE, resolve
from .base import OPTION, Retention, Store


def _memory(path: str, retention: Retention) -> Store:
    from .memory import MemoryStore

    if path:
        raise ConfigurationError(f"{OPTION}: memory:// takes no path, got {path!r}")
    return MemoryStore(retention)


def _sqlite(path: str, retention: Retention) -> Store:
    from .sqlite.store import SqliteStore

    if path == "/:memory:":
        raise ConfigurationError(
            f"{OPTION}: sqlite needs a file; for a store in memory use memory://"
        )
    if not path.removeprefix("/"):
        raise ConfigurationError(
            f"{OPTION}: sqlite needs a file: sqlite:///rooms.db in this directory, or an absolute "
            "path as in sqlite:////var/lib/rooms.db"
        )
    return SqliteStore(path.removeprefix("/"), retention)


_STORES: dict[str, Callable[[str, Retention], Store]] = {"memory": _memory, "sqlite": _sqlite}


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
    """Check that several workers can share the store of a URL.

    Raises:
        ConfigurationError: the store belongs to one process.
    """
    if (scheme := urlsplit(url).scheme) in _STORES:
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
    if parts.scheme not in _STORES or parts.netloc or parts.query or parts.fragment:
        # Only the scheme is shown: another kind of URL may contain a password.
        raise ConfigurationError(f"{expected}, got {redacted(parts.scheme)}://…")
    return _STORES[parts.scheme](unquote(parts.path), retention)
