"""``synap-realtime doctor``: check a configuration and advise how to fix it.

``context.py`` holds what is checked. Each of ``configuration.py``, ``keys.py``, ``certificate.py``,
``store.py``, ``reachability.py``, ``clock.py`` and ``round_trip.py`` is a group of checks.
``runner.py`` runs them, so that a check that fails or hangs does not hide the others.
"""

from __future__ import annotations

from .finding import Finding
from .runner import run_checks

__all__ = ["Finding", "run_checks"]
