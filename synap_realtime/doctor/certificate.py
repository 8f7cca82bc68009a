"""Check the certificate that ``serve`` would use, and its key."""

from __future__ import annotations

import time

from ..errors import ConfigurationError
from ..server.protocols.certificate import open_certificate
from .context import CheckContext
from .expiry import check_expiry
from .finding import Finding, Report
from .keys import check_mode
from .timeouts import TIMEOUT_S, run_in_thread


async def check(subject: CheckContext, report: Report) -> None:
    """Check the configured certificate. Report nothing without one: a proxy may terminate TLS."""
    settings = subject.settings
    if settings is None or (settings.tls_cert is None and settings.tls_key is None):
        return
    chain, key = settings.tls_cert, settings.tls_key
    if key is not None:
        await check_mode("TLS key", key, report)
    try:
        found = await run_in_thread(lambda: open_certificate(chain, key))
    except ConfigurationError as error:
        report(Finding("fail", "TLS files", str(error), "correct it, then run doctor again"))
    except TimeoutError:
        unread = f"{chain} and {key} could not be read within {TIMEOUT_S:g} s"
        report(Finding("fail", "TLS files", unread, "check their disk"))
    else:
        assert found is not None  # noqa: S101 - both are configured
        report(check_expiry("TLS files", str(chain), found.not_after.timestamp() - time.time()))
