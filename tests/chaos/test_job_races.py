"""Jobs that end while they are followed and their server is killed: see ``job_races``."""

from __future__ import annotations

from pathlib import Path

import pytest

from .job_races.__main__ import run


@pytest.mark.parametrize("has_browser", [False, True], ids=["python", "chromium"])
async def test_every_state_is_that_of_the_job(
    has_browser: bool, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    races = pytestconfig.getoption("rounds") * 16
    found = await run("sqlite", tmp_path, races, seed=3, has_browser=has_browser)
    assert found.faults == []
    assert found.kills
