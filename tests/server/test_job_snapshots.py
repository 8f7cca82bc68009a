"""A snapshot of a job and a subscription after its cursor join without a gap or a repeat."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from synap_realtime.protocol.job_state import JobRecord, fold_job, parse_job, parse_record
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.support.folding import Texts
from tests.support.jobs import timestamp
from tests.support.timeouts import TIMEOUT_S

REQUEST = "request_q1"
STEPS = 60
READERS = 60


def notifications() -> list[dict[str, Any]]:
    """What a run publishes to the room of its request."""
    made: list[dict[str, Any]] = []
    length = 0
    for number in range(STEPS):
        if number % 3:
            piece = f"é{number} "
            data: dict[str, Any] = {"delta": piece, "index": number}
            fold = {"key": "r1:text", "mode": "append", "offset": length}
            length += len(piece)
            made.append({"type": "a.delta", "data": data, "fold": fold})
            continue
        event = {0: "started", STEPS - 3: "completed"}.get(number, "progress")
        data = {"progress": number / STEPS, "attempt": 1}
        job = {"event": event, "name": "a", "runId": "r1"}
        made.append({"type": f"a.{event}", "data": data, "job": job})
        if event == "progress":
            made[-1]["fold"] = {"key": "r1:progress", "mode": "replace"}
    made = made[: STEPS - 2]
    return [{**each, "requestId": "q1", "timestamp": timestamp(n)} for n, each in enumerate(made)]


async def watch(url: str, delay_s: float) -> tuple[JobRecord, str]:
    """Join at some moment; return the record and the text at the end of the run."""
    await asyncio.sleep(delay_s)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
        response = await client.get("/jobs/q1")
    record, texts, after = None, Texts(), "earliest"
    if response.status_code == 200:
        snapshot = response.json()
        record, after = parse_record(snapshot["job"]), snapshot["cursor"]
        texts.by_key["r1:text"] = record.text or ""
    path = f"{url.replace('http', 'ws')}/rooms/{REQUEST}/subscribe?after={after}"
    async with asyncio.timeout(TIMEOUT_S), websockets.connect(path) as ws:
        while record is None or not record.has_ended:
            wire = json.loads(await ws.recv())
            texts.apply(wire)
            if "job" in wire:
                record = fold_job(record, parse_job(wire["job"], wire))
    return record.with_text(None), texts.by_key.get("r1:text", "")


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_everyone_who_joins_has_the_same_record_and_text(kind: str, tmp_path: Path) -> None:
    store = "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'rooms.db'}"
    settings = load_settings(store=store, requests_per_s=0, new_connections_per_s=0)
    published, pause_s = notifications(), 0.01
    moments = random.Random(7)
    async with running_server(create_app(settings)) as url:
        watching = [
            asyncio.create_task(watch(url, moments.uniform(0, 1.2 * STEPS * pause_s)))
            for _ in range(READERS)
        ]
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client:
            for each in published:
                response = await client.post(f"/rooms/{REQUEST}/broadcast", json=each)
                assert response.status_code == 200, response.text
                await asyncio.sleep(pause_s)
            found = await asyncio.gather(*watching)
            final = (await client.get("/jobs/q1")).json()["job"]
    text = "".join(each["data"].get("delta", "") for each in published)
    expected = parse_record(final)
    assert (expected.status, expected.text) == ("completed", text)
    for record, seen in found:
        assert record.to_wire() == expected.with_text(None).to_wire()
        assert seen == text
