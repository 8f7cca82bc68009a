"""Rules that the wire does not show, in the Workers runtime: worker/tests, run by vitest."""

from __future__ import annotations

import re

from tests.support.workerd import run_node


def test_in_the_workers_runtime() -> None:
    """Sleep and wake, alarms, retention and expiry, tokens with a clock."""
    said = run_node("node_modules/vitest/vitest.mjs", "run", "--no-color")
    (summary,) = re.findall(r"^ +Tests +(.+)$", said, re.MULTILINE)
    assert re.fullmatch(r"(\d+) passed \(\1\)", summary), summary
