"""The demo: a web app, an embedded Inngest server and a room server in one process.

``synap-realtime demo`` runs it. It is for one machine, and needs no database server and no Node:
the page is built from ``browser/demo`` and committed. :func:`run` accepts other adapters for the
database, the files and the replies; see ``examples/notes_app``.
"""

from __future__ import annotations

from importlib import import_module

from ..extras import needed_by

with needed_by("synap-realtime demo", "demo"):
    # First: the modules below would name the extra of each of these packages instead.
    for _package in ("fastapi", "inngest", "cel", "uvicorn", "prometheus_client", "websockets"):
        import_module(_package)
    from .backend import Backend, Files, open_backend
    from .config import Config
    from .process import run

__all__ = ["Backend", "Config", "Files", "open_backend", "run"]
