"""The example's page in Chromium, with the whole system behind it."""

from __future__ import annotations

import asyncio
import filecmp
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from playwright.async_api import Browser, Locator, Page, WebSocketRoute, expect

from synap_realtime.demo.replies import long_text
from tests.support.demo import Demo
from tests.support.polling import until
from tests.support.program import Program
from tests.support.timeouts import TIMEOUT_S

ROOT = Path(__file__).parents[2]
BROWSER = ROOT / "browser"
BUILT = ROOT / "synap_realtime" / "demo" / "page"
NODE = Path(sys.executable).with_name("node")

SECONDS = 1000
DESK = ("light", 1280, 900)
PHONE = ("dark", 390, 844)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``synap-realtime demo``; yields the address to open."""
    process = subprocess.Popen(
        [sys.executable, "-m", "synap_realtime", "demo"],
        cwd=tmp_path_factory.mktemp("demo"),
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
    async with page.expect_response("**/api/reports"):  # a job of some seconds
        await press(page, "Report", "Write").click()
    user = json.loads(await page.evaluate("localStorage['notes-user']"))
    await page.goto("about:blank")
    await end_of_a_job(demo, user)
    await page.goto(demo)
    away = page.get_by_role("region", name="While you were away")
    await expect(away).to_contain_text("Report written: The week")
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


async def start_long_reply(page: Page) -> Locator:
    """Ask for a long reply; return its card once some text is shown."""
    await press(page, "Conversation", "Ask for a long reply").click()
    card = page.locator(".job").first
    await expect(card.locator(".text")).to_contain_text("3. A reply grows", timeout=20 * SECONDS)
    return card


async def require_long_reply(page: Page) -> None:
    """The first job has ended, and its text is that of the model, character by character."""
    card = page.locator(".job").first
    await expect(card).to_have_attribute("data-status", "success", timeout=90 * SECONDS)
    text = await card.locator(".text").text_content()
    assert text is not None
    assert text.partition("\n\n")[2].rstrip() == long_text()
    await expect(card.locator(".problem")).to_have_count(0)


async def test_reply_goes_on_after_a_reload_in_the_middle(page: Page) -> None:
    """Each text that is shown is a beginning of the whole one, also right after the reload."""
    card = await start_long_reply(page)
    before = await card.locator(".text").text_content() or ""
    for _ in range(3):
        await page.reload()
        await expect(card.locator(".text")).to_contain_text(before.strip()[-20:])
        shown = await card.locator(".text").text_content() or ""
        assert shown.startswith(before)
        assert len(shown) < len(long_text()), "it was not in the middle"
        before = shown
    await require_long_reply(page)


async def test_jobs_are_listed_after_the_tab_was_closed(page: Page, demo: str) -> None:
    """In the middle of one of them, too."""
    await press(page, "Project", "Create").click()
    await expect(page.locator(".job[data-status=success]")).to_have_count(1)
    card = await start_long_reply(page)
    before = await card.locator(".text").text_content() or ""
    context = page.context
    await page.close()
    page = await context.new_page()
    await page.goto(demo)
    await expect(page.locator(".job")).to_have_count(2)
    card = page.locator(".job").first
    await expect(card.locator(".text")).to_contain_text(before.strip()[-20:])
    await require_long_reply(page)
    await page.close()
    page = await context.new_page()
    await page.goto(demo)
    await require_long_reply(page)
    await expect(page.locator(".job").last).to_contain_text("Project House")


async def test_three_tabs_have_one_connection_each(page: Page, demo: str) -> None:
    tabs = [page, *[await page.context.new_page() for _ in range(2)]]
    for tab in tabs[1:]:
        await tab.goto(demo)
    await start_long_reply(page)
    await press(page, "Report", "Write").click()
    for tab in tabs:  # each follows both jobs
        await expect(tab.locator(".job")).to_have_count(2)
        await expect(tab.locator(".job .text")).to_contain_text("4. A reply grows")
        await expect(tab.locator(".job").first).to_contain_text("Counting the tasks")
    user = json.loads(await page.evaluate("localStorage['notes-user']"))
    async with httpx.AsyncClient() as client:
        rooms = (await client.get(f"{demo}/api/config")).json()["realtimeUrl"]
        health = (await client.get(f"{rooms}/rooms/user_{user}/health")).json()
        assert health["connections"] == 3

        async def connections() -> list[str]:
            metrics = (await client.get(f"{rooms}/metrics")).text
            return re.findall(r"^synap_realtime_connections\{.*\} (\d+)", metrics, re.MULTILINE)

        async def are_three() -> bool:
            return sorted(await connections()) == ["0", "3"]  # event streams, WebSockets

        await until(are_three)  # those of the tests before are closed
    for tab in tabs:
        await expect(tab.locator(".job[data-status=success]")).to_have_count(
            2, timeout=90 * SECONDS
        )
        text = await tab.locator(".job").last.locator(".text").text_content() or ""
        assert text.partition("\n\n")[2].rstrip() == long_text()


async def test_reply_and_list_survive_kill_9_of_the_servers(
    browser: Browser, tmp_path: Path
) -> None:
    """Of the room server in the middle of a reply, and of all of the demo afterwards."""
    server = Program(f"sqlite:///{tmp_path / 'rooms.db'}")
    await server.start()
    demo = Demo(tmp_path / "demo", "--room-server", server.url)
    await asyncio.to_thread(demo.start)
    try:
        page = await (await browser.new_context()).new_page()
        await page.goto(demo.url)
        card = await start_long_reply(page)
        for _ in range(2):
            await server.kill()
            before = await card.locator(".text").text_content() or ""
            await page.reload()
            await server.start()
            await expect(card.locator(".text")).to_contain_text(
                before.strip()[-20:], timeout=20 * SECONDS
            )
        await require_long_reply(page)
        demo.kill()
        await server.kill()
        await server.start()
        await asyncio.to_thread(demo.start)
        await page.goto(demo.url)
        await require_long_reply(page)
    finally:
        demo.kill()
        await server.kill()


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
        [NODE, "scripts/demo.mjs", tmp_path / "page"],
        cwd=BROWSER, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    names = {path.name for path in BUILT.iterdir()}
    assert names == {path.name for path in (tmp_path / "page").iterdir()}
    _, wrong, errors = filecmp.cmpfiles(BUILT, tmp_path / "page", names, shallow=False)
    assert (wrong, errors) == ([], []), "run: npm run demo --prefix browser"


def test_bundle_of_the_projects_matches_the_build_of_its_sources(tmp_path: Path) -> None:
    done = subprocess.run(
        [NODE, "scripts/bundle.mjs", tmp_path / "bundle.js"],
        cwd=BROWSER, capture_output=True, text=True, timeout=2 * TIMEOUT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    committed = ROOT / "synap_realtime" / "templates" / "common" / "static" / "synap-realtime.js"
    assert (tmp_path / "bundle.js").read_bytes() == committed.read_bytes(), (
        "run: npm run bundle --prefix browser"
    )


def test_its_packages_are_pinned_without_addresses() -> None:
    lock = json.loads((BROWSER / "package-lock.json").read_text())
    assert all("resolved" not in each for each in lock["packages"].values())
