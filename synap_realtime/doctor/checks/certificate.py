"""Check the certificate that ``serve`` would use, and its key."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from ...errors import ConfigurationError
from ...server.protocols.tls import open_certificate
from ..context import CheckContext
from ..expiry import rate_expiry
from ..finding import Finding
from ..timeouts import TIMEOUT_S, run_in_thread
from .keys import rate_mode


async def check_key_mode(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check that the certificate's key is not accessible to other users."""
    file = context.settings and context.settings.tls_key
    if file and (finding := await rate_mode("TLS key", file)):
        yield finding


async def check_files(context: CheckContext) -> AsyncGenerator[Finding]:
    """Check that the configured certificate can be used. Without one, a proxy may terminate TLS."""
    settings = context.settings
    if settings is None or (settings.tls_cert is None and settings.tls_key is None):
        return
    chain, key = settings.tls_cert, settings.tls_key
    try:
        found = await run_in_thread(lambda: open_certificate(chain, key))
    except ConfigurationError as error:
        yield Finding("fail", "TLS files", str(error), "correct it, then run doctor again")
    except TimeoutError:
        unread = f"{chain} and {key} could not be read within {TIMEOUT_S:g} s"
        yield Finding("fail", "TLS files", unread, "check their disk")
    else:
        assert found is not None  # noqa: S101 - both are configured
        yield rate_expiry("TLS files", str(chain), found.not_after.timestamp() - time.time())


CHECKS = (check_key_mode, check_files)
