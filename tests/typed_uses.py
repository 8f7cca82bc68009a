"""Uses that the type checker must accept: checked, never run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_type

from synap_realtime import (
    AsyncBroadcaster,
    Broadcaster,
    BroadcastResult,
    Job,
    JobList,
    NoteCreated,
    Notification,
    broadcast_notification,
    broadcast_success_sync,
    get_job,
    get_job_sync,
    list_jobs,
    list_jobs_sync,
    subscribe,
    subscribe_sync,
)


async def broadcast() -> None:
    async with AsyncBroadcaster("http://127.0.0.1:8787", timeout_s=1) as broadcaster:
        payload = NoteCreated(entity_id="e", title="t", file_url="u", file_path="p")
        result = await broadcaster.broadcast_success("42", "note.creation.completed", payload)
        assert_type(result, BroadcastResult)
        assert_type(result.raise_for_status().rooms, tuple[str, ...])
    message = Notification(type="note.creation.completed", data={"entityId": "e"})
    assert_type(
        await broadcast_notification(user_id="42", request_id=None, message=message),
        BroadcastResult,
    )


def broadcast_sync() -> None:
    with Broadcaster() as broadcaster:
        broadcaster.broadcast_error("42", "note.creation.failed", "The note is empty.")
    assert_type(broadcast_success_sync("42", "x.completed", {"a": [1]}), BroadcastResult)


async def listen() -> None:
    async def token() -> str:
        return "t"

    async for notification in subscribe(
        "user_42", token=token, on_gap=print, on_state_change=print
    ):
        assert_type(notification, Notification)


async def read_jobs() -> None:
    if (job := await get_job("r1")) is not None:
        assert_type(job.result, Mapping[str, Any] | None)
        assert_type(job.started_at, datetime | None)
    page = await list_jobs(42, status=["running", "failed"], type="note.creation", limit=5)
    assert_type(page.jobs, tuple[Job, ...])
    assert_type(list_jobs_sync("42", status="completed", after=page.next), JobList)
    assert_type(get_job_sync("r1", token=lambda: "t"), Job | None)


def listen_sync() -> None:
    for notification in subscribe_sync("user_42", token=lambda: "t", max_reconnects=None):
        assert_type(notification, Notification)
