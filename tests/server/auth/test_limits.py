"""PROTOCOL.md, "Limits": requests of one caller, on both fronts."""

from __future__ import annotations

import asyncio
import contextlib
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import websockets
from pydantic import SecretStr

from synap_realtime.server import create_app
from synap_realtime.server.auth.claims import Claims
from synap_realtime.server.auth.limits import MAX_TRACKED_KEYS, Limits
from synap_realtime.server.config import load_settings
from synap_realtime.server.errors import RateLimitedError, StoreUnavailableError
from synap_realtime.server.stores.memory import MemoryStore
from synap_realtime.tokens import mint_token
from tests.support.credentials import API_KEY, ORIGIN, SECRET, bearer, token
from tests.support.http_client import NOTE
from tests.support.polling import until
from tests.support.servers import Front, serving
from tests.support.websocket_client import closed_with, frame, listening

pytestmark = pytest.mark.usefixtures("slow_rate_clock")

A, B = "203.0.113.7", "203.0.113.8"
LIMIT = 5


@asynccontextmanager
async def limited(front: Front, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A server behind a proxy, with few requests a second."""
    options = {"requests_per_s": LIMIT, "trusted_proxies": ("127.0.0.1",), **options}
    async with serving(front, **options) as url, httpx.AsyncClient(base_url=url) as client:
        yield client


async def statuses(
    client: httpx.AsyncClient,
    path: str,
    credentials: Iterable[str | None],
    *,
    address: str = A,
    method: str = "GET",
    **options: Any,
) -> list[int]:
    found = []
    for credential in credentials:
        headers = {"X-Forwarded-For": address, **(bearer(credential) if credential else {})}
        response = await client.request(method, path, headers=headers, **options)
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["code"] == "rate_limited"
        found.append(response.status_code)
    return found


READS = ["/rooms/user_1/history", "/rooms/user_1/presence", "/rooms/user_1/health"]


@pytest.mark.parametrize("path", READS)
async def test_reads_of_a_user_are_limited_across_addresses(front: Front, path: str) -> None:
    async with limited(front) as client:
        mine = token("1", scope="subscribe presence")
        found = await statuses(client, path, [mine] * 3 * LIMIT)
        assert found[:LIMIT] == [200] * LIMIT
        assert 429 in found
        assert 429 in await statuses(client, path, [mine] * LIMIT, address=B)
        other = token("2", rooms=("user_1",), scope="subscribe presence")
        assert await statuses(client, path, [other]) == [200]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/metrics"), ("POST", "/revoke"), ("GET", "/admin/state")],
)
async def test_requests_of_an_operator_are_limited(front: Front, method: str, path: str) -> None:
    async with limited(front, admin=True) as client:
        body = {"user": "nobody"} if method == "POST" else None
        found = await statuses(
            client, path, [token("ops", scope="admin")] * 3 * LIMIT, method=method, json=body
        )
        assert found[0] == 200
        assert 429 in found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/ready", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/nothing/here", 404),
        ("GET", "/rooms/user_1/subscribe", 426),
        ("DELETE", "/rooms/user_1/history", 405),
        ("GET", "/rooms/user_1/history", 401),
        ("POST", "/rooms/user_1/broadcast", 401),
    ],
)
async def test_anonymous_requests_of_an_address_are_limited(
    front: Front, method: str, path: str, status: int
) -> None:
    async with limited(front) as client:
        found = await statuses(client, path, [None] * 3 * LIMIT, method=method)
        assert found[:LIMIT] == [status] * LIMIT
        assert 429 in found
        assert await statuses(client, path, [None], method=method, address=B) == [status]
        # Users and keys of the same address are not among them.
        for credential in (API_KEY, token()):
            headers = {"X-Forwarded-For": A, **bearer(credential)}
            answer = await client.post("/rooms/user_1/broadcast", headers=headers, json=NOTE)
            assert answer.status_code in (200, 403)


async def test_preflights_of_an_address_are_limited(front: Front) -> None:
    async with limited(front) as client:
        found = []
        for _ in range(3 * LIMIT):
            headers = {
                "Origin": ORIGIN, "Access-Control-Request-Method": "POST", "X-Forwarded-For": A,
            }  # fmt: skip
            found.append((await client.options("/broadcast", headers=headers)).status_code)
        assert found[:LIMIT] == [204] * LIMIT
        assert 429 in found


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_address_with_many_invalid_tokens_is_limited(front: Front, method: str) -> None:
    path = "/rooms/user_1/history" if method == "GET" else "/rooms/user_1/broadcast"
    async with limited(front) as client:
        bad = [mint_token(str(n), secret="x" * 32) for n in range(3 * LIMIT)]
        found = await statuses(client, path, bad, method=method, json=NOTE)
        assert found[:LIMIT] == [401] * LIMIT
        assert 429 in found
        good = token("1")
        assert await statuses(client, "/rooms/user_1/history", [good], address=B) == [200]
        # A publisher's key needs no verification.
        path = "/rooms/user_1/broadcast"
        assert await statuses(client, path, [API_KEY], method="POST", json=NOTE) == [200]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_address_with_many_revoked_tokens_is_limited(front: Front, method: str) -> None:
    """A valid signature has cost as much as an invalid one."""
    path = "/rooms/user_1/history" if method == "GET" else "/rooms/user_1/broadcast"
    async with limited(front) as client:
        revoked, operator = token("1"), bearer(token("9", scope="admin"))
        answer = await client.post("/revoke", headers=operator, json={"user": "1"})
        assert answer.status_code == 200, answer.text
        found = await statuses(client, path, [revoked] * 3 * LIMIT, method=method, json=NOTE)
        assert found[:LIMIT] == [401] * LIMIT
        assert 429 in found
        assert await statuses(client, "/rooms/user_2/history", [token("2")], address=B) == [200]


def test_publish_over_the_byte_rate_costs_no_notification() -> None:
    limits, claims = (
        Limits(load_settings(publishes_per_s=5, publish_bytes_per_s=100)),
        Claims(key_name="jobs"),
    )

    def refusal(size: int) -> str | None:
        try:
            limits.check_publish(claims, 1, size)
        except RateLimitedError as error:
            return error.details
        return None

    assert refusal(60) is None
    assert {refusal(60) for _ in range(10)} == {"rate limit exceeded: 100 bytes/s per key"}
    assert [refusal(5) for _ in range(4)] == [None] * 4
    assert refusal(5) == "rate limit exceeded: 5 notifications/s per key"


async def test_publishes_are_not_charged_as_requests(front: Front) -> None:
    async with limited(front) as client:
        path = "/rooms/user_1/broadcast"
        found = await statuses(client, path, [API_KEY] * 5 * LIMIT, method="POST", json=NOTE)
        assert found == [200] * 5 * LIMIT


async def test_refused_publishes_of_a_user_count_as_requests(front: Front) -> None:
    async with limited(front) as client:
        path = "/rooms/user_1/broadcast"
        found = await statuses(client, path, [token()] * 3 * LIMIT, method="POST", json=NOTE)
        assert found[:LIMIT] == [403] * LIMIT
        assert 429 in found


async def test_handshakes_of_a_user_are_limited(front: Front) -> None:
    async with limited(front) as client:
        url, found = str(client.base_url).rstrip("/"), []
        for _ in range(3 * LIMIT):
            try:
                async with listening(url, "user_1", token()) as ws:
                    await frame(ws, "synap.subscribed")
                    found.append(101)
            except websockets.InvalidStatus as error:
                found.append(error.response.status_code)
        assert found[:LIMIT] == [101] * LIMIT
        assert 429 in found


async def test_new_tokens_of_a_connection_are_limited(front: Front) -> None:
    async with limited(front) as client:
        url = str(client.base_url).rstrip("/")
        async with listening(url, "user_1", token()) as ws:
            await frame(ws, "synap.subscribed")
            with contextlib.suppress(websockets.ConnectionClosed):
                for _ in range(3 * LIMIT):
                    await ws.send(f'{{"action":"authenticate","token":"{token()}"}}')
                    await asyncio.sleep(0.01)  # a token refilled immediately replaces it
            assert await closed_with(ws) == 4029


async def test_history_costs_its_bytes(front: Front) -> None:
    options = {"requests_per_s": 1000, "read_bytes_per_s": 300_000}
    async with limited(front, **options) as client:
        for n in range(4):
            big = {**NOTE, "id": f"n{n}", "data": {"text": "x" * 200_000}}
            headers = bearer(API_KEY)
            answer = await client.post("/rooms/user_1/broadcast", headers=headers, json=big)
            assert answer.status_code == 200
        path = "/rooms/user_1/history"
        # The first answer may be more than is left, the next request then waits for it.
        assert await statuses(client, path, [token()] * 2) == [200, 429]
        other = token("2", rooms=("user_1",))
        assert await statuses(client, f"{path}?limit=1", [other]) == [200]


async def test_jobs_cost_their_bytes(front: Front) -> None:
    options = {"requests_per_s": 1000, "read_bytes_per_s": 300_000}
    async with limited(front, **options) as client:
        for n in range(2):
            big = {
                **NOTE,
                "id": f"n{n}",
                "requestId": f"q{n}",
                "data": {"x": "x" * 200_000},
                "job": {"event": "completed", "name": "a", "runId": f"r{n}"},
            }
            answer = await client.post("/rooms/user_1/broadcast", headers=bearer(API_KEY), json=big)
            assert answer.status_code == 200
        assert await statuses(client, "/users/1/jobs", [token()] * 2) == [200, 429]


@pytest.mark.parametrize("transport", ["websocket", "sse"])
async def test_replays_cost_their_bytes(front: Front, transport: str) -> None:
    """To connect again and again, from the beginning each time, is to read a history."""
    options = {"requests_per_s": 1000, "read_bytes_per_s": 300_000}
    async with limited(front, **options) as client:
        for n in range(4):
            big = {**NOTE, "id": f"n{n}", "data": {"text": "x" * 200_000}}
            answer = await client.post("/rooms/user_1/broadcast", headers=bearer(API_KEY), json=big)
            assert answer.status_code == 200
        query = "?after=earliest"
        url = str(client.base_url).rstrip("/")
        if transport == "websocket":
            async with listening(url, "user_1", token(), query=query) as ws:
                await frame(ws, "synap.subscribed")
        else:
            events = f"/rooms/user_1/events{query}"
            async with client.stream("GET", events, headers=bearer(token())) as stream:
                async for line in stream.aiter_lines():
                    if "synap.subscribed" in line:
                        break
        path = "/rooms/user_1/history?limit=1"
        assert await statuses(client, path, [token()]) == [429]
        with pytest.raises(websockets.InvalidStatus, match="429"):
            async with listening(url, "user_1", token(), query=query):
                pass
        assert await statuses(client, path, [token("2", rooms=("user_1",))]) == [200]


async def test_replays_of_many_small_notifications_cost_more_than_their_bytes(front: Front) -> None:
    options = {"requests_per_s": 1000, "read_bytes_per_s": 50_000}
    async with limited(front, **options) as client:
        notes = [{**NOTE, "rooms": ["user_1"], "id": f"n{n}"} for n in range(200)]
        for n in range(0, 200, 50):
            answer = await client.post(
                "/broadcast", headers=bearer(API_KEY), json={"notifications": notes[n : n + 50]}
            )
            assert answer.status_code == 200
        url = str(client.base_url).rstrip("/")
        async with listening(url, "user_1", token(), query="?after=earliest") as ws:
            await frame(ws, "synap.subscribed")
        assert await statuses(client, "/rooms/user_1/history?limit=1", [token()]) == [429]


async def test_without_a_limit_there_is_none(front: Front) -> None:
    async with limited(front, requests_per_s=0, read_bytes_per_s=0) as client:
        assert set(await statuses(client, "/rooms/user_1/history", [token()] * 50)) == {200}
        assert set(await statuses(client, "/health", [None] * 50)) == {200}


async def test_loopback_address_is_not_limited(front: Front) -> None:
    async with limited(front) as client:
        assert set(await statuses(client, "/health", [None] * 50, address="127.0.0.1")) == {200}


def test_a_table_of_callers_is_bounded() -> None:
    """Of too many, the one who was silent for longest is forgotten."""
    limits = Limits(load_settings(requests_per_s=1))
    for _ in range(1000):
        limits.count_failed_attempt(A)
    with pytest.raises(RateLimitedError):
        limits.check_attempt(A)
    for n in range(MAX_TRACKED_KEYS):
        limits.count_failed_attempt(f"2001:db8::{n:x}")
    limits.check_attempt(A)


def test_a_caller_who_is_quiet_again_is_not_tracked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("synap_realtime.server.auth.limits.time", clock)
    limits = Limits(load_settings(requests_per_s=LIMIT))
    tracemalloc.start()
    try:
        for n in range(10_000):
            limits.count_failed_attempt(f"2001:db8::{n:x}")
            now += 1.0
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 500_000  # all would take 1.6 MB


async def test_no_client_input_becomes_a_metric_label(front: Front) -> None:
    async with limited(front, requests_per_s=0) as client:

        async def series() -> set[str]:
            headers = bearer(token("ops", scope="metrics"))
            text = (await client.get("/metrics", headers=headers)).text
            return {line.rpartition(" ")[0] for line in text.splitlines() if line[0] != "#"}

        async def ask(name: str) -> None:
            note = {"type": name, "data": {}, "id": name}
            for method, path in (
                (name, "/"),
                ("GET", f"/{name}"),
                ("GET", f"/rooms/user_{name}/history?after={name}"),
                ("GET", f"/rooms/{name}/events?device={name}"),
                ("POST", f"/rooms/{name}/broadcast"),
            ):
                for credential in (token(name), API_KEY, name):
                    await statuses(client, path, [credential], method=method, json=note)

        await ask("first")
        before = await series()
        for n in range(5):
            await ask(f"name{n}")
        assert await series() == before


class CountingStore(MemoryStore):
    """A store that counts the connections of users, as one that nodes share.

    Attributes:
        elsewhere: how many each user has at other nodes; None: the store is unavailable.
    """

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: int | None = 0
        self.counts: Counter[str] = Counter()

    async def acquire_connection(self, user: str, most: int) -> bool:
        await asyncio.sleep(0)
        if self.elsewhere is None:
            raise StoreUnavailableError("away")
        if self.elsewhere + self.counts[user] >= most:
            return False
        self.counts[user] += 1
        return True

    def release_connection(self, user: str) -> None:
        self.counts[user] -= 1


@asynccontextmanager
async def counting(front: Front, store: CountingStore, most: int) -> AsyncIterator[str]:
    settings = load_settings(
        token_secrets=(SecretStr(SECRET),), allowed_origins=(ORIGIN,), max_connections_per_user=most
    )
    async with front(create_app(settings, store)) as url:
        yield url


async def test_connections_at_other_nodes_count(front: Front) -> None:
    store = CountingStore()
    async with counting(front, store, 3) as url:
        store.elsewhere = 2
        async with listening(url, "user_1", token()) as ws:
            await frame(ws, "synap.subscribed")
            assert store.counts["1"] == 1
            async with listening(url, "user_1", token()) as more:
                assert await closed_with(more) == 4529
            async with httpx.AsyncClient(headers=bearer(token())) as client:
                response = await client.get(f"{url}/rooms/user_1/events")
                assert response.status_code == 429
            assert store.counts["1"] == 1
        await until(lambda: store.counts["1"] == 0)
        store.elsewhere = 3
        async with listening(url, "user_1", token()) as ws:
            assert await closed_with(ws) == 4529
        store.elsewhere = 0
        async with contextlib.AsyncExitStack() as stack:  # what was refused holds no slot here
            for _ in range(3):
                ws = await stack.enter_async_context(listening(url, "user_1", token()))
                await frame(ws, "synap.subscribed")


async def test_without_the_store_connections_of_users_are_refused(front: Front) -> None:
    store = CountingStore()
    async with counting(front, store, 3) as url:
        store.elsewhere = None
        for _ in range(5):  # a refused one holds no slot
            with pytest.raises(websockets.InvalidStatus) as refused:
                async with listening(url, "user_1", token()):
                    pass
            assert refused.value.response.status_code == 503
            assert int(refused.value.response.headers["Retry-After"]) >= 1
        async with httpx.AsyncClient(headers=bearer(token())) as client:
            response = await client.get(f"{url}/rooms/user_1/events")
            assert response.status_code == 200
            assert response.headers["Content-Type"].startswith("text/event-stream")
            assert response.text.startswith("retry: ")
        async with listening(url, "user_1", token(None, rooms=("user_1",))) as ws:
            await frame(ws, "synap.subscribed")  # a token without a user has no limit
        store.elsewhere = 0
        async with listening(url, "user_1", token()) as ws:
            await frame(ws, "synap.subscribed")
        await until(lambda: store.counts["1"] == 0)


async def test_without_a_limit_the_store_is_not_asked(front: Front) -> None:
    store = CountingStore()
    store.elsewhere = None
    async with counting(front, store, 0) as url, listening(url, "user_1", token()) as ws:
        await frame(ws, "synap.subscribed")
    assert store.counts == {}
