"""Fixtures of the tests that follow a page: the packages, and a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from playwright.async_api import Page

from release.build import build
from tests.browser.chromium import launched
from tests.support.timeouts import TIMEOUT_S


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``scripts/build`` makes."""
    folder = tmp_path_factory.mktemp("dist")
    build(folder)
    return folder


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    async with launched() as browser:
        page = await browser.new_page()
        page.set_default_timeout(1000 * TIMEOUT_S)
        yield page
