"""LocalInngest: an Inngest server inside your process, for development and tests.

It is not durable: events and runs are kept in memory and end with the process. It serves one
machine only. The same app runs unchanged on the Inngest Dev Server (``npx inngest-cli dev``) and on
Inngest.
"""

from __future__ import annotations

from ....extras import needed_by

with needed_by("LocalInngest", "local"):
    from .app import LocalInngest
    from .runs import Backoff

__all__ = ["Backoff", "LocalInngest"]
