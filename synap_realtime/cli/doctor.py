"""``synap-realtime doctor``: check a configuration. See the package ``doctor`` for the checks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import printable, show
from .options import AS_JSON, URL


def doctor(
    url: Annotated[str | None, URL] = None,
    keys_file: Annotated[
        Path | None,
        typer.Option(
            help="The key file of a server. [env: SYNAP_REALTIME_KEYS_FILE]", readable=False
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            help="The store of a server: memory://, sqlite:///path or redis://host. "
            "[env: SYNAP_REALTIME_STORE]"
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(help="The address that a server listens on. [env: SYNAP_REALTIME_HOST]"),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            help="A PEM file with a server's certificate chain. [env: SYNAP_REALTIME_TLS_CERT]",
            readable=False,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            help="A PEM file with the certificate's private key. [env: SYNAP_REALTIME_TLS_KEY]",
            readable=False,
        ),
    ] = None,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Check the configuration and the path to the room server.

    The checks are about keys, certificate, store, clock and a notification's round trip. Each
    finding names the fix, and the page that explains it. The checks read the settings of serve and
    of the application (REALTIME_URL, REALTIME_API_KEY, REALTIME_TOKEN_SECRET, REALTIME_PUBLIC_URL)
    from the environment, and publish one notification to a room that nothing else uses. Exits with
    1 if a check fails.
    """
    given = {
        "keys_file": keys_file,
        "store": store,
        "host": host,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
    }
    raise typer.Exit(asyncio.run(_print_findings(url, given, as_json=as_json)))


async def _print_findings(url: str | None, given: Mapping[str, Any], *, as_json: bool) -> int:
    """Print a line for each finding. Return the exit code: 1 if a check failed."""
    from ..doctor import run_checks

    code = 0
    async with aclosing(run_checks(url, given)) as findings:
        async for finding in findings:
            show(json.dumps(asdict(finding)) if as_json else printable(str(finding)))
            code |= finding.level == "fail"
    return code
