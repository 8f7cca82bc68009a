"""Run each of the five jobs once, as a user would: POST, then subscribe with a WebSocket."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import websockets

WAIT_S = 60.0

RUN_MEMBERS = {"runId", "attempt", "maxAttempts", "stallAfterS"}

EXPECTED = {
    "note": "note.creation.completed",
    "task": "task.creation.completed",
    "task done": "task.completion.completed",
    "project": "project.creation.completed",
    "conversation": "conversation.response.generated",
}


async def do_each_once(app_url: str, realtime_url: str, show: Callable[[str], None]) -> int:
    """Run the five jobs; return 0 only if all ended as expected.

    Args:
        show: prints a line.
    """
    user = f"once-{uuid.uuid4().hex[:8]}"
    ok = 0
    show("\njob           time since its request, notification, data")
    async with httpx.AsyncClient(
        base_url=app_url, headers={"X-User-Id": user}, timeout=30
    ) as client:
        jobs = JobClient(realtime_url, client, show)
        note = await jobs.run("note", "/api/notes", {"content": "# Milk\nand bread"})
        task = await jobs.run("task", "/api/tasks", {"title": "Buy milk", "priority": "high"})
        done = await jobs.run("task done", f"/api/tasks/{_entity(task)}/complete", {})
        dates = {"start_date": "2026-01-01", "end_date": "2026-12-31"}
        project = await jobs.run("project", "/api/projects", {"title": "House", **dates})
        reply = await jobs.run(
            "conversation", f"/api/conversations/{user}/messages", {"content": "What is next?"}
        )
        ok = sum(result is not None for result in (note, task, done, project, reply))
    show(f"\n{ok} of {len(EXPECTED)} jobs ended as expected.")
    return 0 if ok == len(EXPECTED) else 1


class JobClient:
    """Starts jobs, and subscribes to each request's room until the job has ended."""

    def __init__(
        self, realtime_url: str, client: httpx.AsyncClient, show: Callable[[str], None]
    ) -> None:
        self._ws_url = realtime_url.replace("http", "ws", 1)
        self._client = client
        self._show = show

    async def run(self, name: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """Run one job and print its notifications."""
        start = time.monotonic()
        response = await self._client.post(path, json=body)
        if response.status_code != 202:
            self._show(f"{name:<13} POST {path}: {response.status_code} {response.text}")
            return None
        request_id = response.json()["requestId"]
        try:
            async with (
                asyncio.timeout(WAIT_S),
                websockets.connect(f"{self._ws_url}/rooms/request_{request_id}/subscribe") as ws,
            ):
                async for text in ws:
                    message = json.loads(text)
                    delay_ms = (time.monotonic() - start) * 1000
                    shown = f"{message['type']:<34} {_shown(message['data'])}".rstrip()
                    self._show(f"{name:<13} {delay_ms:7.0f} ms  {shown}")
                    if message["status"] != "pending":
                        return message if message["type"] == EXPECTED[name] else None
        except TimeoutError:
            self._show(f"{name:<13} no notification within {WAIT_S:.0f} s")
        return None


def _shown(data: dict[str, Any]) -> str:
    """Return the data without the members that each notification of a run has."""
    own = {name: value for name, value in data.items() if name not in RUN_MEMBERS}
    return json.dumps(own, ensure_ascii=False) if own else ""


def _entity(task: dict[str, Any] | None) -> str:
    return str(task["data"]["entityId"]) if task else "missing"
