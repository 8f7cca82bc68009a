"""Run the checks in sequence. A check that fails or hangs does not hide the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from importlib import import_module
from typing import Any

from ..extras import install
from .context import CheckContext, load_client_config, load_server_config
from .finding import Finding, of_server, redact
from .pages import page_for
from .timeouts import TIMEOUT_S, run_in_thread

LIMIT_S = 30.0
"""Maximum seconds of a check. The checks' own timeouts are shorter; this is a safeguard."""

MODULES = (
    "installation", "settings", "keys", "certificate", "store", "reachability", "round_trip",
    "clock",
)  # fmt: skip
"""The modules of ``checks`` whose ``CHECKS`` run, in this order."""

_OF_A_SERVER = ("settings", "keys", "certificate", "store")
"""The modules that need the settings of a server."""

Check = Callable[[CheckContext], AsyncGenerator[Finding]]


async def run_checks(url: str | None, given: Mapping[str, Any]) -> AsyncGenerator[Finding]:
    """Run all checks; yield the findings of each when it has ended.

    Args:
        url: the room server. None: ``REALTIME_URL``, then the default.
        given: settings of the server by name, which override the environment. None: not given.
    """
    context = load_client_config(url)
    try:
        await run_in_thread(lambda: load_server_config(context, given))
    except TimeoutError:
        context.keys_problem = f"--keys-file: the file could not be read within {TIMEOUT_S:g} s"
    for name in MODULES:
        is_of_server = name in _OF_A_SERVER
        if is_of_server and (not context.has_server or context.import_problem):
            continue
        async with aclosing(_run_module(name, context)) as findings:
            async for finding in findings:
                labelled = of_server(finding) if is_of_server else finding
                page = "" if finding.level == "ok" else page_for(finding.check)
                yield replace(redact(labelled, context.secrets), page=page)


async def _run_module(name: str, context: CheckContext) -> AsyncGenerator[Finding]:
    try:
        # Imported here because some need packages that may be missing.
        checks = import_module(f".checks.{name}", __package__).CHECKS
    except ImportError as error:
        advice = install("server", "subscriber")
        yield Finding("warn", name.replace("_", " "), f"not checked: {error}", advice)
        return
    for check in checks:
        for finding in await _run(check, context):
            yield finding


async def _run(check: Check, context: CheckContext) -> list[Finding]:
    """Return the findings of a check, also those before it failed."""
    found: list[Finding] = []
    name = check.__name__.removeprefix("check_").replace("_", " ")
    try:
        async with asyncio.timeout(LIMIT_S), aclosing(check(context)) as findings:
            async for finding in findings:
                found.append(finding)  # noqa: PERF401 - a comprehension loses those before an error
    except TimeoutError:
        found.append(Finding("fail", name, f"not finished after {LIMIT_S:g} s", "report it"))
    except Exception as error:  # noqa: BLE001 - the other checks must run
        failed = f"this check failed unexpectedly ({type(error).__name__})"
        found.append(Finding("fail", name, failed, "report it"))
    return found
