"""One page and one job switch from the Python server to the Worker by changing one URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import BrowserContext

from examples.notes_app.database import Database
from examples.notes_app.replies import ModelResponder
from examples.notes_app.storage import ObjectStorage
from synap_realtime import broadcast_error, broadcast_notification, broadcast_success
from synap_realtime.handlers import Services, handle_note_creation
from synap_realtime.jobs.run import InProcessRun

from .pages import KEY, SERVERS, Server, Tab, token

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_one_url_switches_the_job_and_the_page(
    context: BrowserContext, origin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(f"sqlite+aiosqlite:///{tmp_path / 'notes.db'}")
    await database.create_tables()
    storage = ObjectStorage((tmp_path / "files").as_uri(), "http://app")
    services = Services(database, database, storage, ModelResponder("offline"))
    monkeypatch.setenv("REALTIME_API_KEY", KEY)
    shown = []
    for kind in SERVERS:
        async with Server(kind, origin).serving() as url:
            monkeypatch.setenv("REALTIME_URL", url)
            user, job = await _pages(context, origin, url)
            await _do(services)
            shown.append(await _shown(user, job))
            for tab in (user, job):
                await tab.page.close()
    await database.close()
    python, worker = shown
    assert python["job"]["status"] == "success"
    assert python["job"]["result"]["title"] == "Milk"
    assert [message["status"] for message in python["messages"]] == ["pending", "success", "error"]
    assert worker == python


async def _pages(context: BrowserContext, origin: str, url: str) -> tuple[Tab, Tab]:
    """What both hooks show: ``useSynapRealtime`` for the user, ``useJob`` for the request."""
    tabs = [await Tab.open(context, origin, "react-19") for _ in range(2)]
    for tab in tabs:  # NEXT_PUBLIC_REALTIME_URL
        await tab.page.evaluate("url => { globalThis.REALTIME_URL = url }", url)
    user, job = tabs
    await user.show("Listener", options={"userId": "1", "token": token()})
    await job.show("Jobs", ids=["r1"], token=token())
    await user.until("seen.hook?.isConnected")
    await job.until("seen.jobs.r1")
    return user, job


async def _do(services: Services) -> None:
    """A note is made, as an app's own worker would; then another fails."""
    progress = {"runId": "run1", "attempt": 1, "progress": 0.5}
    result = await broadcast_notification(
        user_id="1",
        request_id="r1",
        message={"type": "note.creation.progress", "data": progress, "status": "pending"},
    )
    assert result.success, result
    run = InProcessRun("run1", {"content": "# Milk", "userId": "1", "requestId": "r1"})
    note = await handle_note_creation(run, services)
    data = note.model_dump(by_alias=True)
    result = await broadcast_success("1", "note.creation.completed", data, "r1")
    assert result.success, result
    result = await broadcast_error("1", "note.creation.failed", "It is late")
    assert result.success, result


async def _shown(user: Tab, job: Tab) -> dict[str, Any]:
    """Without what is another's each time: the id and the cursor of a notification, and times."""
    await user.until("seen.hook.messages.length === 3")
    await job.until("seen.jobs.r1.status === 'success'")
    messages = await user.page.evaluate(
        "seen.hook.messages.map(({ id, timestamp, cursor, ...rest }) => rest)"
    )
    state = await job.page.evaluate("seen.jobs.r1")
    calls = [call.split()[0] for call in await user.calls()]
    state = {name: value for name, value in state.items() if not name.endswith("At")}
    return {"messages": messages, "calls": calls, "job": state}
