"""Check the server's keys, the application's keys, and whether they match."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import stat
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from ...endpoint import ServerUrl
from ...server.auth.jwks import ALGORITHMS, Jwks, KeysUnavailableError
from ...tokens import KEYGEN_COMMAND
from ..context import CheckContext
from ..finding import Finding
from ..probe import ProbeError, probe
from ..timeouts import run_in_thread

# Readable for the group is allowed: it may be the server's own.
_OPEN = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP


async def check_file_mode(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check that the key file is not accessible to other users."""
    file = context.settings and context.settings.keys_file
    if file and (finding := await rate_mode("key file", file)):
        yield finding


async def rate_mode(check: str, file: Path) -> Finding | None:
    """Return whether a file with a secret is accessible to other users; None if it is unreadable.

    Another check reports a file that cannot be read.
    """
    try:
        status = await run_in_thread(file.stat)
    except OSError:
        return None
    if os.name == "posix" and status.st_mode & _OPEN:
        mode = stat.filemode(status.st_mode)
        found = f"{file} is accessible to other users of this machine ({mode})"
        return Finding("warn", check, found, f"chmod 600 {file}")
    return Finding("ok", check, f"{file} is not accessible to other users of this machine")


async def check_keys(context: CheckContext) -> AsyncGenerator[Finding]:
    """Count the server's keys. Findings show nothing of a key, not even its length."""
    keys = context.keys
    if keys is None:
        advice = "correct it, then run doctor again"
        yield Finding("fail", "keys", context.keys_problem or "they cannot be read", advice)
    elif not keys:
        found = "none: without keys, a server accepts connections from this machine only"
        yield Finding("ok", "keys", found)
    else:
        counts = (
            _count(len(keys.token_secrets), "token secret"),
            _count(len(keys.api_keys), "API key"),
            _count(len(keys.jwks_urls), "JWKS address"),
        )
        yield Finding("ok", "keys", ", ".join(counts))


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


async def check_token_secret(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check that the application's token secret is one of the server's."""
    secret = os.environ.get("REALTIME_TOKEN_SECRET", "").encode(errors="surrogatepass")
    if not secret or not context.keys:
        return
    # Compare with all of them, so that the time reveals nothing.
    secrets = context.keys.token_secrets
    if any([hmac.compare_digest(secret, known.encode()) for known in secrets]):  # noqa: C419
        yield Finding("ok", "token secret", "REALTIME_TOKEN_SECRET is one of the server's")
    else:
        yield Finding(
            "fail",
            "token secret",
            "REALTIME_TOKEN_SECRET is none of the server's token secrets: its tokens are refused",
            "set it to one of token_secrets in the file of --keys-file "
            "(SYNAP_REALTIME_TOKEN_SECRETS)",
        )


async def check_api_key(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check that the application's API key is one of the server's, and may broadcast."""
    key = os.environ.get("REALTIME_API_KEY", "")
    if not key or not context.keys:
        return
    claims = context.keys.claims_for_key(key)
    if claims is None and key.count(".") == 2:
        yield Finding("ok", "API key", "REALTIME_API_KEY is a token; the round trip tests it")
    elif claims is None:
        yield Finding(
            "fail",
            "API key",
            "REALTIME_API_KEY is none of the server's keys: publishing is rejected",
            "set it to one of api_keys in the file of --keys-file (SYNAP_REALTIME_API_KEYS)",
        )
    elif "broadcast" not in claims.scopes:
        yield Finding(
            "fail",
            "API key",
            f"REALTIME_API_KEY is the server's key {claims.key_name!r}, which may not broadcast",
            f"use another, or give it the scope; {KEYGEN_COMMAND} makes one",
        )
    else:
        yield Finding("ok", "API key", f"REALTIME_API_KEY is the server's key {claims.key_name!r}")


async def check_jwks(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check that each JWK set can be fetched and has keys for signatures."""
    urls = context.keys.jwks_urls if context.keys else ()
    for finding in await asyncio.gather(*(_fetch_jwks(context, url) for url in urls)):
        yield finding


async def _fetch_jwks(context: CheckContext, url: str) -> Finding:
    host = urlsplit(url).hostname or ""
    advice = f"check {host} in jwks_urls (SYNAP_REALTIME_JWKS_URLS), and the network path to it"
    try:
        answer = await probe(context, ServerUrl(httpx.URL(url), host))
    except ProbeError as error:
        return Finding("fail", "JWKS", f"{host} {error}", advice)
    if answer.status != 200:
        return Finding("fail", "JWKS", f"{host} answered {answer.status}", advice)
    # Its log lines contain the whole URL, which may hold a password.
    with _disabled("synap_realtime.server.auth.jwks"):
        jwks = Jwks(url)
        try:
            found = [key for name in ALGORITHMS for key in await jwks.find(name, None)]
        except KeysUnavailableError:
            return Finding("fail", "JWKS", f"the response of {host} is not a JWK set", advice)
        finally:
            jwks.cancel()
    if not found:
        found_none = f"{host} has no key for {', '.join(ALGORITHMS)}: its tokens are invalid"
        return Finding("fail", "JWKS", found_none, advice)
    return Finding("ok", "JWKS", f"{host} has {_count(len(found), 'key')} for signatures")


@contextmanager
def _disabled(name: str) -> Generator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


CHECKS = (check_file_mode, check_keys, check_token_secret, check_api_key, check_jwks)
