"""Where rooms keep their notifications. ``base.py`` is the contract."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from ...errors import ConfigurationError
from ...redaction import redacted
from ..references import REFERENCE, resolve
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
            f"{OPTION}: sqlite needs a file; for a store in memory write memory://"
        )
    if not path.removeprefix("/"):
        raise ConfigurationError(
            f"{OPTION}: sqlite needs a file: sqlite:///rooms.db in this directory, "
            "sqlite:////var/lib/rooms.db anywhere"
        )
    return SqliteStore(path.removeprefix("/"), retention)


_STORES: dict[str, Callable[[str, Retention], Store]] = {"memory": _memory, "sqlite": _sqlite}


def is_own(url: str) -> bool:
    """Whether it names a store of somebody's own, ``module:function``."""
    return REFERENCE.fullmatch(url) is not None


def _own(reference: str, retention: Retention) -> Store:
    make = resolve(OPTION, reference)
    if not callable(make):
        raise ConfigurationError(
            f"{OPTION}: {redacted(reference)}: expected def open(retention) -> Store"
        )
    try:
        store: Store = make(retention)
    except ConfigurationError:
        raise
    except Exception as error:
        problem = redacted(f"{reference} raised {type(error).__name__}: {error}")
        raise ConfigurationError(f"{OPTION}: {problem}") from error
    return store


def check_shared(url: str) -> None:
    """
    Raises:
        ConfigurationError: servers cannot share such a store.
    """
    if (scheme := urlsplit(url).scheme) in _STORES:
        raise ConfigurationError(
            "--workers (SYNAP_REALTIME_WORKERS): processes that serve together need a store that "
            f"they share, and {scheme} is one server's own: what is "
            "published at one worker would not reach who listens at another. Serve with one "
            "worker, or give --store module:function a SharedStore of your own"
        )


def open_store(url: str, retention: Retention) -> Store:
    """The store that a URL names.

    Args:
        url: ``memory://``; ``sqlite:///rooms.db`` (a path from here) or ``sqlite:////var/rooms.db``
            (from the root), as SQLAlchemy writes them. Or ``module:function``: it is called with
            the retention, and returns a :class:`Store`.

    Raises:
        ConfigurationError: no such store, or it cannot be opened.
    """
    if is_own(url):
        return _own(url, retention)
    expected = f"{OPTION}: expected memory://, sqlite:///path or module:function"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(f"{expected}; what was given is no URL") from None
    if "://" not in url:
        # It is not shown: something without a scheme may be a password as well.
        hint = "what was given has no scheme" if url else "what was given is empty"
        raise ConfigurationError(f"{expected}; {hint}")
    if parts.scheme == "sqlite":
        if parts.query or parts.fragment or url.endswith(("?", "#")):
            raise ConfigurationError(
                f"{expected}; there are no options after '?' or '#' (in a path: %3F, %23)"
            )
        if parts.netloc:
            raise ConfigurationError(
                f"{expected}; before the path there are three slashes, or four for one from the "
                "root: sqlite:///rooms.db, sqlite:////var/lib/rooms.db"
            )
    if parts.scheme not in _STORES or parts.netloc or parts.query or parts.fragment:
        # Only the scheme is shown: another kind of URL may hold a password.
        raise ConfigurationError(f"{expected}, got {redacted(parts.scheme)}://…")
    return _STORES[parts.scheme](unquote(parts.path), retention)
