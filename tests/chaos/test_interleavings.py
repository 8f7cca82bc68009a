"""A few interleavings of writes, subscribers and faults: see the package ``interleavings``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.valkey import Valkey

from .interleavings.__main__ import explore


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_every_client_has_the_text_and_the_state_of_the_model(
    kind: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    examples = pytestconfig.getoption("rounds") * 2
    if kind != "redis":
        explore(kind, tmp_path, examples)
        return
    valkey = Valkey(tmp_path / "valkey")
    try:
        explore(valkey.url, tmp_path, examples)
    finally:
        valkey.kill()
