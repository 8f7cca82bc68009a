"""What the tests' own helpers promise."""

from __future__ import annotations

import pkgutil

import pytest

from tests.support.waits import WAITS


@pytest.mark.parametrize("name", WAITS)
def test_each_wait_that_tests_set_exists(name: str) -> None:
    for constant in WAITS[name]:
        module, _, attribute = f"synap_realtime.{constant}".rpartition(".")
        value = getattr(pkgutil.resolve_name(module), attribute)
        assert isinstance(value, int | float)
        assert attribute.endswith("_S")
