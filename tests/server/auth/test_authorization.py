"""PROTOCOL.md, "Authentication and authorization": over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jwt
import pytest
import websockets
from pydantic import SecretStr
from websockets.sync.client import connect

from synap_realtime import AsyncBroadcaster, ConfigurationError
from synap_realtime.server import create_app
from synap_realtime.server.auth import authorization
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.command_line import COMMAND
from tests.support.credentials import API_KEY, ORIGIN, SECRET, bearer, token
from tests.support.http_client import NOTE, ask
from tests.support.servers import Front, serving
from tests.support.timeouts import TIMEOUT_S
from tests.support.waits import SetWaits
from tests.support.websocket_client import closed_with, frame, listening


@pytest.fixture
async def url(front: Front) -> AsyncIterator[str]:
    async with serving(front) as url:
        yield url


ROUTES = [
    ("POST", "/rooms/user_1/broadcast"), ("POST", "/broadcast"), ("GET", "/rooms/user_1/history"),
    ("GET", "/rooms/user_1/events"), ("GET", "/rooms/user_1/health"), ("POST", "/revoke"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_without_a_credential_nothing_is_disclosed(url: str, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Basic eDp5"}, bearer("nonsense")):
        response = await ask(url, method, path, headers=headers, json=NOTE)
        assert (response.status_code, response.json()["code"]) == (401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")


def expired(user: str = "1") -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) - 60}, SECRET)


async def test_log_of_a_refusal_names_cause_room_user_and_origin(
    front: Front, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "synap_realtime.server.logging.events")
    foreign = {"Origin": "https://other.example"}
    async with serving(front) as url:
        async with listening(url, "user_1", expired()) as ws:
            assert await closed_with(ws) == 4501
            assert ws.close_reason == "token expired"
        await ask(url, "GET", "/rooms/user_1/history", token(), headers=foreign)
        await ask(url, "GET", "/rooms/user_1/history", expired().rpartition(".")[0] + ".AAAA")
    members = ("code", "details", "room", "user", "origin", "close_code")
    page, unauthorized, forged = [
        tuple(getattr(record, name, None) for name in members)
        for record in caplog.records
        if record.message == "rejected"
    ]
    assert page == ("unauthorized", "token expired", "user_1", "1", ORIGIN, 4501)
    assert unauthorized[0] == "forbidden"
    assert (unauthorized[2], unauthorized[4]) == ("user_1", "https://other.example")
    assert "--allowed-origins" in str(unauthorized[1])
    # Of a token that this server has not signed, nobody knows whose it is.
    assert str(forged[1]).startswith("invalid signature")
    assert forged[3] is None


async def test_head_discloses_nothing_either(url: str) -> None:
    for path in ("/rooms/user_1/events", "/rooms/user_1/history"):
        assert (await ask(url, "HEAD", path)).status_code == 401
        assert (await ask(url, "HEAD", path, token())).status_code == 200


async def test_health_is_open(url: str) -> None:
    for path in ("/health", "/ready", "/openapi.json"):
        assert (await ask(url, "GET", path)).status_code == 200


async def test_a_user_reads_the_own_room_and_no_other(url: str) -> None:
    for path in ("/rooms/{}/history", "/rooms/{}/health"):
        assert (await ask(url, "GET", path.format("user_1"), token())).status_code == 200
        for room in ("user_2", "user_11", "request_1", "user_1%20", "workspace_1"):
            response = await ask(url, "GET", path.format(room), token())
            assert response.status_code in (400, 403), room
    assert (await ask(url, "GET", "/rooms/user_2/events", token())).status_code == 403


async def test_no_trick_with_the_path_leads_elsewhere(url: str) -> None:
    for path in (
        "/rooms/user_1/../user_2/history", "/rooms/user_1%2F..%2Fuser_2/history",
        "/rooms/user_2;user_1/history", "/rooms//user_2/history", "/rooms/user_2%00/history",
        "/rooms/synap_revocations/history", "/rooms/user_2/history/", "//rooms/user_2/history",
    ):  # fmt: skip
        response = await ask(url, "GET", path, token())
        assert response.status_code in (400, 403, 404), path


async def test_the_key_publishes_and_does_not_read(url: str) -> None:
    async with AsyncBroadcaster(url, API_KEY) as broadcaster:
        assert (await broadcaster.broadcast_success("1", "a.completed", {})).success
    assert (await ask(url, "GET", "/rooms/user_1/history", API_KEY)).status_code == 403
    assert (await ask(url, "POST", "/revoke", API_KEY, json={"user": "1"})).status_code == 403


async def test_user_needs_publish_scope_to_publish(url: str) -> None:
    path = "/rooms/user_1/broadcast"
    assert (await ask(url, "POST", path, token(), json=NOTE)).status_code == 403
    may = token(scope="broadcast")
    assert (await ask(url, "POST", path, may, json=NOTE)).status_code == 200
    assert (await ask(url, "POST", "/rooms/user_2/broadcast", may, json=NOTE)).status_code == 403
    items = [{**NOTE, "rooms": [room]} for room in ("user_1", "user_2")]
    response = await ask(url, "POST", "/broadcast", may, json={"notifications": items})
    assert [result["success"] for result in response.json()["results"]] == [True, False]
    assert (await ask(url, "GET", "/rooms/user_1/history", may)).status_code == 403


async def test_a_subscriber_by_each_of_three_ways(url: str) -> None:
    async with AsyncBroadcaster(url, API_KEY) as broadcaster:
        await broadcaster.broadcast_success("1", "a.completed", {})
    good = token()
    for v1 in (True, False):
        async with listening(url, "user_1", good, v1=v1) as ws:
            assert (ws.subprotocol == "synap.v1") is v1
    async with listening(url, "user_1", query=f"?token={good}") as ws:
        await frame(ws, "synap.subscribed")
    headers = bearer(good)
    async with websockets.connect(
        f"{url.replace('http', 'ws')}/rooms/user_1/subscribe?after=earliest",
        additional_headers=headers,
    ) as ws:
        assert json.loads(await ws.recv())["type"] == "a.completed"
    # `Authorization` comes first: a good token behind it does not help a bad one.
    response = await ask(url, "GET", f"/rooms/user_1/history?token={good}", "nonsense")
    assert response.status_code == 401


async def test_two_credentials_are_rejected(url: str) -> None:
    """A proxy may look at the one, and the server at the other."""
    for names in (("x", token()), (token(), "x"), (token(), token("2"))):
        headers = [("Authorization", f"Bearer {name}") for name in names]
        async with httpx.AsyncClient(base_url=url, headers=headers) as client:
            assert (await client.get("/rooms/user_1/history")).status_code == 401


async def test_page_reads_the_reason_from_the_close_code_and_a_program_from_the_response(
    url: str,
) -> None:
    for credential, code, status in (
        ("nonsense", 4501, 401), (None, 4501, 401), (token("2"), 4503, 403),
        (token(scope="broadcast"), 4503, 403),
    ):  # fmt: skip
        async with listening(url, "user_1", credential) as ws:
            assert await closed_with(ws) == code
        headers = bearer(credential) if credential else {}
        with pytest.raises(websockets.InvalidStatus) as caught:
            await websockets.connect(
                f"{url.replace('http', 'ws')}/rooms/user_1/subscribe", additional_headers=headers
            )
        assert caught.value.response.status_code == status


async def test_foreign_origin_is_refused_with_any_credential(url: str) -> None:
    for origin in ("https://evil.example", "http://localhost", "null"):
        headers = {"Origin": origin}
        response = await ask(url, "GET", "/rooms/user_1/history", token(), headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(
                f"{url.replace('http', 'ws')}/rooms/user_1/subscribe?token={token()}",
                additional_headers=headers,
            )


async def test_connection_is_warned_and_closed_when_its_token_expires(url: str) -> None:
    async with listening(url, "user_1", token(expires_in_s=2)) as ws:
        said = await frame(ws, "synap.token_expiring")
        assert said["data"]["expiresAt"].endswith("Z")
        assert await closed_with(ws) == 4401
    async with httpx.AsyncClient(base_url=url, headers=bearer(token(expires_in_s=2))) as client:
        text = (await client.get("/rooms/user_1/events")).text
    assert "event: synap.token_expiring" in text


async def test_new_token_keeps_the_connection_open(url: str) -> None:
    async with listening(url, "user_1", token(expires_in_s=2)) as ws:
        await frame(ws, "synap.token_expiring")
        await ws.send(json.dumps({"action": "authenticate", "token": token()}))
        await asyncio.sleep(2.5)
        await ws.send("ping")
        async with asyncio.timeout(TIMEOUT_S):
            while await ws.recv() != "pong":  # it may have been late to say that it is live
                pass


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: "nonsense", 4501),
        (lambda: token("2"), 4503),
        (lambda: token("2", rooms=["user_1"]), 4503),
        (lambda: token(scope="broadcast"), 4503),
    ],
)
async def test_invalid_new_token_closes_the_connection(url: str, make: Any, code: int) -> None:
    async with listening(url, "user_1", token()) as ws:
        await ws.send(json.dumps({"action": "authenticate", "token": make()}))
        assert await closed_with(ws) == code


async def test_new_token_revoked_during_authorization_closes_the_connection(front: Front) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()
    new = token(device="new")

    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        if claims.get("device") == "new":
            asked.set()
            await go_on.wait()
        return True

    async with serving(front, may) as url, listening(url, "user_1", token()) as ws:
        await ws.send(json.dumps({"action": "authenticate", "token": new}))
        await asked.wait()
        admin = token(None, scope="admin")
        assert (await ask(url, "POST", "/revoke", admin, json={"token": new})).status_code == 200
        go_on.set()
        assert await closed_with(ws) == 4504


@pytest.mark.parametrize("kind", ["websocket", "events"])
async def test_token_revoked_during_authorization_opens_nothing(front: Front, kind: str) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        asked.set()
        await go_on.wait()
        return True

    async def listen(url: str) -> None:
        if kind == "websocket":
            async with listening(url, "user_1", token()) as ws:
                assert await closed_with(ws) == 4504
        else:
            assert (await ask(url, "GET", "/rooms/user_1/events", token())).status_code == 200

    async with serving(front, may) as url, asyncio.timeout(TIMEOUT_S):
        listener = asyncio.create_task(listen(url))
        await asked.wait()
        admin = token(None, scope="admin")
        assert (await ask(url, "POST", "/revoke", admin, json={"user": "1"})).status_code == 200
        go_on.set()
        await listener


async def test_revoking_a_user_closes_and_keeps_out(front: Front) -> None:
    """With no leeway: a revocation covers the tokens of clocks that are ahead by as much."""
    async with serving(front, token_leeway_s=0) as url:
        await _revoke_user(url)


async def _revoke_user(url: str) -> None:
    admin, mine = token(None, scope="admin"), token()
    assert (await ask(url, "POST", "/revoke", mine, json={"user": "1"})).status_code == 403
    async with listening(url, "user_1", mine) as ws, listening(url, "user_2", token("2")) as other:
        await frame(ws, "synap.subscribed")
        await frame(other, "synap.subscribed")
        response = await ask(url, "POST", "/revoke", admin, json={"user": "1"})
        assert response.json() == {"success": True, "revoked": True, "closed": 1}
        assert await closed_with(ws) == 4504
        await other.send("ping")
        assert await other.recv() == "pong"
    assert (await ask(url, "GET", "/rooms/user_1/history", mine)).status_code == 401
    await asyncio.sleep(1.1 - time.time() % 1)  # `iat` has whole seconds
    assert (await ask(url, "GET", "/rooms/user_1/history", token())).status_code == 200


async def test_revoking_one_token_leaves_the_others(url: str) -> None:
    admin, one, another = token(None, scope="admin"), token(), token()
    async with listening(url, "user_1", one) as ws:
        await frame(ws, "synap.subscribed")
        response = await ask(url, "POST", "/revoke", admin, json={"token": one})
        assert response.json()["closed"] == 1
        assert await closed_with(ws) == 4504
    assert (await ask(url, "GET", "/rooms/user_1/history", one)).status_code == 401
    assert (await ask(url, "GET", "/rooms/user_1/history", another)).status_code == 200


async def test_a_revocation_survives_a_restart(front: Front, tmp_path: Any) -> None:
    store, mine = f"sqlite:///{tmp_path / 'rooms.db'}", token()
    async with serving(front, store=store) as url:
        admin = token(None, scope="admin")
        assert (await ask(url, "POST", "/revoke", admin, json={"user": "1"})).status_code == 200
    async with serving(front, store=store) as url:
        assert (await ask(url, "GET", "/rooms/user_1/history", mine)).status_code == 401


@pytest.mark.parametrize("body", [{}, [], {"user": ""}, {"user": 1}, {"token": None}])
async def test_revocation_requires_a_subject(url: str, body: object) -> None:
    admin = token(None, scope="admin")
    assert (await ask(url, "POST", "/revoke", admin, json=body)).status_code == 400


async def test_authorizer_can_deny(front: Front, set_waits: SetWaits) -> None:
    set_waits(authorizer_timeout_s=0.1)
    asked = []

    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        asked.append((action, room, claims.get("sub", claims.get("key"))))
        if room == "user_2":
            raise RuntimeError(SECRET)
        if room == "user_3":
            await asyncio.sleep(60)
        return room == "user_1"

    async with serving(front, may) as url:
        everything = token(rooms=["*"])
        assert (await ask(url, "GET", "/rooms/user_1/history", everything)).status_code == 200
        for room in ("user_2", "user_3", "user_4"):
            response = await ask(url, "GET", f"/rooms/{room}/history", everything)
            assert response.status_code == 403
        response = await ask(url, "POST", "/rooms/user_1/broadcast", API_KEY, json=NOTE)
        assert response.status_code == 200
    assert asked[0] == ("subscribe", "user_1", "1")
    assert asked[-1] == ("broadcast", "user_1", "jobs")


async def test_late_authorizer_result_is_a_denial(
    front: Front,
    set_waits: SetWaits,
) -> None:
    set_waits(authorizer_timeout_s=0.05)

    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        return True

    async with serving(front, may) as url:
        assert (await ask(url, "GET", "/rooms/user_1/history", token())).status_code == 403


async def test_too_many_connections_of_a_user(front: Front) -> None:
    async with serving(front, max_connections_per_user=2) as url:
        async with listening(url, "user_1", token()), listening(url, "user_1", token()):
            async with listening(url, "user_1", token()) as third:
                assert await closed_with(third) == 4529
            assert (await ask(url, "GET", "/rooms/user_1/events", token())).status_code == 429
            async with listening(url, "user_2", token("2")) as other:
                await frame(other, "synap.subscribed")
        async with listening(url, "user_1", token()) as again:
            await frame(again, "synap.subscribed")


async def test_too_many_connections_in_all(front: Front) -> None:
    async with serving(front, max_connections=1) as url, listening(url, "user_1", token()):
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with listening(url, "user_2", token("2")):
                pass
        assert caught.value.response.status_code == 429
        assert caught.value.response.headers["Retry-After"]


async def test_too_many_rooms(front: Front) -> None:
    """Subscribing to an existing room uses no other slot."""
    async with serving(front, max_rooms=2) as url:
        everything = token(rooms=["*"])
        async with listening(url, "request_1", everything):
            async with (
                listening(url, "request_2", everything), listening(url, "request_2", everything),
            ):  # fmt: skip
                with pytest.raises(websockets.InvalidStatus) as caught:
                    async with listening(url, "request_3", everything):
                        pass
            assert caught.value.response.status_code == 429
            async with listening(url, "request_3", everything):
                pass


@pytest.mark.usefixtures("slow_rate_clock")
async def test_too_many_of_an_address_behind_a_trusted_proxy(front: Front) -> None:
    async with serving(front, trusted_proxies=("127.0.0.1",), new_connections_per_s=3) as url:
        for address, statuses in (("203.0.113.7", [101] * 3 + [429]), ("203.0.113.8", [101])):
            for status in statuses:
                headers = {**bearer(token()), "X-Forwarded-For": address}
                path = f"{url.replace('http', 'ws')}/rooms/user_1/subscribe"
                try:
                    async with websockets.connect(path, additional_headers=headers):
                        found = 101
                except websockets.InvalidStatus as error:
                    found = error.response.status_code
                assert found == status


@pytest.mark.usefixtures("slow_rate_clock")
async def test_the_port_that_a_proxy_adds_is_not_another_address() -> None:
    async with serving(
        running_server, trusted_proxies=("127.0.0.1",), new_connections_per_s=1
    ) as url:
        path = f"{url.replace('http', 'ws')}/rooms/user_1/subscribe"
        for peer in ("203.0.113.7:4711", "[2001:db8::7]:4711"):
            headers = {**bearer(token()), "X-Forwarded-For": peer}
            async with websockets.connect(path, additional_headers=headers):
                pass
            headers["X-Forwarded-For"] = peer.replace("4711", "4712")
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(path, additional_headers=headers)
            assert refused.value.response.status_code == 429


async def test_forwarding_header_of_an_untrusted_peer_is_ignored(front: Front) -> None:
    async with serving(front, new_connections_per_s=1) as url:
        for _ in range(4):
            headers = {**bearer(token()), "X-Forwarded-For": "203.0.113.7"}
            path = f"{url.replace('http', 'ws')}/rooms/user_1/subscribe"
            async with websockets.connect(path, additional_headers=headers):
                pass


async def test_authorizes_rooms_of_a_batch_concurrently(
    front: Front,
    set_waits: SetWaits,
) -> None:
    """And who is not answered in time has a no, though the others have their yes."""
    set_waits(authorizer_batch_timeout_s=0.5)
    asked, most = 0, 0

    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        nonlocal asked, most
        asked += 1
        most = max(most, asked)
        await asyncio.sleep(0 if room.endswith("quick") else 3600)
        asked -= 1
        return True

    rooms = [f"user_{n}" for n in range(3 * authorization.AUTHORIZER_CONCURRENCY)]
    items = [{**NOTE, "id": name, "rooms": [name]} for name in ["user_quick", *rooms]]
    async with serving(front, may) as url:
        body = {"notifications": items}
        response = await ask(url, "POST", "/broadcast", API_KEY, json=body)
        quick, *others = response.json()["results"]
        assert quick["success"]
        assert {(each["code"], each["details"]) for each in others} == {
            ("forbidden", "authorizer timed out")
        }
        assert most == authorization.AUTHORIZER_CONCURRENCY


async def test_answers_a_batch_without_a_valid_room_with_an_authorizer(front: Front) -> None:
    async def may(action: str, room: str, claims: Mapping[str, object]) -> bool:
        return True

    async with serving(front, may) as url:
        body = {"notifications": [{**NOTE, "rooms": ["no room"]}]}
        response = await ask(url, "POST", "/broadcast", API_KEY, json=body)
        assert response.status_code == 200
        (result,) = response.json()["results"]
        assert (result["success"], result["code"]) == (False, "invalid_request")


@pytest.mark.usefixtures("slow_rate_clock")
async def test_too_many_publishes_of_a_key(front: Front) -> None:
    async with serving(front, publishes_per_s=5) as url:
        statuses = []
        for _ in range(8):
            response = await ask(url, "POST", "/rooms/user_1/broadcast", API_KEY, json=NOTE)
            statuses.append(response.status_code)
        assert statuses == [200] * 5 + [429] * 3
        items = [{**NOTE, "id": f"n{n}", "rooms": ["user_1"]} for n in range(5)]
        body = {"notifications": items}
        response = await ask(url, "POST", "/broadcast", API_KEY, json=body)
        assert (response.status_code, response.json()["code"]) == (429, "rate_limited")
        assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.usefixtures("slow_rate_clock")
async def test_user_and_key_of_the_same_name_have_separate_limits(front: Front) -> None:
    async with serving(front, publishes_per_s=2) as url:
        claims = {"sub": "key jobs", "rooms": ["*"], "scope": "broadcast", "exp": time.time() + 600}
        for _ in range(3):
            await ask(url, "POST", "/rooms/user_1/broadcast", jwt.encode(claims, SECRET), json=NOTE)
        response = await ask(url, "POST", "/rooms/user_1/broadcast", API_KEY, json=NOTE)
        assert response.status_code == 200


@pytest.mark.usefixtures("slow_rate_clock")
async def test_too_many_messages_of_a_client(front: Front) -> None:
    async with (
        serving(front, client_messages_per_s=5) as url,
        listening(url, "user_1", token()) as ws,
    ):
        with contextlib.suppress(websockets.ConnectionClosed):
            for _ in range(20):
                await ws.send("ping")
        assert await closed_with(ws) == 4029


async def test_without_keys_a_remote_host_name_is_refused(front: Front) -> None:
    """DNS rebinding; and a proxy that would admit remote clients."""
    async with front(create_app(load_settings())) as url:
        for headers in (
            {"Host": "evil.example"}, {"X-Forwarded-For": "203.0.113.7"},
            {"X-Forwarded-For": "127.0.0.1, 203.0.113.7"},
        ):  # fmt: skip
            response = await ask(url, "GET", "/rooms/user_1/history", headers=headers)
            assert (response.status_code, response.json()["code"]) == (403, "forbidden")
        twice = [("X-Forwarded-For", each) for each in ("203.0.113.7", "127.0.0.1")]
        async with httpx.AsyncClient(headers=twice) as client:
            assert (await client.get(f"{url}/rooms/user_1/history")).status_code == 403


async def test_an_open_address_needs_keys() -> None:
    with pytest.raises(ConfigurationError, match="synap-realtime generate-keys"):
        async with running_server(create_app(load_settings()), "0.0.0.0"):
            pass
    settings = load_settings(api_keys={"jobs": SecretStr(API_KEY)})
    async with running_server(create_app(settings), "0.0.0.0") as url:
        port = url.rpartition(":")[2]
        assert (await ask(f"http://127.0.0.1:{port}", "GET", "/health")).status_code == 200


@pytest.mark.parametrize("style", ["text", "json"])
def test_secrets_are_in_nothing_that_the_server_prints(style: str, tmp_path: Path) -> None:
    """Good and bad credentials by each way in; the log at its most talkative, and the metrics."""
    file = tmp_path / "keys.toml"
    admin, payload = "a" * 43, "what only the user may read"
    file.write_text(
        f'token_secrets = ["{SECRET}"]\n[api_keys]\njobs = "{API_KEY}"\n'
        f'operator = {{ key = "{admin}", scope = "admin" }}\n'
    )
    note = {**NOTE, "data": {"text": payload}}
    good, forged, expired = (
        token(), mint_token("1", secret="x" * 32), token(expires_in_s=0.001),
    )  # fmt: skip
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0",
         "--keys-file", str(file), "--log-level", "debug", "--log-format", style],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = []
    try:
        assert process.stdout is not None
        url = None
        while url is None:
            lines.append(process.stdout.readline())
            found = re.search(r"listening on (http://[\d.:]+)", lines[-1])
            url = found[1] if found else None
        said = []
        for credential in (good, forged, expired, API_KEY, SECRET, good + "x", f"{good}\x80"):
            path = f"{url}/rooms/user_1"
            header = {b"Authorization": f"Bearer {credential}".encode("latin-1")}
            for response in (
                httpx.get(f"{path}/history", headers=header),
                httpx.get(f"{path}/history", params={"token": credential}),
                httpx.post(f"{path}/broadcast", headers=header, json=note),
                httpx.post(f"{url}/revoke", headers=header, json={"token": credential}),
                httpx.get(f"{path}/subscribe", params={"token": credential}),
                httpx.get(f"{path}/history", params={"device": credential[:64]}),
                httpx.get(f"{url}/rooms/user_{quote(credential)}/history"),
                httpx.get(f"{url}/rooms/User_{quote(credential)}/history"),
                httpx.get(f"{url}/rooms/user_{quote(credential)}/history", headers=bearer(token())),
                httpx.get(f"{url}/rooms/user_{quote(credential)}/events", headers=bearer(token())),
            ):
                said += [str(response.headers), response.text]
            with contextlib.suppress(websockets.WebSocketException):
                address = f"{path.replace('http', 'ws')}/subscribe?token={quote(credential)}"
                with connect(address):
                    pass
        said.append(httpx.get(f"{url}/metrics", headers=bearer(admin)).text)
        assert "synap_realtime_errors_total" in said[-1]
        process.send_signal(signal.SIGTERM)
        lines.append(process.communicate(timeout=TIMEOUT_S)[0])
    finally:
        process.kill()
        process.communicate()
    printed = "".join([*lines, *said])
    assert "unauthorized" in printed
    assert "published" in "".join(lines)
    assert payload not in "".join(lines) + said[-1]
    for secret in (SECRET, API_KEY, admin, good, forged, expired):
        for part in secret.split("."):
            assert part not in printed or part == good.split(".")[0]


async def test_each_device_has_its_own_position(url: str) -> None:
    async def take(query: str, made_for: str | None = None) -> list[str]:
        ids: list[str] = []
        credential = token(device=made_for)
        async with listening(url, "user_1", credential, query=query) as listener:
            while True:
                frame = json.loads(await asyncio.wait_for(listener.recv(), TIMEOUT_S))
                if frame["type"] == "synap.subscribed":
                    acknowledgement = {"action": "ack", "cursor": frame["data"]["cursor"]}
                    await listener.send(json.dumps(acknowledgement))
                    await listener.send("ping")
                    while await asyncio.wait_for(listener.recv(), TIMEOUT_S) != "pong":
                        pass
                    return ids
                ids.append(frame["id"])

    assert await take("?device=laptop") == []
    await ask(url, "POST", "/rooms/user_1/broadcast", API_KEY, json=NOTE)
    assert await take("?device=phone") == ["n1"]
    assert await take("?device=phone") == []
    assert await take("?device=tv") == [], "a new one starts where the user has come"
    assert await take("?device=phone", "laptop") == ["n1"], "what the token says counts"
    assert await take("?device=laptop") == []
    answer = await ask(url, "GET", "/rooms/user_1/events?device=a%20b", token())
    assert answer.status_code == 400
    assert answer.json()["details"].startswith("device: ")


async def test_refusal_names_the_kind_of_credential(url: str) -> None:
    """The error for a program with a key does not mention a token."""
    for credential, kind in ((API_KEY, "key"), (token(scope="broadcast"), "token")):
        response = await ask(url, "GET", "/rooms/user_1/history", credential)
        assert response.status_code == 403
        assert response.json()["details"] == f"the {kind} lacks scope 'subscribe'"
    other = await ask(url, "GET", "/rooms/user_1/history", token("2"))
    assert other.json()["details"] == "the token does not grant access to this room"
