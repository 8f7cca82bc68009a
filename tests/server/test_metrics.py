"""PROTOCOL.md, "Metrics": the metrics of a real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import websockets
from prometheus_client.parser import text_string_to_metric_families

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from tests.support.credentials import API_KEY, token
from tests.support.http_client import ask
from tests.support.servers import Front, serving
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.websocket_client import closed_with, frame, listening

PREFIX = "synap_realtime_"
Samples = dict[tuple[str, str], float]


@pytest.fixture
async def url(front: Front) -> AsyncIterator[str]:
    async with serving(front) as url:
        yield url


async def scraped(url: str, credential: str | None = None) -> Samples:
    """By name without the prefix, and the label that counts (histograms' buckets left out)."""
    response = await ask(url, "GET", "/metrics", credential or token(None, scope="metrics"))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name.removeprefix(PREFIX), ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


async def until(url: str, name: str, label: str, value: float) -> Samples:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            found = await scraped(url)
            if found.get((name, label)) == value:
                return found
            await asyncio.sleep(0.02)


def note(id: str) -> dict[str, object]:
    return {"type": "a", "data": {}, "id": id}


async def publish(url: str, id: str, room: str = "user_1") -> None:
    response = await ask(url, "POST", f"/rooms/{room}/broadcast", API_KEY, json=note(id))
    assert response.status_code == 200


async def test_a_notification_is_counted_on_its_way(url: str) -> None:
    await publish(url, "n0")
    async with listening(url, "user_1", token()) as ws:
        await frame(ws, "synap.subscribed")
        await publish(url, "n1")
        await publish(url, "n1")
        await frame(ws, "a")
        found = await until(url, "deliveries_total", "live", 1)
        assert found["publishes_total", "accepted"] == 2
        assert found["publishes_total", "duplicate"] == 1
        assert found["deliveries_total", "replay"] == 1
        assert found["recoveries_total", "recovered"] == 1
        assert found["recoveries_total", "gap"] == 0
        assert found["connections", "websocket"] == 1
        assert found["connections", "sse"] == 0
        assert found["active_rooms", ""] == 1
        assert found["delivery_latency_seconds_count", ""] == 1
        assert 0 < found["delivery_latency_seconds_sum", ""] < scaled(5)
        assert found["publish_bytes_total", ""] > 0
        assert found["store_operation_duration_seconds_count", "publish"] == 3
        assert found["store_operation_duration_seconds_count", "read"] >= 1
        assert found["store_rooms", ""] == 1
        assert found["store_bytes", ""] > 0
    found = await until(url, "connections", "websocket", 0)
    assert found["connections_accepted_total", "websocket"] == 1
    assert not any(name == "server_disconnects_total" for name, _ in found), "it left by itself"


async def test_an_event_stream_is_counted_too(url: str) -> None:
    async with (
        httpx.AsyncClient() as client,
        client.stream("GET", f"{url}/rooms/user_1/events?token={token()}"),
    ):
        await until(url, "connections", "sse", 1)
    await until(url, "connections", "sse", 0)


async def test_refusals_are_counted_by_their_code(url: str) -> None:
    assert (await ask(url, "POST", "/rooms/user_1/broadcast", json={})).status_code == 401
    assert (await ask(url, "GET", "/rooms/user_2/history", token())).status_code == 403
    assert (await ask(url, "GET", "/nothing")).status_code == 404
    bad = await ask(url, "POST", "/rooms/user_1/broadcast", API_KEY, json={"type": 1})
    assert bad.status_code == 400
    batch = {"notifications": [{"rooms": ["user_1"], "type": "a", "data": {}}, {"rooms": []}]}
    assert (await ask(url, "POST", "/broadcast", API_KEY, json=batch)).status_code == 200
    async with listening(url, "user_2", token()) as ws:
        assert await closed_with(ws) == 4503
    with pytest.raises(websockets.InvalidStatus):
        async with websockets.connect(f"{url.replace('http', 'ws')}/rooms/user_1/subscribe"):
            pass
    found = await scraped(url)
    assert found["errors_total", "unauthorized"] == 2
    assert found["errors_total", "forbidden"] == 1
    assert found["errors_total", "not_found"] == 1
    assert found["errors_total", "invalid_request"] == 1
    assert found["server_disconnects_total", "forbidden"] == 1
    assert found["publishes_total", "rejected"] == 1
    assert found["publishes_total", "accepted"] == 1


async def test_drops_are_counted_by_their_reason(url: str) -> None:
    async with listening(url, "user_1", token()) as ws:
        await ws.send(b"binary")
        assert await closed_with(ws) == 4540
    await until(url, "server_disconnects_total", "protocol_violation", 1)


async def test_a_gap_is_counted(url: str) -> None:
    async with listening(url, "user_1", token(), query="?after=abc-5") as ws:
        assert not (await frame(ws, "synap.subscribed"))["data"]["recovered"]
    await until(url, "recoveries_total", "gap", 1)


async def test_event_loop_lag_is_measured(url: str) -> None:
    await scraped(url)
    await until(url, "event_loop_lag_seconds_count", "", 2)


async def test_metrics_require_their_scope(url: str) -> None:
    for credential, status in (
        (None, 401), (token(), 403), (API_KEY, 403), (token(None, scope="metrics"), 200),
        (token("1", scope="admin"), 200),
    ):  # fmt: skip
        assert (await ask(url, "GET", "/metrics", credential)).status_code == status


async def test_a_key_may_be_for_metrics_alone(front: Front, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key = "m" * 43
    file.write_text(f'[api_keys]\nprometheus = {{ key = "{key}", scope = "metrics" }}\n')
    async with front(create_app(load_settings(keys_file=file))) as url:
        assert (await ask(url, "GET", "/metrics", key)).status_code == 200
        refused = await ask(url, "POST", "/rooms/user_1/broadcast", key, json=note("n"))
        assert refused.status_code == 403
        assert key not in (await ask(url, "GET", "/metrics", key)).text


async def test_two_servers_in_one_process_have_separate_metrics(front: Front) -> None:
    async with serving(front) as one, serving(front) as other:
        await publish(one, "n1")
        assert (await scraped(one))["publishes_total", "accepted"] == 1
        assert (await scraped(other))["publishes_total", "accepted"] == 0


async def test_protocol_lists_all_metrics(url: str) -> None:
    contract = (Path(__file__).parents[2] / "PROTOCOL.md").read_text()
    section = contract.partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", section, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    await publish(url, "n")
    response = await ask(url, "GET", "/metrics", token(None, scope="admin"))
    real = {
        name.removeprefix(PREFIX)
        for name in re.findall(r"^# TYPE (\S+)", response.text, re.MULTILINE)
        if name.startswith(PREFIX) and not name.endswith("_created")
    }
    assert real == listed


async def test_every_limit_is_shown_by_the_name_of_its_option(front: Front) -> None:
    async with serving(front, requests_per_s=7, max_rooms=0) as url:
        found = await scraped(url)
    limits = {label: value for (name, label), value in found.items() if name == "limit"}
    assert limits == load_settings(requests_per_s=7, max_rooms=0).limits()
    assert {"max_caller_bytes", "publish_bytes_per_s"} < set(limits)
