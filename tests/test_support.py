"""What the tests' own helpers promise."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest

from tests.support.waits import WAITS


@pytest.mark.parametrize("name", WAITS)
def test_each_wait_that_tests_set_exists(name: str) -> None:
    for constant in WAITS[name]:
        module, _, attribute = f"synap_realtime.{constant}".rpartition(".")
        value = getattr(pkgutil.resolve_name(module), attribute)
        assert isinstance(value, int | float)
        assert attribute.endswith("_S")


def test_waits_are_set_in_one_place() -> None:
    """A wait whose name changes is then changed once in the tests."""
    patched = re.compile(r"""setattr\([^()]*?["'.]_?[A-Z][A-Z_]*_S["']""")
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        assert not patched.findall(path.read_text()), path
