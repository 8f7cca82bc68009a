"""A job that outlives its subscribers' tokens: every client follows it to its end."""

from __future__ import annotations

from pathlib import Path

from .long_job import Plan, run


async def test_a_job_that_outlives_many_tokens_is_followed_to_its_end(tmp_path: Path) -> None:
    assert await run(Plan(duration_s=9, token_life_s=3, every_s=0.5), tmp_path) == []
