"""The SDK and the subscriber need only the address and the key to use the Worker."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import closing

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State
from websockets.sync.client import connect
from websockets.typing import Origin

from synap_realtime import Broadcaster, Notification, mint_token, subscribe_sync
from tests.support.timeouts import scaled
from tests.support.workerd import RunningWorker, running


def test_publish_and_listen(worker: RunningWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    user = uuid.uuid4().hex
    monkeypatch.setenv("REALTIME_URL", worker.url)
    monkeypatch.setenv("REALTIME_API_KEY", worker.api_key)
    with Broadcaster() as broadcaster:
        result = broadcaster.broadcast(
            f"user_{user}", Notification(type="note.creation.completed", data={"entityId": "e1"})
        )
    assert result.success, result
    token = mint_token(user, secret=worker.token_secret)
    with closing(subscribe_sync(f"user_{user}", token=token)) as notifications:
        assert next(notifications).data == {"entityId": "e1"}


def test_invalid_settings_are_reported_and_refuse_all_requests() -> None:
    with running({"TOKEN_SECRETS": "short"}) as url:
        headers = {"Origin": "https://app.example"}
        response = httpx.get(f"{url}/rooms/user_1/history", headers=headers)
        said = "answered 500: The server's settings are wrong: TOKEN_SECRETS: expected"
        with Broadcaster(url) as broadcaster:
            result = broadcaster.broadcast_success("1", "a", {})
        room = f"ws{url[4:]}/rooms/user_1/subscribe"
        with (
            connect(room, origin=Origin("http://localhost:3000")) as page,
            pytest.raises(ConnectionClosed) as closed,
        ):
            page.recv()
    assert (response.status_code, response.json()["code"]) == (500, "misconfigured")
    assert "Retry-After" not in response.headers
    assert response.headers["Access-Control-Allow-Origin"] == headers["Origin"]
    assert "TOKEN_SECRETS: expected at least 32 bytes" in response.json()["details"]
    assert "short" not in response.text
    assert (result.attempts, said in (result.error or "")) == (1, True)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1011
    assert "TOKEN_SECRETS" in closed.value.rcvd.reason


def test_without_keys_it_answers_this_machine_only(open_worker: str) -> None:
    """Without keys. On Cloudflare, every request has CF-Connecting-IP."""
    path = f"{open_worker}/rooms/user_1/history"
    assert httpx.get(path).status_code == 200
    for headers in (
        {"CF-Connecting-IP": "203.0.113.7"},
        {"X-Forwarded-For": "203.0.113.7"},
        {"X-Forwarded-For": "127.0.0.1, 203.0.113.7"},
        {"Host": "synap-realtime.example.workers.dev"},
    ):
        response = httpx.get(path, headers=headers)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden"), headers
    assert httpx.get(path, headers={"CF-Connecting-IP": "127.0.0.1"}).status_code == 200


def test_close_code_arrives_immediately(worker: RunningWorker) -> None:
    """Close codes: 4401 when the token ends, whatever the TCP connection does after it."""
    user = uuid.uuid4().hex
    token = mint_token(user, secret=worker.token_secret, expires_in_s=2)
    url = worker.url.replace("http", "ws", 1)
    began = time.monotonic()
    with connect(f"{url}/rooms/user_{user}/subscribe?token={token}", close_timeout=0.1) as ws:
        while ws.protocol.state is State.OPEN:
            assert time.monotonic() - began < scaled(10)
            time.sleep(0.02)
        received = ws.protocol.close_rcvd
    assert received is not None
    assert received.code == 4401
    assert time.monotonic() - began < scaled(4)


def test_health_responds_ok(open_worker: str) -> None:
    assert json.loads(httpx.get(f"{open_worker}/health").text) == {"status": "ok"}
