"""The React hooks in Chromium, on a page of another origin, against real room servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import websockets
from playwright.async_api import BrowserContext, expect
from websockets.asyncio.server import ServerConnection, serve

from tests.support.link import Link

from .pages import HERE, NODE_MODULES, Publisher, Server, Tab, token

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def tab(context: BrowserContext, origin: str, react: str) -> Tab:
    return await Tab.open(context, origin, react)


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
async def test_strict_mode_opens_one_connection(
    tab: Tab, link: Link, job: Publisher, server: Server, shared: bool
) -> None:
    """It mounts everything twice. A component gets no callback after it unmounts."""
    options = {"userId": "1", "url": link.url, "token": token(), "shared": shared}
    await tab.show("Listener", strict=True, options=options)
    await tab.until("seen.hook?.isConnected")
    await job.publish()
    await tab.until("seen.hook?.lastMessage?.id === 'n1'")
    assert link.accepted <= server.dials(1)
    await tab.page.evaluate("leave()")
    assert await tab.calls() == ["connect", "message n1 to 1", "disconnect"]


async def test_new_callbacks_are_called_and_do_not_reconnect(
    tab: Tab, link: Link, job: Publisher, server: Server
) -> None:
    options = {"userId": "1", "url": link.url, "token": token()}
    await tab.show("Listener", options=options)
    await tab.until("seen.hook?.isConnected")
    await job.publish()
    await tab.until("seen.calls.length === 2")
    for version in (2, 3):
        # Also a new token is no reason.
        await tab.show("Listener", options={**options, "token": token()}, version=version)
    await job.publish()
    await tab.until("seen.calls.length === 3")
    assert await tab.calls() == ["connect", "message n1 to 1", "message n2 to 3"]
    assert await tab.page.evaluate("seen.hook.messages.map(({id}) => id)") == ["n1", "n2"]
    assert link.accepted <= server.dials(1)


SPY = """() => {
globalThis.sockets = [];
globalThis.WebSocket = class extends WebSocket {
    constructor(url, protocols) {
        super(url, protocols);
        [this.user] = /user_\\w+/.exec(url) ?? [""];
        if (this.user) sockets.push(`open ${this.user}`);
    }
    send(text) {
        const { action, room } = text === "ping" ? {} : JSON.parse(text);
        if (action === "subscribe") sockets.push(`open ${room}`);
        super.send(text);
    }
    close() {
        if (this.user) sockets.push(`close ${this.user}`);
        super.close();
    }
};
}"""


async def test_another_user_closes_the_old_room_first(
    tab: Tab, url: str, job: Publisher, server: Server
) -> None:
    """Its connection, unless both are rooms of one connection."""
    await tab.page.evaluate(SPY)
    options = {"url": url, "token": token("1", rooms=["user_2"])}
    await tab.show("Listener", options={"userId": "1", **options})
    await tab.until("seen.hook?.isConnected")
    await job.publish()
    await tab.until("seen.hook.messages.length === 1")
    await tab.show("Listener", options={"userId": "2", **options})
    await tab.until("seen.calls.length === 4 && seen.hook?.isConnected")
    assert await tab.page.evaluate("seen.hook.messages") == []
    await job.send([{"rooms": ["user_1", "user_2"], "type": "a", "data": {}, "id": "b1"}])
    await tab.until("seen.hook.messages.length === 1")
    assert await tab.calls() == [
        "connect", "message n1 to 1", "disconnect", "connect", "message b1 to 1"
    ]  # fmt: skip
    closed = ["close user_1"] if server.kind == "worker" else []
    assert await tab.page.evaluate("sockets") == ["open user_1", *closed, "open user_2"]
    assert await tab.page.evaluate("seen.hook.lastMessage.room") == "user_2"


async def test_connect_resumes_after_giving_up(tab: Tab, server: Server) -> None:
    options = {"userId": "1", "token": token(), "maxReconnects": 0, "autoConnect": False}
    async with server.serving() as url:
        port = int(url.rpartition(":")[2])
        await tab.show("Listener", options={**options, "url": url})
        await tab.until("seen.hook?.status === 'closed'")
        await tab.page.evaluate("seen.hook.connect()")
        await tab.until("seen.hook?.isConnected")
    await tab.until("seen.hook?.status === 'closed'")
    code = 4012 if server.says_goodbye else 1006
    assert await tab.page.evaluate("seen.hook.error.code") == code
    async with server.serving(port):
        await tab.page.evaluate("seen.hook.connect()")
        await tab.until("seen.hook?.isConnected")
        assert await tab.page.evaluate("seen.hook.error") is None
        await tab.page.evaluate("seen.hook.disconnect()")
        await tab.until("seen.hook?.status === 'closed'")
    why = "the server is draining" if server.says_goodbye else "connection closed (1006)"
    said = f"error: {why}"
    assert await tab.calls() == ["connect", said, "disconnect", "connect", "disconnect"]


# ---- as it was called before ----


async def test_the_reports_example_compiles_unchanged() -> None:
    """And all else that the pages of these tests do with the client."""
    node = Path(sys.executable).with_name("node")
    compiler = NODE_MODULES / "typescript/bin/tsc"
    process = await asyncio.create_subprocess_exec(
        node, compiler, "-p", HERE, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    assert said.decode() == ""
    assert process.returncode == 0


async def test_the_reports_example_as_it_stands(
    context: BrowserContext, tab: Tab, server: Server
) -> None:
    async with server.serving(has_keys=False) as url:
        await tab.page.evaluate("url => { globalThis.REALTIME_URL = url }", url)
        await tab.show("Report", strict=True)
        await expect(tab.page.get_by_role("status")).to_have_text("connected")
        job = Publisher(url, "request_request-456")
        async with tab.page.expect_console_message() as console:
            await job.publish(type="note.creation.completed", data={"title": "Milk"})
        assert (await console.value).text.startswith("Note created! {title: Milk")
        await expect(tab.page.get_by_role("heading")).to_have_text("Milk")
        await job.close()


async def test_a_server_of_the_original_report(tab: Tab) -> None:
    """It knows no subprotocol, no control frame, no id and no cursor."""
    received: list[str | bytes] = []
    listeners: set[ServerConnection] = set()
    changed = asyncio.Condition()

    async def listen(connection: ServerConnection) -> None:
        assert connection.request is not None
        assert connection.request.path.startswith("/rooms/request_request-456/subscribe")
        async with changed:
            listeners.add(connection)
            changed.notify_all()
        with contextlib.suppress(websockets.ConnectionClosed):
            async for text in connection:
                async with changed:
                    received.append(text)
                    changed.notify_all()
        listeners.discard(connection)

    async def broadcast(title: str) -> None:
        members = {"requestId": "request-456", "status": "success"}
        note = {"type": "note.creation.completed", "data": {"title": title}, **members}
        for connection in listeners:
            await connection.send(json.dumps({**note, "timestamp": "2025-01-01T00:00:00Z"}))

    page = tab.page
    async with serve(listen, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await tab.show("ReportInFull", url=f"ws://127.0.0.1:{port}")
        await expect(page.get_by_role("status")).to_have_text("away")
        await page.get_by_role("button", name="connect", exact=True).click()
        await expect(page.get_by_role("status")).to_have_text("connected")
        await broadcast("Milk")
        await expect(page.get_by_role("heading")).to_have_text("Milk")
        await page.get_by_role("button", name="send").click()
        async with changed:
            await changed.wait_for(lambda: received == ["hello"])
        for connection in list(listeners):
            await connection.close(1011)
        async with changed:
            await changed.wait_for(lambda: len(listeners) == 1)
        await expect(page.get_by_role("status")).to_have_text("connected")
        await expect(page.get_by_role("alert")).to_have_count(0)
        await broadcast("Bread")
        await expect(page.get_by_role("heading")).to_have_text("Bread")
        await page.get_by_role("button", name="disconnect").click()
        await expect(page.get_by_role("status")).to_have_text("away")
    message = "message note.creation.completed request-456 success"
    assert await tab.calls() == [
        "connect", message, "error", "disconnect", "connect", message, "disconnect"
    ]  # fmt: skip


# ---- a job ----


def run_of(request: str, number: int) -> list[dict[str, object]]:
    """The notifications of a job from its start to its end."""
    run = {"runId": request, "attempt": 1}
    lifecycle: list[tuple[str, str, dict[str, object]]] = [
        ("started", "pending", {**run, "stallAfterS": 60}),
        ("delta", "pending", {**run, "offset": 0, "delta": f"{number} is "}),
        ("progress", "pending", {**run, "progress": 0.5, "stallAfterS": 60}),
        ("delta", "pending", {**run, "offset": len(f"{number} is "), "delta": "the number"}),
        ("completed", "success", {"number": number}),
    ]
    return [
        {
            "rooms": [f"request_{request}"],
            "type": f"note.creation.{word}",
            "status": status,
            "data": data,
            "id": f"{request}:{place}",
        }
        for place, (word, status, data) in enumerate(lifecycle)
    ]


async def test_shows_the_lifecycle_of_a_job(tab: Tab, url: str, job: Publisher) -> None:
    async def publish_words(word: str, status: str = "pending", **data: object) -> None:
        type_ = f"note.creation.{word}"
        rooms = ["request_7"]
        await job.send([{"rooms": rooms, "type": type_, "status": status, "data": data}])

    async def until(**state: Any) -> None:
        same = f"""Object.entries({json.dumps(state)}).every(
            ([name, value]) => (seen.jobs["7"]?.[name] ?? null) === value
        )"""
        await tab.until(same)

    await tab.show("Jobs", strict=True, ids=["7"], url=url, token=token())
    await until(status="idle", text="")
    await publish_words("started", attempt=1, maxAttempts=3, stallAfterS=60)
    await until(status="pending", attempt=1, maxAttempts=3)
    await publish_words("progress", attempt=1, progress=0.5, label="Writing", stallAfterS=60)
    await publish_words("delta", attempt=1, offset=0, delta="Mi")
    await until(progress=0.5, label="Writing", text="Mi")
    await publish_words("retrying", attempt=2, error="It is late", stallAfterS=60)
    await until(status="retrying", attempt=2, error="It is late", progress=None)
    await publish_words("started", attempt=2, stallAfterS=0.05)
    await until(status="stalled")
    await publish_words(
        "progress", attempt=2, stallAfterS=60
    )  # else it would stall again immediately
    await until(status="pending")
    await publish_words("delta", attempt=2, offset=0, delta="Milk")
    await until(status="pending", text="Milk")
    await publish_words("completed", "success", number=7)
    await until(status="success", text="Milk", error=None)
    assert await tab.page.evaluate("seen.jobs['7'].result") == {"number": 7}


# Chromium delays a page's WebSockets while many are not open yet: by up to 5 s from the 16th.
PAGES, CONCURRENT_JOBS = 4, 10
WAVES = {"python": 25, "worker": 5}  # each wave has all three; a thousand are enough once


async def test_a_thousand_jobs_show_success_at_any_timing(
    context: BrowserContext, origin: str, server: Server
) -> None:
    """Done before anyone listens, while the connection is made, or after. With the Worker, 200."""
    tabs = [await Tab.open(context, origin, "react-19") for _ in range(PAGES)]
    chance = random.Random(7)
    async with server.serving(max_connections_per_user=0) as url:
        job = Publisher(url)
        numbers = range(PAGES * WAVES[server.kind] * CONCURRENT_JOBS)
        for start in numbers[:: PAGES * CONCURRENT_JOBS]:
            await _run_wave(
                tabs, job, url, numbers[start : start + PAGES * CONCURRENT_JOBS], chance
            )
        await job.close()


async def _run_wave(
    tabs: list[Tab], job: Publisher, url: str, numbers: Iterable[int], chance: random.Random
) -> None:
    ids = [f"r{number}" for number in numbers]
    runs = {id_: run_of(id_, int(id_[1:])) for id_ in ids}
    chance.shuffle(ids)
    before, during, after = ids[:12], ids[12:28], ids[28:]
    of_tab = [ids[place :: len(tabs)] for place in range(len(tabs))]

    async def show(tab: Tab, its: list[str]) -> None:
        await tab.show("Jobs", ids=its, url=url, token=token())

    async def publish_words(some: list[str], words: slice) -> None:
        """Word by word, so that others come between."""
        for said in zip(*(runs[id_][words] for id_ in some), strict=True):
            await job.send(said)

    await publish_words(before, slice(None))
    await publish_words(after, slice(1))
    shown = [show(tab, its) for tab, its in zip(tabs, of_tab, strict=True)]
    await asyncio.gather(*shown, publish_words(during, slice(None)))
    for tab, its in zip(tabs, of_tab, strict=True):
        listening = json.dumps([id_ for id_ in its if id_ in after])
        await tab.until(f"{listening}.every(id => seen.jobs[id]?.status === 'pending')")
    await publish_words(after, slice(1, None))
    for tab, its in zip(tabs, of_tab, strict=True):
        over = (
            f"{json.dumps(its)}.every(id => ['success', 'error'].includes(seen.jobs[id]?.status))"
        )
        await tab.until(over)
        jobs = await tab.page.evaluate("seen.jobs")
        await tab.page.evaluate("seen.jobs = {}")
        for id_ in its:
            number = int(id_[1:])
            assert jobs[id_]["status"] == "success"
            assert jobs[id_]["result"] == {"number": number}
            assert jobs[id_]["text"] == f"{number} is the number"
            assert jobs[id_]["progress"] == 1
