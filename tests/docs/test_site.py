"""The built site as its readers see it: links, contrast, phones, search, keyboard, no network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    ViewportSize,
    expect,
    sync_playwright,
)
from playwright.sync_api import (
    TimeoutError as PlaywrightTimeoutError,
)

from tests.support.timeouts import TIMEOUT_S
from website.build import build
from website.chromium import launch
from website.pages import sources

from .built_site import contrasts, dead_links, served, violations

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(20 * TIMEOUT_S),  # the site is built once, in the first test
]

PHONE: ViewportSize = {"width": 360, "height": 740}
DESKTOP: ViewportSize = {"width": 1280, "height": 900}
BACKGROUND = {"light": "#ffffff", "dark": "#0b0c0f"}
SHOWN = (
    "index", "tutorials/fastapi-celery-react", "concepts/delivery", "operations/calculator",
    "reference/errors", "reference/python/jobs",
)  # fmt: skip
"""Pages of each kind: code, diagrams, forms, tables, the API."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build(folder)
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright, launch(playwright) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    page = browser.new_page(viewport=DESKTOP)
    page.set_default_timeout(1000 * TIMEOUT_S)
    yield page
    page.close()


def pages(site: Path) -> list[Path]:
    """Return the pages; that of 404 is for a server, and has addresses from its root."""
    return sorted(page for page in site.rglob("*.html") if page.name != "404.html")


def test_links_lead_to_pages_and_anchors(site: Path) -> None:
    assert list(dead_links(site)) == []


def test_each_page_has_its_markdown_beside_it_and_is_in_llms_txt(site: Path) -> None:
    listed = (site / "llms.txt").read_text()
    for page in sources().values():
        assert (site / page).with_suffix(".html").is_file(), page
        assert (site / page).read_text().startswith("# "), page
        if not page.startswith("adr/0"):  # the index lists them
            assert f"/{page})" in listed, page


def test_pages_fit_a_phone_and_load_nothing_from_elsewhere(site: Path, browser: Browser) -> None:
    context = browser.new_context(viewport=PHONE)
    page = context.new_page()
    requests: list[str] = []
    errors: list[str] = []

    def log(message: ConsoleMessage) -> None:
        if message.type == "error":
            errors.append(message.text)

    context.on("request", lambda request: requests.append(request.url))
    page.on("console", log)
    page.on("pageerror", lambda error: errors.append(str(error)))
    for file in pages(site):
        page.goto(file.as_uri())
        width = page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= PHONE["width"], f"{file.relative_to(site)} is {width} pixels wide"
    context.close()
    assert [url for url in requests if not url.startswith((site.as_uri(), "data:", "blob:"))] == []
    assert errors == []


@pytest.mark.parametrize(
    ("viewport", "mode"),
    [
        pytest.param(PHONE, "light", id="phone"),
        pytest.param(DESKTOP, "light", id="light"),
        pytest.param(DESKTOP, "dark", id="dark"),
    ],
)
def test_pages_are_accessible(
    site: Path, browser: Browser, viewport: ViewportSize, mode: Literal["light", "dark"]
) -> None:
    context = browser.new_context(viewport=viewport, color_scheme=mode, reduced_motion="reduce")
    page = context.new_page()
    for name in SHOWN:
        page.goto((site / f"{name}.html").as_uri())
        assert violations(page) == [], name
    context.close()


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_diagrams_have_contrast(site: Path, page: Page, mode: str) -> None:
    diagrams = sorted((site / "diagrams").glob(f"*-{mode}.svg"))
    assert len(diagrams) > 10
    for diagram in diagrams:
        found = contrasts(page, diagram, BACKGROUND[mode])
        assert found, diagram
        assert {text: ratio for text, ratio in found.items() if ratio < 4.5} == {}, diagram


def test_diagrams_fit_a_desktop(site: Path, page: Page) -> None:
    for file in pages(site):
        if 'class="diagram"' in file.read_text():
            page.goto(file.as_uri())
            wide = page.locator(".diagram").evaluate_all(
                "(all) => all.filter((each) => each.scrollWidth > each.clientWidth)"
                ".map((each) => each.querySelector('img').alt)"
            )
            assert wide == [], file.name


def search(page: Page, words: str) -> None:
    """Type into the search of the page, which opens as soon as its index is loaded."""
    field = page.get_by_role("combobox", name="Search")
    for _ in range(10 * int(TIMEOUT_S)):
        page.keyboard.press("/")
        with contextlib.suppress(PlaywrightTimeoutError):
            field.fill(words, timeout=200)
            return
    raise AssertionError("the search does not open")


@pytest.mark.parametrize("scheme", ["file", "http"])
def test_search_finds(site: Path, page: Page, scheme: str) -> None:
    with served(site) as url:
        base = url if scheme == "http" else site.as_uri()
        for words, expected in {
            "stale_attempt": "reference/errors.html",
            "acknowledged cursor": "concepts/cursors.html",
            "honcho": "projects.html",
        }.items():
            page.goto(f"{base}/index.html")
            search(page, words)
            result = page.locator(f"[role=option][href^='{base}/{expected}']")
            expect(result.first).to_be_attached(timeout=1000 * TIMEOUT_S)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_search_is_accessible(site: Path, browser: Browser, mode: Literal["light", "dark"]) -> None:
    page = browser.new_page(viewport=DESKTOP, color_scheme=mode, reduced_motion="reduce")
    page.goto((site / "index.html").as_uri())
    search(page, "retry")
    expect(page.get_by_role("option").first).to_be_visible(timeout=1000 * TIMEOUT_S)
    assert violations(page, "color-contrast") == []  # names and roles are the theme's
    page.close()


def test_keyboard_skips_to_the_content_and_shows_the_focus(site: Path, page: Page) -> None:
    page.goto((site / "concepts/rooms.html").as_uri())
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to content")
    expect(skip).to_be_focused()
    expect(skip).to_have_css("opacity", "1")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    assert focused.evaluate("(element) => Boolean(element.closest('article'))")
    assert focused.evaluate("(element) => parseFloat(getComputedStyle(element).outlineWidth)") >= 2


def test_keyboard_scrolls_wide_tables(site: Path, browser: Browser) -> None:
    page = browser.new_page(viewport=PHONE)
    page.goto((site / "reference/errors.html").as_uri())
    table = page.locator(".md-typeset__scrollwrap").first
    expect(table).to_have_attribute("tabindex", "0")
    table.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")
    page.close()


def test_copies_commands_without_prompt_and_output(site: Path, browser: Browser) -> None:
    rights = ["clipboard-read", "clipboard-write"]
    with served(site) as url:
        page = browser.new_page(viewport=DESKTOP, permissions=rights)
        for name, first, last in (
            ("publishing", "curl http://127.0.0.1:8787/rooms/", '"entity-456"}}\''),
            ("index", "mkdir first\n", "synap-realtime --version"),
        ):
            page.goto(f"{url}/{name}.html")
            page.locator(".language-console .md-code__button").first.click()
            page.wait_for_function(
                "(first) => navigator.clipboard.readText().then((text) => text.startsWith(first))",
                arg=first,
            )
            assert page.evaluate("navigator.clipboard.readText()").endswith(last)
        page.close()
