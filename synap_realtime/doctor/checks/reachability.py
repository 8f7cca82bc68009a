"""Check the path to the room server: name, port, certificate, and the server itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ...endpoint import SCHEMES, ServerUrl, parse_server_url
from ...errors import ConfigurationError
from ...network import find_proxy, tls_context
from ..context import CheckContext
from ..expiry import rate_expiry
from ..finding import Finding
from ..probe import ProbeError, ProbeResponse, probe
from ..timeouts import TIMEOUT_S, run_in_thread

_PUBLIC = ("REALTIME_PUBLIC_URL", "NEXT_PUBLIC_REALTIME_URL")  # read as in jobs/accepted.py


async def check_server(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check each step of the path to the room server. After a failed one, the later are skipped."""
    address = context.address
    if address is None:
        yield Finding("fail", "address", context.address_problem, "correct REALTIME_URL (--url)")
        return
    async with aclosing(_steps(context, address)) as steps:
        async for finding in steps:
            yield finding
            if finding.level == "fail":
                return
    context.reachable = True
    yield await _check_ready(context, address)


async def _steps(context: CheckContext, address: ServerUrl) -> AsyncGenerator[Finding]:
    """Yield the finding of each step. The caller stops at the first that failed."""
    url = address.url
    try:
        proxy = find_proxy(url, socks_library="socksio")
        tls = tls_context(url)
    except ConfigurationError as error:
        found = f"{address.redacted} cannot be requested: {error}"
        yield Finding("fail", "environment", found, "jobs run without notifications")
        return
    if proxy:
        yield Finding("ok", "network", f"{url.host}: through the proxy of {proxy.shown}")
    else:
        port = url.port or (443 if tls is not None else 80)
        yield await _check_connection(url.host, port)
        if tls is not None:
            yield await _check_certificate(url.host, port, tls)
    yield await _check_health(context, address, "health", "REALTIME_URL (--url)")


async def _check_connection(host: str, port: int) -> Finding:
    try:
        await run_in_thread(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):  # TimeoutError is an OSError
        advice = "check the name in REALTIME_URL (--url), and this machine's DNS"
        return Finding("fail", "DNS", f"no address is known for {host}", advice)
    try:
        await _connect(host, port, None)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error) or "no response in time"
        found = f"{host}:{port} does not accept connections ({reason})"
        advice = (
            "start it (synap-realtime serve), or correct REALTIME_URL (--url); a firewall may be "
            "between"
        )
        return Finding("fail", "network", found, advice)
    return Finding("ok", "network", f"{host}:{port} accepts connections")


async def _connect(host: str, port: int, tls: ssl.SSLContext | None) -> Any:
    """Connect, and return the peer's certificate if there is TLS."""
    async with asyncio.timeout(TIMEOUT_S):
        _, writer = await asyncio.open_connection(host, port, ssl=tls)
    found = writer.get_extra_info("peercert")
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return found


async def _check_certificate(host: str, port: int, tls: ssl.SSLContext) -> Finding:
    try:
        certificate = await _connect(host, port, tls)
    except ssl.SSLCertVerificationError as error:
        found = f"{host}: {error.verify_message}"
        advice = "renew it, or install the whole chain; SSL_CERT_FILE= adds your own authority"
        return Finding("fail", "certificate", found, advice)
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or "no response in time"
        advice = "check that the server uses TLS there; otherwise use http://"
        return Finding("fail", "TLS", f"{host}:{port}: {reason}", advice)
    left_s = ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()
    return rate_expiry("certificate", f"of {host}", left_s)


async def _check_health(
    context: CheckContext, address: ServerUrl, check: str, source: str
) -> Finding:
    try:
        answer = await probe(context, address, "/health")
    except ProbeError as error:
        advice = f"check {source}, and which server runs there"
        return Finding("fail", check, f"{address.redacted} {error}", advice)
    match answer:
        case ProbeResponse(200, _, {"status": "ok"}):
            return Finding("ok", check, f"a room server answers at {address.redacted}")
        case ProbeResponse(status=status) if 300 <= status < 400:
            to = answer.headers.get("location", "nowhere").partition("?")[0]
            found = f"{address.redacted} redirects to {to}; clients do not follow redirects"
            advice = f"set {source} to the target"
        case ProbeResponse(status=status) if status >= 500:
            found = f"{address.redacted} answered {status} to /health"
            advice = "a proxy there does not reach the room server: is it running?"
        case _:
            found = (
                f"{address.redacted} is not a room server: it answered {answer.status} to /health"
            )
            advice = f"correct {source}; a server mounted at a path has that path in it"
    return Finding("fail", check, found, advice)


async def _check_ready(context: CheckContext, address: ServerUrl) -> Finding:
    try:
        answer = await probe(context, address, "/ready")
    except ProbeError as error:
        return Finding("fail", "ready", f"/ready {error}", "check the server's log")
    if answer.status == 200:
        return Finding("ok", "ready", "it accepts notifications")
    details = answer.body.get("details", "") if isinstance(answer.body, dict) else ""
    found = f"it answered {answer.status}: it is draining, or its store is unavailable"
    advice = "wait if it restarts; otherwise check its log, its disk and its store"
    return Finding("fail", "ready", f"{found} ({details})" if details else found, advice)


async def check_public_url(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check the address that browsers connect to, if it is another."""
    name = next((name for name in _PUBLIC if os.environ.get(name)), None)
    if name is None:
        return
    try:
        address = parse_server_url(None, SCHEMES, (name,))
    except ConfigurationError as error:
        advice = "correct it: browsers connect there"
        yield Finding("fail", "public URL", str(error), advice)
        return
    yield await _check_health(context, address, "public URL", name)


CHECKS = (check_server, check_public_url)
