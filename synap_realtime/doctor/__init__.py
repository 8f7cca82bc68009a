"""``synap-realtime doctor``: what is wrong with a set-up, and what to do.

``subject.py`` is what is looked at. Each of ``configuration.py``, ``keys.py``, ``certificate.py``,
``store.py``, ``reachability.py``, ``clock.py`` and ``round_trip.py`` is a group of checks, and
``examination.py`` runs them, so that one that breaks or hangs hides none of the others.
"""

from __future__ import annotations

from .finding import Finding
from .runner import run_checks

__all__ = ["Finding", "run_checks"]
