"""Check the settings, the packages that they need, and the limits of the machine."""

from __future__ import annotations

import difflib
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from .. import __version__
from ..extras import install
from ..loopback import is_loopback
from ..tokens import KEYGEN_COMMAND
from .context import PREFIX, CheckContext
from .finding import Finding, Report, of_server

_SHOWN = ("httpx", "pydantic", "uvicorn", "uvloop", "websockets")
_OTHER_FILES = 100  # as in server/serve.py: the store's, the log's, and a process's standard files


async def check(subject: CheckContext, report: Report) -> None:
    """Check everything that needs neither a file nor the network."""
    report(Finding("ok", "versions", _versions()))
    if find_spec("websockets") is None:
        report(_missing("websockets", "subscribing is not possible", "subscriber"))
    if not subject.has_server:
        none = f"no settings of serve here ({PREFIX}…); run doctor where the server runs"
        report(Finding("ok", "configuration", none))
        _check_installed(subject, report)
        return
    if subject.missing:
        what = "not read, so a server's keys, certificate and store are not checked"
        report(Finding("warn", "configuration", f"{what}: {subject.missing}"))
        return
    _check_names(report)
    _check_installed(subject, report)
    report = of_server(report)
    if subject.wrong is not None:
        report(Finding("fail", "configuration", subject.wrong, "correct it, then run doctor again"))
    else:
        report(Finding("ok", "configuration", "valid"))
    _check_host(subject, report)
    _check_files(subject, report)


def _versions() -> str:
    found = [f"synap-realtime {__version__}", f"Python {platform.python_version()}"]
    for name in _SHOWN:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def _check_names(report: Report) -> None:
    from ..server.config.settings import ServerSettings

    known = [PREFIX + name.upper() for name in ServerSettings.model_fields]
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            advice = f"did you mean {close[0]}?" if close else "see synap-realtime serve --help"
            report(Finding("warn", "environment", f"unknown variable {name}", advice))


def _check_host(subject: CheckContext, report: Report) -> None:
    settings, keys = subject.settings, subject.keys
    if settings is None or keys is None:  # without known keys: the keys check reports it
        return
    if not keys and not is_loopback(settings.host):
        report(
            Finding(
                "fail",
                "host",
                f"{settings.host} is open to other machines, but there are no keys: serve fails",
                f"make some with: {KEYGEN_COMMAND} --out keys.toml, then use serve --keys-file "
                "keys.toml "
                f"({PREFIX}KEYS); or listen on 127.0.0.1",
            )
        )
    else:
        guarded = "with keys" if keys else "without keys, serve accepts this machine only"
        report(Finding("ok", "host", f"{settings.host}, {guarded}"))
    if keys and not settings.allowed_origins:
        report(
            Finding(
                "warn",
                "origins",
                "no page may connect: keys are configured, but no allowed origins",
                f"list your pages' origins in --allowed-origins ({PREFIX}ALLOWED_ORIGINS), such as "
                "https://app.example.com",
            )
        )
    elif keys:
        report(Finding("ok", "origins", f"pages of {', '.join(settings.allowed_origins)}"))


def _check_installed(subject: CheckContext, report: Report) -> None:
    keys = subject.keys
    wants_tokens = bool(os.environ.get("REALTIME_TOKEN_SECRET")) or bool(
        keys and (keys.token_secrets or keys.jwks_urls)
    )
    if wants_tokens and find_spec("jwt") is None:
        report(_missing("PyJWT", "tokens are configured, but cannot be verified or minted", "auth"))
    can_be = sys.platform != "win32" and sys.implementation.name == "cpython"
    if subject.has_server and can_be and find_spec("uvloop") is None:
        found = "uvloop is not installed: the server is slower"
        report(Finding("warn", "packages", found, install("server")))


def _missing(package: str, meaning: str, extra: str) -> Finding:
    return Finding("fail", "packages", f"{package} is not installed: {meaning}", install(extra))


def _check_files(subject: CheckContext, report: Report) -> None:
    """Check the limit of open files. serve raises the soft limit to the hard limit itself."""
    settings = subject.settings
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    if settings is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    report(
        open_files(soft, None if hard == resource.RLIM_INFINITY else hard, settings.max_connections)
    )


def open_files(soft: int, hard: int | None, max_connections: int) -> Finding:
    """Compare the limit of open files with the maximum number of connections."""
    limit = "no limit" if hard is None else str(hard)
    found = f"{soft} now, {limit} at most (serve raises it as needed)"
    if hard is None or (max_connections and hard >= max_connections + _OTHER_FILES):
        return Finding("ok", "open files", found)
    if not max_connections:
        return Finding("ok", "open files", f"{found}; --max-connections is not set")
    return Finding(
        "warn",
        "open files",
        f"{limit} at most, but {max_connections} connections are allowed, which need a file each",
        f"raise the limit (ulimit -Hn, LimitNOFILE=) or lower {PREFIX}MAX_CONNECTIONS",
    )
