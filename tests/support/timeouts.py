"""How long tests wait for an expected event, in one place.

Set ``TESTS_TIMEOUT_FACTOR`` to multiply all of it on a slow or busy machine.
"""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("TESTS_TIMEOUT_FACTOR", "1"))

TIMEOUT_S = 30 * FACTOR
"""For an event that must come. It bounds only a test that fails, so it is far longer than the event
takes, also beside other programs."""


def scaled(seconds: float) -> float:
    """Return a time that a test asserts, for a machine of this speed."""
    return seconds * FACTOR
