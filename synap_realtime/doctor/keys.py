"""Check the server's keys, the application's keys, and whether they match."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from ..endpoint import ServerUrl
from ..server.auth.jwks import ALGORITHMS, Jwks, KeysUnavailableError
from ..server.auth.keys import Keys
from ..tokens import KEYGEN_COMMAND
from .context import CheckContext
from .finding import Finding, Report
from .probe import ProbeError, probe
from .timeouts import run_in_thread

# Readable for the group is allowed: it may be the server's own.
_OPEN = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP


async def check(subject: CheckContext, report: Report) -> None:
    """Check the keys. Findings show nothing of a key, not even its length."""
    settings, keys = subject.settings, subject.keys
    if settings is not None and settings.keys_file is not None:
        await check_mode("key file", settings.keys_file, report)
    if keys is None:
        report(Finding("fail", "keys", subject.keys_problem or "they cannot be read", _CORRECT))
        return
    if not keys:
        report(
            Finding("ok", "keys", "none: a server in this environment accepts this machine only")
        )
        return
    counts = (
        f"{_count(len(keys.token_secrets), 'token secret')}, "
        f"{_count(len(keys.api_keys), 'API key')}, {_count(len(keys.jwks_urls), 'JWKS address')}"
    )
    report(Finding("ok", "keys", counts))
    _compare_secret(keys, report)
    _compare_key(keys, report)
    await asyncio.gather(*(_check_jwks(subject, url, report) for url in keys.jwks_urls))


_CORRECT = "correct it, then run doctor again"


def _count(number: int, noun: str) -> str:
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith('s') else 's'}"


async def check_mode(check: str, file: Path, report: Report) -> None:
    """Check that a file with a secret is not accessible to other users."""
    try:
        status = await run_in_thread(file.stat)
    except OSError:  # another check reports a file that cannot be read
        return
    if os.name == "posix" and status.st_mode & _OPEN:
        mode = stat.filemode(status.st_mode)
        found = f"{file} is accessible to other users of this machine ({mode})"
        report(Finding("warn", check, found, f"chmod 600 {file}"))
    else:
        report(Finding("ok", check, f"{file} is not accessible to other users of this machine"))


def _compare_secret(keys: Keys, report: Report) -> None:
    secret = os.environ.get("REALTIME_TOKEN_SECRET", "").encode(errors="surrogatepass")
    if not secret:
        return
    # Compare with all of them, so that the time reveals nothing.
    found = [hmac.compare_digest(secret, known.encode()) for known in keys.token_secrets]
    if any(found):
        report(Finding("ok", "token secret", "REALTIME_TOKEN_SECRET is one of the server's"))
    else:
        report(
            Finding(
                "fail",
                "token secret",
                "REALTIME_TOKEN_SECRET is none of the server's token secrets: its tokens are "
                "refused",
                "set it to one of token_secrets in the file of --keys-file "
                "(SYNAP_REALTIME_TOKEN_SECRETS)",
            )
        )


def _compare_key(keys: Keys, report: Report) -> None:
    key = os.environ.get("REALTIME_API_KEY", "")
    if not key:
        return
    claims = keys.claims_for_key(key)
    if claims is None and key.count(".") == 2:
        report(Finding("ok", "API key", "REALTIME_API_KEY is a token; the round trip tests it"))
    elif claims is None:
        report(
            Finding(
                "fail",
                "API key",
                "REALTIME_API_KEY is none of the server's keys: publishing is rejected",
                "set it to one of api_keys in the file of --keys-file (SYNAP_REALTIME_API_KEYS)",
            )
        )
    elif "broadcast" not in claims.scopes:
        report(
            Finding(
                "fail",
                "API key",
                f"REALTIME_API_KEY is the server's key {claims.key_name!r}, which may not "
                "broadcast",
                f"use another, or give it the scope; {KEYGEN_COMMAND} makes one",
            )
        )
    else:
        report(
            Finding("ok", "API key", f"REALTIME_API_KEY is the server's key {claims.key_name!r}")
        )


async def _check_jwks(subject: CheckContext, url: str, report: Report) -> None:
    host = urlsplit(url).hostname or ""
    advice = f"check {host} in jwks_urls (SYNAP_REALTIME_JWKS_URLS), and the network path to it"
    try:
        answer = await probe(subject, ServerUrl(httpx.URL(url), host))
    except ProbeError as error:
        report(Finding("fail", "JWKS", f"{host} {error}", advice))
        return
    if answer.status != 200:
        report(Finding("fail", "JWKS", f"{host} answered {answer.status}", advice))
        return
    with _timed_out("synap_realtime.server.auth.jwks"):  # its log would contain the whole address
        jwks = Jwks(url)
        try:
            found = [key for name in ALGORITHMS for key in await jwks.find(name, None)]
        except KeysUnavailableError:
            report(Finding("fail", "JWKS", f"the response of {host} is not a JWK set", advice))
            return
        finally:
            jwks.cancel()
    if found:
        report(Finding("ok", "JWKS", f"{host} has {_count(len(found), 'key')} for signatures"))
    else:
        found_none = f"{host} has no key for {', '.join(ALGORITHMS)}: its tokens are invalid"
        report(Finding("fail", "JWKS", found_none, advice))


@contextmanager
def _timed_out(name: str) -> Generator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
