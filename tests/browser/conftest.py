"""Chromium, for what only a browser shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Error, async_playwright

from .pages import NODE_MODULES, Publisher, Tab, bundle, serving, site

FLAGS = [
    "--disable-background-networking", "--disable-component-update", "--disable-gpu",
    "--disable-quic", "--disable-sync", "--no-first-run",
]  # fmt: skip


def chromium() -> str | None:
    """The system's; None: Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@asynccontextmanager
async def launched(**options: Any) -> AsyncIterator[Browser]:
    flags = [*FLAGS, "--no-sandbox"] if os.geteuid() == 0 else FLAGS  # root has no sandbox
    async with async_playwright() as playwright:
        try:
            found = await playwright.chromium.launch(
                executable_path=chromium(), args=flags, **options
            )
        except Error as error:
            pytest.fail(f"Chromium does not start (scripts/setup dev gets it): {error}")
        yield found
        await found.close()


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with launched() as found:
        yield found


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures go; ``SCREENSHOTS`` keeps them for people."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A site with the pages that the tests open: another origin than the room server's."""
    folder = tmp_path_factory.mktemp("site")
    bundle("listener.ts", folder / "listener")
    # What stands in the report's own call has no address: a bundler puts it in.
    given = "--define:process.env.NEXT_PUBLIC_REALTIME_URL=globalThis.REALTIME_URL"
    bundle("components.tsx", folder / "react-19", given)
    other = [f"--alias:{name}={NODE_MODULES / name}18" for name in ("react", "react-dom")]
    bundle("components.tsx", folder / "react-18", given, *other)
    (folder / "away.html").write_text("<!doctype html><title>away</title>")
    with site(folder) as found:
        yield found


# ---- one browser for many tests, which takes one event loop ----


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def long_lived() -> AsyncIterator[Browser]:
    async with launched() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def context(long_lived: Browser) -> AsyncIterator[BrowserContext]:
    """Tabs that share what tabs of one user do; nothing may be thrown in them."""
    thrown: list[str] = []
    found = await long_lived.new_context()
    found.on("weberror", lambda error: thrown.append(str(error.error)))
    yield found
    await found.close()
    assert thrown == []


@pytest_asyncio.fixture(loop_scope="module")
async def tab(context: BrowserContext, origin: str) -> Tab:
    return await Tab.open(context, origin)


@pytest_asyncio.fixture(loop_scope="module")
async def url(origin: str) -> AsyncIterator[str]:
    """A room server in this process, with keys and an empty store."""
    async with serving(origin) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def job(url: str) -> AsyncIterator[Publisher]:
    found = Publisher(url)
    yield found
    await found.close()
