"""``synap-realtime doctor``: check a configuration and advise how to fix it.

A check is an async generator that reads a :class:`~.context.CheckContext` and yields findings. To
add one, write it in the module of its subject in ``checks/``, and add it to ``CHECKS`` there.
``runner.py`` runs them, so that a check that raises or hangs does not hide the others.
"""

from __future__ import annotations

from .finding import Finding
from .runner import run_checks

__all__ = ["Finding", "run_checks"]
