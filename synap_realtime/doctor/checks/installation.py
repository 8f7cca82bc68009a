"""Check the installed packages, and which settings there are."""

from __future__ import annotations

import difflib
import os
import platform
import sys
from collections.abc import AsyncGenerator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from ... import __version__
from ...extras import install
from ..context import PREFIX, CheckContext
from ..finding import Finding

_SHOWN = ("httpx", "pydantic", "uvicorn", "uvloop", "websockets")


async def check_versions(_: CheckContext) -> AsyncGenerator[Finding]:
    """Report the versions of what matters most in a bug report."""
    found = [f"synap-realtime {__version__}", f"Python {platform.python_version()}"]
    for name in _SHOWN:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    yield Finding("ok", "versions", ", ".join(found))


async def check_packages(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check that the packages are installed that this configuration needs."""
    if find_spec("websockets") is None:
        yield _missing("websockets", "subscribing is not possible", "subscriber")
    if _has_tokens(context) and find_spec("jwt") is None:
        yield _missing("PyJWT", "tokens are configured, but cannot be verified or minted", "auth")
    can_have_uvloop = sys.platform != "win32" and sys.implementation.name == "cpython"
    if context.settings is not None and can_have_uvloop and find_spec("uvloop") is None:
        found = "uvloop is not installed: the server is slower"
        yield Finding("warn", "packages", found, install("server"))


def _has_tokens(context: CheckContext) -> bool:
    keys = context.keys
    return bool(os.environ.get("REALTIME_TOKEN_SECRET")) or bool(
        keys and (keys.token_secrets or keys.jwks_urls)
    )


def _missing(package: str, meaning: str, extra: str) -> Finding:
    return Finding("fail", "packages", f"{package} is not installed: {meaning}", install(extra))


async def check_presence(context: CheckContext) -> AsyncGenerator[Finding]:
    """Report why the settings of a server are not checked, if they are not."""
    if not context.has_server:
        none = f"no settings of serve here ({PREFIX}…); run doctor where the server runs"
        yield Finding("ok", "configuration", none)
    elif context.import_problem:
        what = "not read, so a server's keys, certificate and store are not checked"
        yield Finding("warn", "configuration", f"{what}: {context.import_problem}")


async def check_variables(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check that each variable of a server names a setting."""
    if not context.has_server or context.import_problem:
        return
    from ...server.config import ServerSettings

    known = [PREFIX + name.upper() for name in ServerSettings.model_fields]
    for name in sorted(os.environ):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            advice = f"did you mean {close[0]}?" if close else "see synap-realtime serve --help"
            yield Finding("warn", "environment", f"unknown variable {name}", advice)


CHECKS = (check_versions, check_packages, check_presence, check_variables)
