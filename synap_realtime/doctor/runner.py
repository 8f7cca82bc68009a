"""Run the checks in sequence. A check that fails or hangs does not hide the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from importlib import import_module
from typing import Any

from ..extras import install
from .context import CheckContext, load_client_config, load_server_config
from .finding import Finding, of_server, redact
from .timeouts import TIMEOUT_S, run_in_thread

LIMIT_S = 30.0
"""Maximum seconds of a check. The checks' own timeouts are shorter; this is a safeguard."""

_CHECKS = ("configuration", "keys", "certificate", "store", "reachability", "round_trip", "clock")
_OF_A_SERVER = ("keys", "certificate", "store")


async def run_checks(url: str | None, given: Mapping[str, Any]) -> AsyncGenerator[Finding]:
    """Run all checks; report the findings of each when it has ended.

    Args:
        url: the room server. None: ``REALTIME_URL``, then the default.
        given: settings of the server by name, which override the environment. None: not given.
    """
    subject = load_client_config(url)
    try:
        await run_in_thread(lambda: load_server_config(subject, given))
    except TimeoutError:
        subject.keys_problem = f"--keys-file: the file could not be read within {TIMEOUT_S:g} s"
    for name in _CHECKS:
        if name not in _OF_A_SERVER or (subject.has_server and not subject.missing):
            for finding in await _run(name, subject):
                yield redact(finding, subject.secrets)


async def _run(name: str, subject: CheckContext) -> list[Finding]:
    """Return the findings of a check, also those before it failed."""
    found: list[Finding] = []
    shown = name.replace("_", " ")
    try:
        # Imported here because some need packages that may be missing.
        check = import_module(f".{name}", __package__).check
        async with asyncio.timeout(LIMIT_S):
            report = of_server(found.append) if name in _OF_A_SERVER else found.append
            await check(subject, report)
    except TimeoutError:
        found.append(Finding("fail", shown, f"not finished after {LIMIT_S:g} s", "report it"))
    except ImportError as error:
        advice = install("server", "cli")
        found.append(Finding("warn", shown, f"not checked: {error}", advice))
    except Exception as error:  # noqa: BLE001 - the other checks must run
        broke = f"this check failed unexpectedly ({type(error).__name__})"
        found.append(Finding("fail", shown, broke, "report it"))
    return found
