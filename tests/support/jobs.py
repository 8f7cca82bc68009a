"""Publishing notifications with ``job`` to a store, as the publish routes do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from synap_realtime.protocol.folding import make_fold
from synap_realtime.protocol.job_state import JobEvent, parse_job
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.base import JobStore, Publication, PublishResult, Store

REQUEST = Room("request_q1")
"""The room of the request that :func:`lifecycle` is about by default."""


def timestamp(at: int) -> str:
    """Return the time of some seconds after a fixed one."""
    return f"2026-01-31T{12 + at // 3600:02}:{at // 60 % 60:02}:{at % 60:02}.000Z"


def lifecycle(
    event: str,
    run: str = "r1",
    *,
    at: int = 0,
    id: str = "",
    request: str | None = "q1",
    name: str = "note.creation",
    room: Room = REQUEST,
    fold: Mapping[str, Any] | None = None,
    **data: Any,
) -> Publication:
    """Return a notification about a run.

    Args:
        at: its time, as in :func:`timestamp`.
        id: its id; by default one for each event, run, room, time and data.
        fold: the arguments of ``make_fold``.
    """
    job = {"event": event, "name": name, "runId": run, "userId": "u1"}
    wire: dict[str, Any] = {
        "type": f"{name}.{event}",
        "data": data,
        "timestamp": timestamp(at),
        "job": job,
    }
    if request is not None:
        wire["requestId"] = request
    wire["id"] = id or f"{event}:{run}:{at}:{hash(str(data))}"
    parsed = None
    if fold is not None:
        parsed = make_fold(**fold)
        wire["fold"] = parsed.to_wire()
    text = json.dumps(wire, ensure_ascii=False)
    return Publication(room, wire["id"], text, None, parsed, parse_job(job, wire))


def event_of(publication: Publication) -> JobEvent:
    """Return what a notification says about a job."""
    assert publication.job is not None
    return publication.job


async def report(store: Store, event: str, run: str = "r1", **arguments: Any) -> PublishResult:
    """Publish one notification about a run: the arguments of :func:`lifecycle`."""
    (result,) = await store.publish([lifecycle(event, run, **arguments)])
    return result


def jobs_of(store: Store) -> JobStore:
    """Return a store as one that keeps the records of jobs."""
    assert isinstance(store, JobStore)
    return store
