"""The example's page in Chromium, with the whole system behind it."""

from __future__ import annotations

import asyncio
import filecmp
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Locator, Page, WebSocketRoute, expect

from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parents[2]
BROWSER = ROOT / "browser"
BUILT = ROOT / "examples" / "notes_app" / "page"
NODE = Path(sys.executable).with_name("node")

SECONDS = 1000
DESK = ("light", 1280, 900)
PHONE = ("dark", 390, 844)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``scripts/demo``; yields the address to open."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.notes_app.demo"],
        cwd=ROOT,
        env={**os.environ, "NOTES_DATA": str(tmp_path_factory.mktemp("demo"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = next(
            filter(None, (re.search(r"notes app +(\S+)", line) for line in process.stdout))
        )
        yield found[1]
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)


@pytest.fixture
async def page(browser: Browser, demo: str, request: pytest.FixtureRequest) -> AsyncIterator[Page]:
    """A user of their own, before the page; nothing goes wrong in it."""
    scheme, width, height = getattr(request, "param", DESK)
    size = {"width": width, "height": height}
    context = await browser.new_context(color_scheme=scheme, viewport=size)  # type: ignore[arg-type]
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(demo)
    await expect(page.get_by_role("status").first).to_have_text("live")
    yield page
    await context.close()
    assert complaints == []


def form(page: Page, name: str) -> Locator:
    return page.get_by_role("form", name=name, exact=True)


def press(page: Page, where: str, button: str) -> Locator:
    return form(page, where).get_by_role("button", name=button, exact=True)


async def require_accessible(page: Page) -> None:
    """Axe-core finds nothing: roles, names, contrast, and the rest of what a machine can see."""
    if not await page.evaluate("'axe' in window"):
        await page.add_script_tag(path=BROWSER / "node_modules" / "axe-core" / "axe.min.js")
    # What is still fading in has no contrast yet.
    await page.evaluate("Promise.all(document.getAnimations().map((one) => one.finished))")
    found = await page.evaluate("axe.run()")
    wrong = [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]]
    assert wrong == []


@pytest.mark.parametrize("page", [DESK, PHONE], ids=["desk", "phone"], indirect=True)
async def test_every_state_of_a_job(page: Page, screenshots: Path) -> None:
    assert page.viewport_size is not None
    name = f"example-{page.viewport_size['width']}"
    await require_accessible(page)
    await page.screenshot(path=screenshots / f"{name}-empty.png", full_page=True)

    await press(page, "Note", "Fail twice, then succeed").click()
    note = page.locator(".job").last
    again = re.compile("retrying, attempt [23] of 5")
    await expect(note).to_contain_text(again, timeout=20 * SECONDS)
    await expect(note).to_contain_text("The storage is busy.")
    await expect(note.get_by_role("progressbar")).to_be_visible()
    await require_accessible(page)
    await page.screenshot(path=screenshots / f"{name}-retrying.png", full_page=True)
    await press(page, "Note", "Fail permanently").click()
    alert = page.get_by_role("alert").filter(has_text="Note failed: ")
    alerted = asyncio.create_task(alert.wait_for(timeout=90 * SECONDS))

    await press(page, "Task", "Create").click()
    done = press(page, "Complete a task", "Complete")
    await expect(done).to_be_enabled(timeout=20 * SECONDS)
    await done.click()
    await press(page, "Project", "Create").click()
    await press(page, "Conversation", "Send").click()
    reply = page.locator(".job").first
    await expect(reply).to_contain_text("I read your 3 words", timeout=20 * SECONDS)
    await expect(page.locator(".job[data-status=success]")).to_have_count(5, timeout=60 * SECONDS)
    await expect(done).to_be_disabled()
    toast = page.get_by_role("status").filter(has_text="New reply in the conversation")
    await expect(toast).to_be_visible()
    await require_accessible(page)
    await page.screenshot(path=screenshots / f"{name}-done.png", full_page=True)
    await page.get_by_role("button", name="Dismiss: New reply in the conversation").click()
    await expect(toast).to_be_hidden()

    await expect(page.locator(".job[data-status=error]")).to_contain_text(
        "The storage rejected this note", timeout=90 * SECONDS
    )
    await alerted
    await require_accessible(page)
    await page.screenshot(path=screenshots / f"{name}-failed.png", full_page=True)

    await page.reload()  # the cards find out again how their jobs stand
    await expect(page.locator(".job[data-status=success]")).to_have_count(5, timeout=20 * SECONDS)
    await expect(page.locator(".job[data-status=error]")).to_have_count(1)
    width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert await page.evaluate(width) == 0, "it has to be pushed sideways"


async def test_shows_a_job_that_finished_while_the_page_was_closed(
    page: Page, demo: str, screenshots: Path
) -> None:
    async with page.expect_response("**/api/notes"):
        await press(page, "Note", "Create").click()
    user = json.loads(await page.evaluate("localStorage['notes-user']"))
    await page.goto("about:blank")
    await end_of_a_job(demo, user)
    await page.goto(demo)
    away = page.get_by_role("region", name="While you were away")
    await expect(away).to_contain_text("Note created: Milk")
    await require_accessible(page)
    await page.screenshot(path=screenshots / "example-away.png", full_page=True)
    await away.get_by_role("button", name="Dismiss", exact=True).click()
    await expect(away).to_be_hidden()
    await page.reload()
    await expect(page.get_by_role("status").first).to_have_text("live")
    await expect(away).to_be_hidden()


async def end_of_a_job(demo: str, user: str) -> None:
    async with asyncio.timeout(TIMEOUT_S), httpx.AsyncClient() as client:
        rooms = (await client.get(f"{demo}/api/config")).json()["realtimeUrl"]
        while True:
            history = await client.get(f"{rooms}/rooms/user_{user}/history")
            if any(each["status"] == "success" for each in history.json()["notifications"]):
                return
            await asyncio.sleep(0.05)


async def test_status_light_shows_a_lost_connection(
    page: Page, demo: str, screenshots: Path
) -> None:
    sockets: list[WebSocketRoute] = []
    is_away = False

    async def meet(socket: WebSocketRoute) -> None:
        if is_away:
            await socket.close()
        else:
            socket.connect_to_server()
            sockets.append(socket)

    await page.route_web_socket("**/subscribe*", meet)
    await page.goto(demo)
    light = page.get_by_role("status").first
    await expect(light).to_have_text("live")
    is_away = True
    await page.route("**/events*", lambda route: route.abort())
    for socket in sockets:
        await socket.close()
    await expect(light).to_have_text("reconnecting …")
    await require_accessible(page)
    await page.screenshot(path=screenshots / "example-reconnecting.png", full_page=True)
    is_away = False
    await page.get_by_role("button", name="Try now").click()
    await expect(light).to_have_text("live")


async def test_by_keyboard_alone(page: Page) -> None:
    content = page.get_by_label("Content")
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await content.evaluate("(element) => element === document.activeElement"):
            break
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await expect(page.locator(".job")).to_have_count(1)
    fold = form(page, "Project").get_by_role("button", name="Project")
    await fold.focus()
    await page.keyboard.press("Space")
    await expect(fold).to_have_attribute("aria-expanded", "false")
    await expect(form(page, "Project").get_by_label("Title")).to_be_hidden()


async def test_shows_that_a_request_was_not_sent(page: Page) -> None:
    await page.route("**/api/notes", lambda route: route.abort())
    await press(page, "Note", "Create").click()
    await expect(page.locator(".job")).to_contain_text("Request failed: ")


def test_page_matches_the_build_of_its_sources(tmp_path: Path) -> None:
    done = subprocess.run(
        [NODE, "scripts/example.mjs", tmp_path / "page"],
        cwd=BROWSER, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {path.name for path in BUILT.iterdir()}
    assert names == {path.name for path in (tmp_path / "page").iterdir()}
    _, wrong, errors = filecmp.cmpfiles(BUILT, tmp_path / "page", names, shallow=False)
    assert (wrong, errors) == ([], []), "run: npm run example --prefix browser"


def test_its_packages_are_pinned_without_addresses() -> None:
    lock = json.loads((BROWSER / "package-lock.json").read_text())
    assert all("resolved" not in each for each in lock["packages"].values())
