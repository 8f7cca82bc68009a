"""The Inngest integration: publish the lifecycle of functions, and an embedded Inngest server.

``LocalInngest`` is in :mod:`synap_realtime.integrations.inngest.local`.
"""

from __future__ import annotations

from ...extras import needed_by

with needed_by("the Inngest integration", "inngest"):
    from .enqueue import enqueue, enqueue_sync
    from .functions import create_function, create_functions

__all__ = ["create_function", "create_functions", "enqueue", "enqueue_sync"]
