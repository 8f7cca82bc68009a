"""The Start page, followed word by word: its files, its commands, what it shows in a browser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from release.project import version
from tests.support.timeouts import TIMEOUT_S

from .tutorial import ROOT, Reader

pytestmark = pytest.mark.timeout(20 * TIMEOUT_S)  # packages are installed

START = (ROOT / "docs/README.md").read_text()
ACTIVATE = ". .venv/bin/activate"
ENVIRONMENT = f"{ACTIVATE}; export REALTIME_URL=http://127.0.0.1:8787"
"""The default address, whose port is another one here."""


@pytest.fixture
def follow(tmp_path: Path, dist: Path) -> Iterator[Callable[[], Reader]]:
    """Follow the page; its servers run until the test ends."""
    (tmp_path / "dist").symlink_to(dist)
    reader = Reader(tmp_path, START.replace(f"$ {ACTIVATE}", f"$ {ENVIRONMENT}"), (8787, 8000))

    def _follow() -> Reader:
        reader.follow()
        return reader

    yield _follow
    reader.stop()


def test_names_the_package_of_this_version() -> None:
    assert f"dist/synap_realtime-{version()}-py3-none-any.whl" in START


async def test_start(follow: Callable[[], Reader], page: Page) -> None:
    reader = await asyncio.to_thread(follow)
    state = page.get_by_role("status")
    await page.goto(f"http://127.0.0.1:{reader.ports[8000]}/page.html")
    await expect(state).to_have_text("Done: /reports/q3.pdf")  # replayed

    environment = ENVIRONMENT.replace("8787", str(reader.ports[8787]))
    again = asyncio.to_thread(reader.run, f"{environment}; python report.py r2")
    running = asyncio.create_task(again)
    await expect(state).to_have_text("Page 2 of 4", timeout=1000 * TIMEOUT_S)
    await running
    await expect(state).to_have_text("Done: /reports/q3.pdf")
