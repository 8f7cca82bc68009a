"""Check the settings of a server, and the limits of the machine that they need."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from ...loopback import is_loopback
from ...tokens import KEYGEN_COMMAND
from ..context import CheckContext
from ..finding import Finding

_OTHER_FILES = 100  # as in server/serve.py: the store's, the log's, and a process's standard files


async def check_settings(context: CheckContext) -> AsyncGenerator[Finding]:
    """Report the first setting that is invalid."""
    if context.settings_problem:
        advice = "correct it, then run doctor again"
        yield Finding("fail", "configuration", context.settings_problem, advice)
    else:
        yield Finding("ok", "configuration", "valid")


async def check_host(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check that only a server with keys listens for other machines."""
    settings, keys = context.settings, context.keys
    if settings is None or keys is None:  # without known keys: the check of the keys reports it
        return
    if keys:
        yield Finding("ok", "host", f"{settings.host}, with keys")
    elif is_loopback(settings.host):
        found = f"{settings.host}, without keys, serve accepts this machine only"
        yield Finding("ok", "host", found)
    else:
        yield Finding(
            "fail",
            "host",
            f"{settings.host} is open to other machines, but there are no keys: serve fails",
            f"make some with: {KEYGEN_COMMAND} --out keys.toml, then use serve --keys-file "
            f"keys.toml (SYNAP_REALTIME_KEYS_FILE); or listen on 127.0.0.1",
        )


async def check_origins(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check that pages may connect to a server with keys."""
    settings = context.settings
    if settings is None or not context.keys:
        return
    if settings.allowed_origins:
        yield Finding("ok", "origins", f"pages of {', '.join(settings.allowed_origins)}")
    else:
        yield Finding(
            "warn",
            "origins",
            "no page may connect: keys are configured, but no allowed origins",
            "list your pages' origins in --allowed-origins (SYNAP_REALTIME_ALLOWED_ORIGINS), such "
            "as https://app.example.com",
        )


async def check_open_files(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check the limit of open files. serve raises the soft limit to the hard limit itself."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    if context.settings is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = None if hard == resource.RLIM_INFINITY else hard
    yield open_files(soft, most, context.settings.max_connections)


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
        "raise the limit (ulimit -Hn, LimitNOFILE=) or lower SYNAP_REALTIME_MAX_CONNECTIONS",
    )


CHECKS = (check_settings, check_host, check_origins, check_open_files)
