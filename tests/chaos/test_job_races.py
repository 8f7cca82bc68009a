"""Jobs that end while they are followed and their server is killed: see ``job_races``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.valkey import Valkey

from .job_races.__main__ import run


@pytest.mark.parametrize(
    ("kind", "has_browser"),
    [("sqlite", False), ("redis", False), ("sqlite", True)],
    ids=["sqlite", "redis", "sqlite-chromium"],
)
async def test_every_state_is_that_of_the_job(
    kind: str, has_browser: bool, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    races = pytestconfig.getoption("rounds") * 16
    valkey = Valkey(tmp_path / "valkey") if kind == "redis" else None
    try:
        store = kind if valkey is None else valkey.url
        found = await run(store, tmp_path, races, seed=3, has_browser=has_browser)
    finally:
        if valkey is not None:
            valkey.kill()
    assert found.faults == []
    assert found.kills
