"""Chromium, for what only a browser shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Browser, Error, async_playwright

FLAGS = [
    "--disable-background-networking", "--disable-component-update", "--disable-gpu",
    "--disable-quic", "--disable-sync", "--no-first-run",
]  # fmt: skip


def chromium() -> str | None:
    """The system's; None: Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else FLAGS  # root has no sandbox
    async with async_playwright() as playwright:
        try:
            found = await playwright.chromium.launch(executable_path=chromium(), args=flags)
        except Error as error:
            pytest.fail(f"Chromium does not start (scripts/setup dev gets it): {error}")
        yield found
        await found.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures go; ``SCREENSHOTS`` keeps them for people."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
