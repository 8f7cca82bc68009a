"""The certificate that ``serve`` would show, and its key."""

from __future__ import annotations

import time

from ..errors import ConfigurationError
from ..server.protocols.certificate import open_certificate
from .context import CheckContext
from .expiry import check_expiry
from .finding import Finding, Report
from .keys import check_mode
from .timeouts import TIMEOUT_S, run_in_thread


async def check(subject: CheckContext, say: Report) -> None:
    """Nothing is said where none is named: a proxy may have it."""
    settings = subject.settings
    if settings is None or (settings.tls_cert is None and settings.tls_key is None):
        return
    chain, key = settings.tls_cert, settings.tls_key
    if key is not None:
        await check_mode("TLS key", key, say)
    try:
        found = await run_in_thread(lambda: open_certificate(chain, key))
    except ConfigurationError as error:
        say(Finding("fail", "TLS files", str(error), "correct it, and ask again"))
    except TimeoutError:
        unread = f"{chain} and {key} could not be read within {TIMEOUT_S:g} s"
        say(Finding("fail", "TLS files", unread, "see what their disk does"))
    else:
        assert found is not None  # noqa: S101 - both are named
        say(check_expiry("TLS files", str(chain), found.not_after.timestamp() - time.time()))
