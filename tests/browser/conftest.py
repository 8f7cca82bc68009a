"""Chromium, for behaviour that only a browser shows."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext

from tests.support.link import Link

from .chromium import launched
from .pages import NODE_MODULES, SERVERS, Publisher, Server, Tab, bundle, site

PAGES = ("react-18", "react-19")
"""Of components.tsx, with each version of React that the hooks are for."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that asks for a server meets both, and every one with components both versions of
    React: 18 with the Python server alone, for what it does otherwise is nothing that a server
    sees."""
    pairs = [(page, server) for page in PAGES for server in SERVERS]
    pairs.remove(("react-18", "worker"))
    match [name for name in ("react", "server") if name in metafunc.fixturenames]:
        case ["react", "server"]:
            metafunc.parametrize(
                ("react", "server"), pairs, indirect=True, ids=map("-".join, pairs)
            )
        case ["react"]:
            metafunc.parametrize("react", PAGES, indirect=True)
        case ["server"]:
            metafunc.parametrize("server", SERVERS, indirect=True)


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    async with launched() as found:
        yield found


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """The folder of screenshots; ``SCREENSHOTS`` keeps them for review."""
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


@pytest.fixture
def react(request: pytest.FixtureRequest) -> str:
    """The page with the components."""
    page: str = request.param
    return page


@pytest.fixture
def server(request: pytest.FixtureRequest, origin: str) -> Server:
    """The Python server, then the Worker."""
    return Server(request.param, origin)


@pytest_asyncio.fixture(loop_scope="module")
async def url(server: Server) -> AsyncIterator[str]:
    """Where it runs, with keys and an empty store."""
    async with server.serving() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def link(url: str) -> AsyncIterator[Link]:
    """The network between the pages and it."""
    async with Link(url) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def job(url: str) -> AsyncIterator[Publisher]:
    found = Publisher(url)
    yield found
    await found.close()
