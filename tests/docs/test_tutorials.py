"""Each tutorial, followed word by word: its files, its commands, what it shows in a browser."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from release.project import version
from tests.support.timeouts import TIMEOUT_S

from .tutorial import TUTORIALS, File, Reader, read_steps

pytestmark = pytest.mark.timeout(30 * TIMEOUT_S)  # packages are installed, pages are built

PAGES = sorted(path for path in TUTORIALS.glob("*.md") if path.name != "README.md")
MS = 1000 * TIMEOUT_S


@pytest.fixture
def follow(tmp_path: Path, dist: Path) -> Iterator[Callable[..., Reader]]:
    """Follow the tutorial of this name, with these ports; its servers run until the test ends."""
    readers: list[Reader] = []

    def _follow(name: str, *ports: int) -> Reader:
        (tmp_path / "dist").symlink_to(dist)
        reader = Reader(tmp_path, (TUTORIALS / f"{name}.md").read_text(), ports)
        readers.append(reader)
        reader.follow()
        return reader

    yield _follow
    for reader in readers:
        reader.stop()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_names_the_files_of_this_version(path: Path) -> None:
    named = set(re.findall(r"synap[_-]realtime-[\d.]+[\w.-]*(?:whl|tgz)", path.read_text()))
    assert named == {
        f"synap_realtime-{version()}-py3-none-any.whl",
        f"synap-realtime-{version()}.tgz",
    }


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_table_of_files_and_the_python_in_them(path: Path) -> None:
    text = path.read_text()
    files = {step.path: step.text for step in read_steps(text) if isinstance(step, File)}
    for cell in re.findall(r"^\| (`[^|]*) \|", text, re.M):
        for name in re.findall(r"`([^`]+)`", cell):
            assert any(f.startswith(name) for f in files), name
    for name, code in files.items():
        if name.endswith(".py"):
            compile(code, name, "exec")


def test_the_index_lists_each_tutorial() -> None:
    links = re.findall(r"\]\(([\w-]+\.md)\)", (TUTORIALS / "README.md").read_text())
    assert sorted(links) == [path.name for path in PAGES]


async def test_fastapi_celery_react(follow: Callable[..., Reader], page: Page) -> None:
    reader = await asyncio.to_thread(follow, "fastapi-celery-react", 8787, 8000, 5173, 6379)
    await page.goto(f"http://localhost:{reader.ports[5173]}/")
    await page.get_by_label("Title").fill("Q4")
    await page.get_by_role("button", name="Order").click()
    job = page.get_by_role("listitem").first
    await expect(job).to_contain_text("Page 2 of 10", timeout=MS)
    await expect(job).to_contain_text("The printer is busy.", timeout=MS)
    await page.reload()
    await expect(job).to_contain_text("Done: Q4, 10 pages", timeout=MS)
    await expect(page.get_by_role("listitem")).to_have_count(2)  # and the one of curl


async def test_llm_replies(follow: Callable[..., Reader], page: Page) -> None:
    reader = await asyncio.to_thread(follow, "llm-replies", 8787, 8000, 5173, 6379)
    await page.goto(f"http://localhost:{reader.ports[5173]}/")
    await page.get_by_role("button", name="Ask").click()
    text = page.locator("[aria-live]")
    await expect(text).to_contain_text("You asked: Why", timeout=MS)
    await page.reload()
    await expect(text).to_contain_text("You asked: Why is", timeout=MS)
    await expect(page.get_by_text("success")).to_be_visible(timeout=MS)
    await expect(text).to_contain_text("knows only this sentence.")


async def test_fastapi_inngest(follow: Callable[..., Reader], page: Page) -> None:
    reader = await asyncio.to_thread(follow, "fastapi-inngest", 8787, 8000, 8288)
    await page.goto(f"http://localhost:{reader.ports[8000]}/")
    await page.get_by_label("Title").fill("Q4")
    await page.get_by_role("button", name="Order").click()
    state = page.get_by_role("status")
    await expect(state).to_contain_text("Page 2 of 10", timeout=MS)
    await expect(state).to_contain_text("The printer is busy.", timeout=MS)
    await expect(state).to_contain_text("Done: Q4, 10 pages", timeout=MS)


async def test_django_celery(follow: Callable[..., Reader], page: Page) -> None:
    reader = await asyncio.to_thread(follow, "django-celery", 8787, 8000, 6379)
    address = f"http://localhost:{reader.ports[8000]}"
    refused = await page.request.get(f"{address}/api/realtime-token", max_redirects=0)
    assert refused.status == 401
    await page.goto(address)
    await page.get_by_label("Username").fill("ada")
    await page.get_by_label("Password").fill("analytical")
    await page.get_by_role("button", name="Log in").click()
    await page.get_by_label("Title").fill("Q4")
    await page.get_by_role("button", name="Order").click()
    state = page.get_by_role("status")
    await expect(state).to_contain_text("Page 2 of 10", timeout=MS)
    await expect(state).to_contain_text("The printer is busy.", timeout=MS)
    await expect(state).to_contain_text("Done: Q4, 10 pages", timeout=MS)


async def test_nextjs(follow: Callable[..., Reader], page: Page) -> None:
    reader = await asyncio.to_thread(follow, "nextjs", 8787, 8000, 3000)
    await page.goto(f"http://localhost:{reader.ports[3000]}/")
    await page.get_by_label("Title").fill("Q4")
    await page.get_by_role("button", name="Order").click()
    job = page.get_by_role("listitem").first
    await expect(job).to_contain_text("Page 2 of 10", timeout=MS)
    await page.reload()
    await expect(job).to_contain_text("Done: Q4, 10 pages", timeout=MS)


async def test_javascript(follow: Callable[..., Reader], page: Page) -> None:
    reader = await asyncio.to_thread(follow, "javascript", 8787, 8000)
    address = f"http://localhost:{reader.ports[8000]}"

    async def publish(title: str) -> str:
        return await asyncio.to_thread(reader.run, f". ./env.sh; python publish.py '{title}'")

    news = page.get_by_role("listitem")
    await page.goto(address)
    await expect(news).to_have_text(["Nobody is here yet"], timeout=MS)
    assert "success=True broadcast_count=1" in await publish("Hello")
    await expect(news).to_have_text(["Nobody is here yet", "Hello"], timeout=MS)
    await page.get_by_role("button", name="Order").click()
    state = page.get_by_role("status")
    await expect(state).to_contain_text("Page 2 of 5", timeout=MS)
    await expect(state).to_contain_text("Done: Q3", timeout=MS)

    await page.goto("about:blank")
    assert "broadcast_count=0" in await publish("While you were away")
    await page.goto(address)
    await expect(news).to_have_text(["While you were away"], timeout=MS)

    await page.goto(f"{address}/events.html")
    await expect(page.get_by_text("connected")).to_be_visible(timeout=MS)
    await publish("An event")
    await expect(news.last).to_have_text("news.published: An event", timeout=MS)
