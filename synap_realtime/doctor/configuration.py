"""The settings themselves, what is installed for them, and what the machine allows."""

from __future__ import annotations

import difflib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from .. import __version__
from ..extras import install
from ..tokens import KEYGEN_COMMAND
from .context import PREFIX, CheckContext
from .finding import Finding, Report, of_server

_SHOWN = ("httpx", "pydantic", "uvicorn", "uvloop", "websockets")
_OTHER_FILES = 100  # as in server/serve.py: the store's, the log's, and what a process has anyway


async def check(subject: CheckContext, say: Report) -> None:
    """Everything that can be said without looking at a file or the network."""
    say(Finding("ok", "versions", _versions()))
    if find_spec("websockets") is None:
        say(_missing("websockets", "nothing can be heard", "subscriber"))
    if not subject.has_server:
        none = f"no settings of serve here ({PREFIX}…): to check a server, run doctor beside it"
        say(Finding("ok", "configuration", none))
        _check_installed(subject, say)
        return
    if subject.missing:
        what = "not read, and neither are keys, certificate and store of a server"
        say(Finding("warn", "configuration", f"{what}: {subject.missing}"))
        return
    _check_names(say)
    _check_installed(subject, say)
    say = of_server(say)
    if subject.wrong is not None:
        say(Finding("fail", "configuration", subject.wrong, "correct it, and ask again"))
    else:
        say(Finding("ok", "configuration", "they can be read"))
    _check_host(subject, say)
    _check_files(subject, say)


def _versions() -> str:
    found = [f"synap-realtime {__version__}", f"Python {platform.python_version()}"]
    for name in _SHOWN:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _check_names(say: Report) -> None:
    from ..server.config import ServerSettings

    known = [PREFIX + name.upper() for name in ServerSettings.model_fields]
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            advice = f"did you mean {close[0]}?" if close else "see synap-realtime serve --help"
            say(Finding("warn", "environment", f"nothing reads {name}", advice))


def _check_host(subject: CheckContext, say: Report) -> None:
    from ..server.config import is_loopback

    settings, keys = subject.settings, subject.keys
    if settings is None or keys is None:  # without known keys: the check of keys says so
        return
    if not keys and not is_loopback(settings.host):
        say(
            Finding(
                "fail",
                "host",
                f"{settings.host} is open to other machines, and there are no keys: serve refuses",
                f"make some with: {KEYGEN_COMMAND} --out keys.toml, and give serve --keys-file "
                "keys.toml "
                f"({PREFIX}KEYS); or listen on 127.0.0.1",
            )
        )
    else:
        guarded = "with keys" if keys else "for this machine only, without keys"
        say(Finding("ok", "host", f"{settings.host}, {guarded}"))
    if keys and not settings.allowed_origins:
        say(
            Finding(
                "warn",
                "origins",
                "no page may connect: there are keys, and no allowed origins",
                f"name your pages' with --allowed-origins ({PREFIX}ALLOWED_ORIGINS), such as "
                "https://app.example.com",
            )
        )
    elif keys:
        say(Finding("ok", "origins", f"pages of {', '.join(settings.allowed_origins)}"))


def _check_installed(subject: CheckContext, say: Report) -> None:
    keys = subject.keys
    wants_tokens = bool(os.environ.get("REALTIME_TOKEN_SECRET")) or bool(
        keys and (keys.token_secrets or keys.jwks_urls)
    )
    if wants_tokens and find_spec("jwt") is None:
        say(_missing("PyJWT", "tokens are configured, and cannot be checked or made", "auth"))
    can_be = sys.platform != "win32" and sys.implementation.name == "cpython"
    if subject.has_server and can_be and find_spec("uvloop") is None:
        found = "uvloop is not installed: the server is slower"
        say(Finding("warn", "packages", found, install("server")))


def _missing(package: str, meaning: str, extra: str) -> Finding:
    return Finding("fail", "packages", f"{package} is not installed: {meaning}", install(extra))


def _check_files(subject: CheckContext, say: Report) -> None:
    """serve raises the soft limit to the hard one by itself."""
    settings = subject.settings
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    if settings is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    say(
        open_files(soft, None if hard == resource.RLIM_INFINITY else hard, settings.max_connections)
    )


def open_files(soft: int, hard: int | None, max_connections: int) -> Finding:
    """Whether a process may have as many files open as connections are allowed.

    Args:
        hard: None: no limit.
        max_connections: 0: no limit.
    """
    limit = "no limit" if hard is None else str(hard)
    found = f"{soft} now, {limit} at most (serve takes what it needs)"
    if hard is None or (max_connections and hard >= max_connections + _OTHER_FILES):
        return Finding("ok", "open files", found)
    if not max_connections:
        return Finding("ok", "open files", f"{found}; connections have no other limit")
    return Finding(
        "warn",
        "open files",
        f"{limit} at most, and {max_connections} connections are allowed: each is one",
        f"raise the one (ulimit -Hn, LimitNOFILE=) or lower the other ({PREFIX}MAX_CONNECTIONS)",
    )
