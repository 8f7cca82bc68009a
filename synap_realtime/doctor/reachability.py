"""Check the path to the room server: name, port, certificate, and the server itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time
from typing import Any

from ..endpoint import SCHEMES, ServerUrl, parse_server_url
from ..errors import ConfigurationError
from ..network import find_proxy, tls_context
from .context import CheckContext
from .expiry import check_expiry
from .finding import Finding, Report
from .probe import ProbeError, ProbeResponse, probe
from .timeouts import TIMEOUT_S, run_in_thread

_PUBLIC = ("REALTIME_PUBLIC_URL", "NEXT_PUBLIC_REALTIME_URL")  # read as in jobs/accepted.py


async def check(subject: CheckContext, report: Report) -> None:
    """Run the steps; each reports its result. After a failed step, the later ones are skipped."""
    address = subject.address
    if address is None:
        report(Finding("fail", "address", subject.address_problem, "correct REALTIME_URL (--url)"))
    elif await _check_way(address, report) and await _check_health(
        subject, address, "health", "REALTIME_URL (--url)", report
    ):
        subject.reachable = True
        await _check_ready(subject, address, report)
    await _check_public(subject, report)


async def _check_way(address: ServerUrl, report: Report) -> bool:
    url = address.url
    host, is_secure = url.host, url.scheme in ("https", "wss")
    port = url.port or (443 if is_secure else 80)
    try:
        proxy = find_proxy(url, socks_library="socksio")
        context = tls_context(url)
    except ConfigurationError as error:
        found = f"{address.redacted} cannot be requested: {error}"
        report(Finding("fail", "environment", found, "jobs run without notifications"))
        return False
    if proxy:
        report(Finding("ok", "network", f"{host}: through the proxy of {proxy.shown}"))
        return True
    try:
        await run_in_thread(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):  # TimeoutError is an OSError
        advice = "check the name in REALTIME_URL (--url), and this machine's DNS"
        report(Finding("fail", "DNS", f"no address is known for {host}", advice))
        return False
    try:
        await _connect(host, port, None)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error) or "no response in time"
        advice = (
            "start it (synap-realtime serve), or correct REALTIME_URL (--url); a firewall may be "
            "between"
        )
        report(
            Finding(
                "fail", "network", f"{host}:{port} does not accept connections ({reason})", advice
            )
        )
        return False
    report(Finding("ok", "network", f"{host}:{port} accepts connections"))
    return not is_secure or await _check_certificate(address, port, context, report)


async def _connect(host: str, port: int, context: ssl.SSLContext | None) -> Any:
    """Connect, and return the peer's certificate if there is TLS."""
    async with asyncio.timeout(TIMEOUT_S):
        _, writer = await asyncio.open_connection(host, port, ssl=context)
    found = writer.get_extra_info("peercert")
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return found


async def _check_certificate(
    address: ServerUrl, port: int, context: ssl.SSLContext, report: Report
) -> bool:
    host = address.url.host
    try:
        certificate = await _connect(host, port, context)
    except ssl.SSLCertVerificationError as error:
        found = f"{host}: {error.verify_message}"
        advice = "renew it, or install the whole chain; SSL_CERT_FILE= adds your own authority"
        report(Finding("fail", "certificate", found, advice))
        return False
    except OSError as error:
        reason = getattr(error, "reason", None) or error.strerror or "no response in time"
        advice = "check that the server uses TLS there; otherwise use http://"
        report(Finding("fail", "TLS", f"{host}:{port}: {reason}", advice))
        return False
    left_s = ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()
    report(check_expiry("certificate", f"of {host}", left_s))
    return True


async def _check_health(
    subject: CheckContext, address: ServerUrl, check: str, source: str, report: Report
) -> bool:
    try:
        answer = await probe(subject, address, "/health")
    except ProbeError as error:
        advice = f"check {source}, and which server runs there"
        report(Finding("fail", check, f"{address.redacted} {error}", advice))
        return False
    match answer:
        case ProbeResponse(200, _, {"status": "ok"}):
            report(Finding("ok", check, f"a room server answers at {address.redacted}"))
            return True
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
    report(Finding("fail", check, found, advice))
    return False


async def _check_ready(subject: CheckContext, address: ServerUrl, report: Report) -> None:
    try:
        answer = await probe(subject, address, "/ready")
    except ProbeError as error:
        report(Finding("fail", "ready", f"/ready {error}", "check the server's log"))
        return
    if answer.status == 200:
        report(Finding("ok", "ready", "it accepts notifications"))
        return
    details = answer.body.get("details", "") if isinstance(answer.body, dict) else ""
    found = f"it answered {answer.status}: it is draining, or its store is unavailable"
    advice = "wait if it restarts; otherwise check its log, its disk and its store"
    report(Finding("fail", "ready", f"{found} ({details})" if details else found, advice))


async def _check_public(subject: CheckContext, report: Report) -> None:
    name = next((name for name in _PUBLIC if os.environ.get(name)), None)
    if name is None:
        return
    try:
        address = parse_server_url(None, SCHEMES, (name,))
    except ConfigurationError as error:
        report(Finding("fail", "public URL", str(error), "correct it: browsers connect there"))
        return
    await _check_health(subject, address, "public URL", name, report)
