"""PROTOCOL.md, "Tracing": one trace from the job through the publish to the delivery."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic import SecretStr
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from synap_realtime import AsyncBroadcaster, Broadcaster, progress, subscribe, tracing
from synap_realtime.broadcast import BackgroundBroadcaster
from synap_realtime.integrations.inprocess import run_job
from synap_realtime.jobs import JobRun
from synap_realtime.protocol.notification import MAX_NOTIFICATION_BYTES
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.timeouts import TIMEOUT_S


@pytest.fixture(scope="module")
def exporter() -> Iterator[InMemorySpanExporter]:
    """OpenTelemetry has one provider for the process, and it cannot be set twice."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = provider
    tracing._checked_at = -math.inf  # else it may have looked a moment ago
    yield kept
    trace._TRACER_PROVIDER = before
    tracing._is_enabled = False


@pytest.fixture(autouse=True)
def _none_before(exporter: InMemorySpanExporter) -> None:
    exporter.clear()


async def spans(exporter: InMemorySpanExporter, name: str, count: int = 1) -> list[ReadableSpan]:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = [span for span in exporter.get_finished_spans() if span.name == name]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.01)


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return int(span.parent.span_id)


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


async def receive(rooms: str, room: str, count: int) -> list[Any]:
    found = []
    async with asyncio.timeout(TIMEOUT_S), aclosing(subscribe(room, rooms)) as notifications:
        async for notification in notifications:
            found.append(notification)
            if len(found) == count:
                return found
    return found


async def test_one_trace_from_the_job_to_the_delivery(
    rooms: str, exporter: InMemorySpanExporter
) -> None:
    async def job(run: JobRun) -> dict[str, int]:
        progress(0.5, "Half")
        async with AsyncBroadcaster(rooms) as own:
            await own.broadcast_success("7", "own.completed", {"secret": "hush"})
        return {"n": 1}

    async with BackgroundBroadcaster(rooms) as broadcaster:
        data = {"userId": "7", "requestId": "r7"}
        await run_job("report.creation", job, data, broadcaster=broadcaster)
    found = await receive(rooms, "request_r7", 3)
    (run,) = await spans(exporter, "report.creation")
    publishes = {id_of(span): span for span in await spans(exporter, "publish", 4)}
    deliveries = await spans(exporter, "deliver", 3)
    (sent,) = await spans(exporter, "broadcast")
    assert parent_of(sent) == id_of(run), "what the job itself publishes is part of it"
    assert {parent_of(span) for span in publishes.values()} == {id_of(run), id_of(sent)}
    for delivery in deliveries:
        assert parent_of(delivery) in publishes
    everything = exporter.get_finished_spans()
    assert len({span.context.trace_id for span in everything if span.context}) == 1
    assert all(n.model_extra and "traceparent" in n.model_extra for n in found)
    assert "hush" not in "".join(span.to_json() for span in everything), "no payload"
    assert (run.attributes or {})["synap_realtime.attempt"] == 1


async def test_each_notification_of_a_batch_has_its_own_trace(
    rooms: str, exporter: InMemorySpanExporter
) -> None:
    async with AsyncBroadcaster(rooms) as own:
        calls = (own.broadcast_success(str(n), "a.completed", {}) for n in range(20))
        await asyncio.gather(*calls)
    broadcasts = {id_of(span) for span in await spans(exporter, "broadcast", 20)}
    published = await spans(exporter, "publish", 20)
    assert {parent_of(span) for span in published} == broadcasts
    assert len({span.context.trace_id for span in published if span.context}) == 20


async def test_request_continues_its_traceparent(
    rooms: str, exporter: InMemorySpanExporter
) -> None:
    parent = f"00-{'ab' * 16}-{'cd' * 8}-01"
    note = {"type": "a", "data": {}, "id": "n1"}
    async with httpx.AsyncClient(base_url=rooms) as client:
        path = "/rooms/user_8/broadcast"
        for given in (parent, "nonsense", f"00-{'0' * 32}-{'0' * 16}-01", "x" * 5000):
            answer = await client.post(path, json=note, headers={"traceparent": given})
            assert answer.status_code == 200
        odd = {**note, "id": "n2", "traceparent": {"not": "text"}}
        assert (await client.post(path, json=odd)).status_code == 200
    published = await spans(exporter, "publish", 5)
    assert [span.context.trace_id == int("ab" * 16, 16) for span in published if span.context] == [
        True, False, False, False, False,
    ]  # fmt: skip


async def test_the_span_of_a_publish_that_is_too_large_ends_as_an_error(
    rooms: str, exporter: InMemorySpanExporter
) -> None:
    note = {"type": "a", "data": {"text": "x" * MAX_NOTIFICATION_BYTES}}
    async with httpx.AsyncClient(base_url=rooms) as client:
        answer = await client.post("/rooms/user_8/broadcast", json=note)
        assert answer.status_code == 413
    (span,) = await spans(exporter, "publish")
    assert (span.status.is_ok, span.status.description) == (False, "too large")


async def test_a_refused_publish_is_an_error_and_sync_clients_are_traced(
    rooms: str, exporter: InMemorySpanExporter
) -> None:
    def publish() -> None:
        with Broadcaster(rooms) as own:
            assert own.broadcast_success("9", "a.completed", {}).success
        with Broadcaster("http://127.0.0.1:1", deadline_s=0.2) as own:
            assert not own.broadcast_success("9", "a.completed", {}).success

    await asyncio.to_thread(publish)
    good, bad = await spans(exporter, "broadcast", 2)
    assert (good.status.is_ok, bad.status.is_ok) == (True, False)
    (publish_span,) = await spans(exporter, "publish")
    assert parent_of(publish_span) == id_of(good)


async def test_no_span_holds_a_key_or_a_token(exporter: InMemorySpanExporter) -> None:
    """Good ones and refused ones, by each way in."""
    secret, key = "s" * 32, "k" * 43
    good, forged = mint_token("1", secret=secret), mint_token("1", secret="x" * 32)
    settings = load_settings(
        token_secrets=(SecretStr(secret),), api_keys={"jobs": SecretStr(key)}, drain_timeout_s=0
    )
    async with running_server(create_app(settings)) as url:
        for own in (key, "w" * 43):
            async with AsyncBroadcaster(url, own) as broadcaster:
                result = await broadcaster.broadcast_success("1", "a.completed", {})
                assert result.success is (own == key)
        address = f"{url.replace('http', 'ws')}/rooms/user_1/subscribe"
        async with connect(f"{address}?token={good}") as listener:
            await asyncio.wait_for(listener.recv(), TIMEOUT_S)
        with pytest.raises(InvalidStatus):
            await connect(f"{address}?token={forged}")
    await spans(exporter, "deliver")
    written = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert "user_1" in written
    for text in (secret, key, "w" * 43, *good.split(".")[1:], *forged.split(".")[1:]):
        assert text not in written


def test_without_tracing_opentelemetry_is_not_imported() -> None:
    code = (
        "import sys, json; from synap_realtime import Broadcaster;"
        "Broadcaster('http://127.0.0.1:1', deadline_s=0.1).broadcast_success('1', 'a', {});"
        "print(json.dumps([m for m in sys.modules if m.startswith('opentelemetry')]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
