"""Two nodes on one store, behind one address: what one of them answers holds for both."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from synap_realtime.server import create_app
from synap_realtime.server.auth.shared_rates import LEASE_SHARE
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.support.balancer import Balancer
from tests.support.credentials import API_KEY, ORIGIN, SECRET, bearer, token
from tests.support.http_client import ask
from tests.support.program import Program
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.valkey import Valkey, running_valkey
from tests.support.waits import SetWaits
from tests.support.websocket_client import closed_with, frame, listening


def admin() -> str:
    return token(None, scope="admin")


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with running_valkey(tmp_path / "valkey") as server:
        yield server


@contextlib.asynccontextmanager
async def node(valkey: Valkey, **options: Any) -> AsyncIterator[str]:
    """Serve a node that is ready."""
    settings = load_settings(
        store=valkey.url,
        token_secrets=(SecretStr(SECRET),),
        api_keys={"jobs": SecretStr(API_KEY)},
        allowed_origins=(ORIGIN,),
        admin=True,
        drain_timeout_s=0,
        **options,
    )
    async with running_server(create_app(settings)) as url:
        await until_ready(url)
        yield url


async def until_ready(url: str) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while (await ask(url, "GET", "/ready")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def nodes(valkey: Valkey, **options: Any) -> AsyncIterator[tuple[str, str, str]]:
    """Serve two nodes; the first address leads to both in turn."""
    async with node(valkey, **options) as one, node(valkey, **options) as two:
        for url in (one, two):
            await until(url, "/admin/state", admin(), lambda state: len(state["nodes"]) == 2)
        with Balancer([one, two]) as balancer:
            yield balancer.url, one, two


async def until(url: str, path: str, credential: str, holds: Any) -> dict[str, Any]:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            response = await ask(url, "GET", path, credential)
            if response.status_code == 200 and holds(body := response.json()):
                return dict(body)
            await asyncio.sleep(0.05)


async def test_health_counts_the_connections_of_all_nodes(valkey: Valkey) -> None:
    async with (
        nodes(valkey) as (_, one, two),
        listening(one, "user_1", token()) as a,
        listening(two, "user_1", token()) as b,
    ):
        for each in (a, b):
            await frame(each, "synap.subscribed")
        for url in (one, two):
            response = await ask(url, "GET", "/rooms/user_1/health", token())
            assert response.json() == {"status": "ok", "connections": 2, "roomId": "user_1"}


async def test_revocation_counts_the_connections_that_all_nodes_closed(valkey: Valkey) -> None:
    async with (
        nodes(valkey) as (both, one, two),
        listening(one, "user_1", token()) as a,
        listening(two, "user_1", token()) as b,
        listening(two, "user_2", token("2")) as stays,
    ):
        for each in (a, b, stays):
            await frame(each, "synap.subscribed")
        response = await ask(both, "POST", "/revoke", admin(), json={"user": "1"})
        assert response.json() == {"success": True, "revoked": True, "closed": 2}
        assert [await closed_with(each) for each in (a, b)] == [4504, 4504]
        await stays.ping()


async def test_admin_adds_up_all_nodes(valkey: Valkey) -> None:
    async with (
        nodes(valkey) as (both, one, two),
        listening(one, "user_1", token(device="a")) as a,
        listening(two, "user_1", token(device="b")) as b,
        listening(two, "user_2", token("2")) as c,
    ):
        for each in (a, b, c):
            await frame(each, "synap.subscribed")
        note = {"type": "a", "data": {}}
        for url in (one, two):
            await ask(url, "POST", "/rooms/user_1/broadcast", API_KEY, json=note)
        for url in (one, two):
            state = await until(
                url, "/admin/state", admin(), lambda found: found["totals"]["delivered"] == 4
            )
            assert state["rooms"] == [
                {"room": "user_1", "connections": 2},
                {"room": "user_2", "connections": 1},
            ]
            assert (state["roomCount"], state["connections"]) == (2, {"websocket": 3, "sse": 0})
            assert state["totals"]["published"] == 2
            assert sorted(each["connections"]["websocket"] for each in state["nodes"]) == [1, 2]
            assert {each["version"] for each in state["nodes"]} == {state["version"]}
            assert "partial" not in state
            found = (await ask(url, "GET", "/admin/state?room=user_2", admin())).json()
            assert [each["room"] for each in found["rooms"]] == ["user_2"]
            assert found["roomCount"] == 2
        room = (await ask(both, "GET", "/admin/rooms/user_1", admin())).json()
        assert (room["total"], [each["device"] for each in room["connections"]]) == (2, ["b", "a"])


@pytest.mark.parametrize("per_s", [10, 500])
async def test_publish_rate_holds_for_all_nodes(valkey: Valkey, per_s: int) -> None:
    async with nodes(valkey, publishes_per_s=per_s) as (_, one, two):
        began_at = time.monotonic()
        accepted, refused = 0, []
        note = {"type": "a", "data": {}, "rooms": ["user_1"]}
        batch = {"notifications": [note] * max(1, per_s // 20)}
        async with httpx.AsyncClient(headers=bearer(API_KEY)) as client:
            for _ in range(40):
                for url in (one, two):
                    response = await client.post(f"{url}/broadcast", json=batch)
                    if response.status_code == 200:
                        accepted += len(batch["notifications"])
                    else:
                        refused.append(response)
        took_s = time.monotonic() - began_at
        leases = 2 * 1.5 * max(1, per_s // LEASE_SHARE)
        assert accepted <= per_s * (1 + took_s) + leases
        assert accepted >= per_s
        assert refused
        for response in refused:
            assert response.status_code == 429
            assert response.json()["code"] == "rate_limited"
            assert (
                response.json()["details"]
                == f"rate limit exceeded: {per_s} notifications/s per key"
            )
            assert response.headers["Retry-After"] == "1"


async def test_metrics_of_the_nodes_add_up(valkey: Valkey) -> None:
    async with (
        nodes(valkey) as (_, one, two),
        listening(one, "user_1", token()) as a,
        listening(two, "user_1", token()) as b,
    ):
        for each in (a, b):
            await frame(each, "synap.subscribed")
        for url in (one, two, two):
            await ask(
                url, "POST", "/rooms/user_1/broadcast", API_KEY, json={"type": "a", "data": {}}
            )
        for each in (a, b):
            for _ in range(3):
                await frame(each, "a")
        scraped = [await metrics(url) for url in (one, two)]
        assert scraped[0].keys() == scraped[1].keys(), "the same names and labels"
        totals = {name: sum(each[name] for each in scraped) for name in scraped[0]}
        assert totals['publishes_total{outcome="accepted"}'] == 3
        assert totals['deliveries_total{kind="live"}'] == 6
        assert totals['connections{transport="websocket"}'] == 2
        assert totals['store_operation_duration_seconds_count{operation="publish"}'] == 3


async def metrics(url: str) -> dict[str, float]:
    """Scrape the metrics of a node, without buckets and those of its process."""
    response = await ask(url, "GET", "/metrics", token(None, scope="metrics"))
    lines = [line.rpartition(" ") for line in response.text.splitlines() if line[0] != "#"]
    return {
        name.removeprefix("synap_realtime_"): float(value)
        for name, _, value in lines
        if name.startswith("synap_realtime_") and "_bucket" not in name
    }


async def test_killed_node_is_missing_until_its_lifetime_has_passed(
    valkey: Valkey, set_waits: SetWaits
) -> None:
    set_waits(redis_node_lifetime_s=4.0)
    other = Program(
        valkey.url,
        SYNAP_REALTIME_TOKEN_SECRETS=SECRET,
        SYNAP_REALTIME_ALLOWED_ORIGINS=ORIGIN,
    )
    await other.start()
    try:
        async with node(valkey) as url:
            await until_ready(other.url)
            path = "/rooms/user_1/health"
            async with listening(other.url, "user_1", token()) as ws:
                await frame(ws, "synap.subscribed")
                await until(url, path, token(), lambda found: found["connections"] == 1)
                await other.kill()
            began_at = time.monotonic()
            response = await ask(url, "GET", path, token())
            assert response.json() == {
                "status": "ok", "connections": 0, "roomId": "user_1",
                "partial": {"answered": 1, "nodes": 2},
            }  # fmt: skip
            assert time.monotonic() - began_at < scaled(2)
            response = await ask(url, "POST", "/revoke", admin(), json={"user": "9"})
            assert response.json()["partial"] == {"answered": 1, "nodes": 2}
            await until(url, path, token(), lambda found: "partial" not in found)
    finally:
        await other.kill()


async def test_without_redis_a_node_answers_for_itself(valkey: Valkey) -> None:
    async with (
        node(valkey) as url,
        listening(url, "user_1", token()) as ws,
    ):
        await frame(ws, "synap.subscribed")
        valkey.kill()
        began_at = time.monotonic()
        response = await ask(url, "GET", "/rooms/user_1/health", token())
        assert response.json() == {
            "status": "ok", "connections": 1, "roomId": "user_1",
            "partial": {"answered": 1, "nodes": None},
        }  # fmt: skip
        state = (await ask(url, "GET", "/admin/state", admin())).json()
        assert (state["roomCount"], len(state["nodes"])) == (1, 1)
        assert state["partial"] == {"answered": 1, "nodes": None}
        assert time.monotonic() - began_at < scaled(3)
        note = {"type": "a", "data": {}}
        response = await ask(url, "POST", "/rooms/user_1/broadcast", API_KEY, json=note)
        assert response.status_code == 503
        assert (await metrics(url))['connections{transport="websocket"}'] == 1
        valkey.start()
