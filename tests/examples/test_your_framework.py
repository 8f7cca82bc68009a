"""The example reports what its page describes, and the page shows the example."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import httpx

from synap_realtime.server.serve import running_server
from tests.support.servers import unfolded_app
from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parent.parent.parent
CODE = (ROOT / "examples" / "your_framework.py").read_text()


async def test_example_reports_the_lifecycle_of_a_job() -> None:
    async with running_server(unfolded_app()) as url, asyncio.timeout(2 * TIMEOUT_S):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "examples.your_framework",
            cwd=ROOT,
            env={**os.environ, "REALTIME_URL": url},
        )
        assert await process.wait() == 0
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"{url}/rooms/request_r1/history")
    received = [m["type"].rpartition(".")[2] for m in answer.json()["notifications"]]
    assert received == ["started", "progress", "retrying", "progress", "completed"]


def test_the_page_shows_the_example() -> None:
    page = (ROOT / "docs" / "your-framework.md").read_text()
    assert f"```python\n{CODE}```" in page
    assert len(CODE.splitlines()) <= 60
