"""Many jobs on a page in Chromium: one WebSocket, whatever happens to it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, WebSocket

from tests.support.link import Link

from .conftest import PAGES
from .pages import Publisher, Tab, serving, token

pytestmark = pytest.mark.asyncio(loop_scope="module")

IDS = [f"r{number}" for number in range(50)]


class Dashboard:
    """A page with fifty jobs of a user, the list of them, and the user's room."""

    def __init__(self, tab: Tab, link: Link, job: Publisher) -> None:
        self.tab = tab
        self.link = link
        self.job = job
        self.sockets: list[WebSocket] = []  # that were opened
        tab.page.on("websocket", lambda socket: self.sockets.append(socket))

    @property
    def open(self) -> list[WebSocket]:
        return [socket for socket in self.sockets if not socket.is_closed()]

    async def show(self, *, strict: bool = False) -> None:
        await self.tab.show("Dashboard", strict=strict, ids=IDS, url=self.link.url, token=token())
        await self.until(connection="open")
        await self.tab.until("seen.hook?.isConnected && seen.list?.isLoaded")

    async def until(self, **state: object) -> None:
        """Until all jobs are so."""
        await self.tab.until(
            f"""{json.dumps(IDS)}.every((id) => Object.entries({json.dumps(state)}).every(
                ([name, value]) => seen.jobs[id]?.[name] === value))"""
        )

    async def until_listed(self, status: str) -> None:
        await self.tab.until(
            f"""seen.list.jobs.length === {len(IDS)}
                && seen.list.jobs.every((job) => job.status === "{status}")"""
        )

    async def publish(self, event: str, status: str = "pending", **data: object) -> None:
        """One event of all jobs, each in its room and in the user's."""
        await self.job.send(
            {
                "rooms": ["user_1", f"request_{id_}"],
                "type": f"note.creation.{event}",
                "id": f"{id_}:{event}:{data.get('progress', '')}",
                "status": status,
                "requestId": id_,
                "data": {"runId": f"run-{id_}", "attempt": 1, **data},
                "job": {"event": event, "name": "note.creation", "runId": f"run-{id_}"},
            }
            for id_ in IDS
        )

    async def write(self, piece: str, offset: int) -> None:
        """A piece of the text of each job."""
        key = {"mode": "append", "offset": offset, "attempt": 1}
        await self.job.send(
            {
                "rooms": [f"request_{id_}"],
                "type": "note.creation.delta",
                "id": f"{id_}:delta:{offset}",
                "status": "pending",
                "requestId": id_,
                "data": {"runId": f"run-{id_}", "attempt": 1, "index": offset, "delta": piece},
                "fold": {"key": f"run-{id_}:text", **key},
            }
            for id_ in IDS
        )


@pytest_asyncio.fixture(loop_scope="module", params=PAGES)
async def page(
    request: pytest.FixtureRequest, context: BrowserContext, origin: str
) -> AsyncIterator[Dashboard]:
    async with serving(origin) as url, Link(url) as link:
        job = Publisher(url)
        yield Dashboard(await Tab.open(context, origin, request.param), link, job)
        await job.close()


async def test_fifty_jobs_are_one_connection(page: Dashboard) -> None:
    """Also in StrictMode, which mounts everything twice."""
    await page.publish("started")
    await page.write("Hé", 0)
    await page.show(strict=True)
    await page.until(status="pending", text="Hé", isTextComplete=True)
    await page.until_listed("running")
    await page.write("llo", 2)
    await page.publish("progress", progress=0.5)
    await page.until(text="Héllo", progress=0.5)
    await page.publish("completed", "success", title="Milk")
    await page.until(status="success", text="Héllo", connection="closed")
    await page.until_listed("completed")
    assert len(page.sockets) == 1
    await page.tab.page.evaluate("leave()")
    await page.job.until_connections(0)


async def test_three_tabs_have_one_connection_each(
    context: BrowserContext, origin: str, page: Dashboard
) -> None:
    await page.publish("started")
    name = page.tab.page.url.rpartition("/")[2].removesuffix(".html")
    others = [
        Dashboard(await Tab.open(context, origin, name), page.link, page.job) for _ in range(2)
    ]
    for each in (page, *others):
        await each.show()
    await page.job.until_connections(3)
    await page.publish("completed", "success", title="Milk")
    for each in (page, *others):
        await each.until(status="success")
        await each.until_listed("completed")
        assert len(each.sockets) == 1


async def test_a_network_that_is_cut_and_back(page: Dashboard) -> None:
    """What happened meanwhile is there, over one new connection."""
    await page.publish("started")
    await page.write("a", 0)
    await page.show()
    await page.until(text="a")
    for round_ in range(1, 4):
        page.link.refuse()
        page.link.cut()
        await page.until(connection="reconnecting", status="pending")
        await page.write("bc", 2 * round_ - 1)
        await page.publish("progress", progress=round_ / 4)
        page.link.restore()
        await page.tab.page.evaluate("dispatchEvent(new Event('online'))")
        await page.until(connection="open", progress=round_ / 4, text="a" + "bc" * round_)
        assert len(page.open) == 1
    await page.publish("failed", "error", error="No paper.")
    await page.until(status="error", error="No paper.", isTextComplete=True)
    await page.until_listed("failed")
    assert len(page.open) == 1


async def test_a_tab_that_is_hidden_for_long(page: Dashboard) -> None:
    """The browser freezes it, and its connection ends meanwhile."""
    await page.publish("started")
    await page.show()
    await page.until_listed("running")
    devtools = await page.tab.page.context.new_cdp_session(page.tab.page)
    await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    page.link.cut()
    await page.publish("progress", progress=0.5)
    await page.write("Milk", 0)
    await page.publish("completed", "success", title="Milk")
    await devtools.send("Page.setWebLifecycleState", {"state": "active"})
    await page.until(status="success", text="Milk")
    await page.until_listed("completed")
    assert len(page.open) == 1


async def test_a_page_that_is_opened_later_shows_how_jobs_have_ended(page: Dashboard) -> None:
    await page.publish("started")
    await page.write("Milk", 0)
    await page.publish("completed", "success", title="Milk")
    await page.tab.show("Dashboard", ids=IDS, url=page.link.url, token=token())
    await page.until(status="success", text="Milk", connection="closed")
    await page.until_listed("completed")
    await page.tab.until("seen.hook?.isConnected")
    assert len(page.sockets) == 1  # of the list and the user's room
