"""PROTOCOL.md, "Authentication and authorization": how credentials are sent and rejected."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import jwt
import pytest
from websockets import InvalidStatus

from .client import (
    V1,
    Client,
    Listener,
    check_error,
    dial,
    fresh_room,
    ids_of,
    note,
    raw_head,
    room_path,
)
from .credentials import Secret, bearer

pytestmark = pytest.mark.with_keys

ROUTES = {
    "broadcast": ("POST", "/rooms/{room}/broadcast"),
    "many": ("POST", "/broadcast"),
    "history": ("GET", "/rooms/{room}/history"),
    "events": ("GET", "/rooms/{room}/events"),
    "health": ("GET", "/rooms/{room}/health"),
    "presence": ("GET", "/rooms/{room}/presence"),
    "revoke": ("POST", "/revoke"),
    "metrics": ("GET", "/metrics"),
}


@pytest.fixture
def user() -> str:
    """A user's id that no other case knows."""
    return fresh_room().partition("_")[2]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "shown",
    [None, "", "Bearer", "Basic eDp5", "nonsense", "Bearer nonsense", "Bearer a.b.c"],
)
async def test_rejects_unauthenticated_client(
    client: Client, route: str, shown: str | None
) -> None:
    """Errors: 401 `unauthorized`: no credential, or an invalid one; `details` says why."""
    method, path = ROUTES[route]
    room = fresh_room()
    response = await client.showing(None).request(
        method,
        path.format(room=room),
        body=note(rooms=[room], notifications=[note(rooms=[room])]) if method == "POST" else None,
        headers=None if shown is None else {"Authorization": shown},
    )
    check_error(response, 401, "unauthorized")
    assert (await client.history(room))["notifications"] == []


@pytest.mark.parametrize("path", ["/health", "/ready", "/openapi.json"])
async def test_health_ready_and_openapi_need_no_credential(client: Client, path: str) -> None:
    """Authorization: `/health`, `/ready` and `/openapi.json` need no credential."""
    assert (await client.showing(None).get(path)).status_code == 200
    assert (await client.showing("nonsense").get(path)).status_code == 200


async def test_head_discloses_nothing_either(client: Client) -> None:
    """Authorization: HEAD of a room's route needs a credential, as GET does."""
    for route in ("history", "events", "health"):
        path = room_path(fresh_room(), route)
        assert (await client.showing(None).request("HEAD", path)).status_code == 401, route


async def test_authenticates_before_it_reads_the_body(client: Client) -> None:
    """Limits: a body is read after its credential was checked."""
    anonymous = client.showing("nonsense")
    for path in (room_path(fresh_room(), "broadcast"), "/broadcast", "/revoke"):
        check_error(await anonymous.request("POST", path, content=b"{"), 401, "unauthorized")


async def test_rejects_a_credential_before_the_body_arrives(client: Client) -> None:
    """Limits: a body is read after its credential was checked."""
    anonymous = client.showing("nonsense")

    def ask(path: str) -> bytes:
        with dial(client.url) as sock:
            sock.sendall(raw_head(anonymous, f"POST {path} HTTP/1.1", "Content-Length: 100") + b"{")
            return sock.recv(65536)

    for path in (room_path(fresh_room(), "broadcast"), "/broadcast", "/revoke"):
        answer = await asyncio.to_thread(ask, path)
        assert answer.startswith(b"HTTP/1.1 401 "), answer[:300]


async def test_a_credential_is_no_room_and_no_device(client: Client, user: str) -> None:
    """Authorization: a key or a token as a room or a device is refused, and not repeated."""
    room, key = f"user_{user}", client.keys.api_key
    mine = client.showing(client.keys.token(user, rooms=["*"]))
    status, refusal = await mine.refusal(room_path(room, "subscribe", device=key))
    assert (status, refusal["code"]) == (400, "invalid_request")
    assert key not in str(refusal)
    for path in (room_path(room, "events", device=key), room_path(f"user_{key}", "events")):
        response = await mine.get(path)
        check_error(response, 400, "invalid_request")
        assert key not in response.text


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize("algorithm", ["HS384", "HS512"])
async def test_another_hash_with_the_secret_is_refused(
    client: Client, user: str, algorithm: str
) -> None:
    """Authorization: a token is signed with HS256, or with a key of a JWK set."""
    claims = {"sub": user, "exp": int(time.time()) + 60}
    token = Secret(jwt.encode(claims, client.keys.token_secret, algorithm))
    response = await client.showing(token).get(room_path(f"user_{user}", "history"))
    check_error(response, 401, "unauthorized")


# --- keys


async def test_a_key_broadcasts_and_does_nothing_else(client: Client, user: str) -> None:
    """Authorization: a key allows every room, and only the scope `broadcast`."""
    program = client.showing(client.keys.api_key)
    for room in (f"user_{user}", fresh_room("request"), fresh_room("workspace")):
        await program.publish(room, "n0")
        for path in (
            room_path(room, "history"), room_path(room, "events"), room_path(room, "presence"),
        ):  # fmt: skip
            check_error(await program.get(path), 403, "forbidden")
        status, refusal = await program.refusal(room_path(room, "subscribe"))
        assert (status, refusal["code"]) == (403, "forbidden")
    check_error(await program.post("/revoke", {"user": user}), 403, "forbidden")
    check_error(await program.get("/metrics"), 403, "forbidden")


@pytest.mark.parametrize("change", ["shorter", "longer", "other-case", "last"])
async def test_a_key_that_is_nearly_right(client: Client, change: str) -> None:
    """Authorization: an unknown key is rejected."""
    key = client.keys.api_key
    last = "A" if key[-1] != "A" else "B"
    wrong = {
        "shorter": key[:-1], "longer": f"{key}k", "other-case": key.swapcase(),
        "last": key[:-1] + last,
    }[change]  # fmt: skip
    anonymous = client.showing(Secret(wrong))
    check_error(await anonymous.broadcast(fresh_room(), note()), 401, "unauthorized")


async def test_the_secret_is_no_key(client: Client) -> None:
    """Authorization: a token secret is not a credential."""
    anonymous = client.showing(client.keys.token_secret)
    check_error(await anonymous.broadcast(fresh_room(), note()), 401, "unauthorized")


# --- rooms and scopes, over every way to read


async def _require_closed(mine: Client, room: str) -> None:
    """The room's handshake is a 403; a page's gets the close code that says the same."""
    path = room_path(room, "subscribe")
    status, refusal = await mine.refusal(path)
    assert (status, refusal["code"]) == (403, "forbidden")
    async with mine.listen_at(path, headers={"Origin": mine.keys.origin}) as listener:
        assert await listener.closed() == 4503


async def test_another_users_room(client: Client, user: str) -> None:
    """Errors: 403 `forbidden`: not this room; a handshake's page reads 4503."""
    mine = client.showing(client.keys.token(user, scope="subscribe presence"))
    assert (await mine.history(f"user_{user}"))["notifications"] == []
    for room in (fresh_room(), f"user_{user}x", f"workspace_{user}", f"request_{user}"):
        for route in ("history", "events", "health", "presence"):
            check_error(await mine.get(room_path(room, route)), 403, "forbidden")
        await _require_closed(mine, room)


async def test_a_rejection_says_whether_the_credential_is_the_cause(
    client: Client, user: str
) -> None:
    """Errors: 403 `forbidden`: the details begin with the credential if it is the cause."""
    program = client.showing(client.keys.api_key)
    mine = client.showing(client.keys.token(user))
    for response in (
        await program.get(room_path(fresh_room(), "history")),
        await program.post("/revoke", {"user": user}),
        await mine.get(room_path(f"user_{user}x", "history")),
        await mine.broadcast(f"user_{user}", note()),
    ):
        check_error(response, 403, "forbidden")
        body = response.json()
        assert body["error"] == "Forbidden"
        assert body["details"].startswith(("the key ", "the token ")), response.text
    foreign = {"Origin": "https://foreign.example"}
    response = await mine.get(room_path(f"user_{user}", "history"), foreign)
    check_error(response, 403, "forbidden")
    assert response.json()["error"] != "Forbidden"


async def test_no_trick_with_the_path_leads_elsewhere(client: Client, user: str) -> None:
    """A token allows `user_{sub}` and no other user's room, however it is spelled."""
    mine = client.showing(client.keys.token(user))
    other = fresh_room()
    await client.publish(other, "secret-of-another")
    for path in (
        f"/rooms/user_{user}/../{other}/history", f"/rooms/user_{user}%2F..%2F{other}/history",
        f"/rooms/{other};user_{user}/history", f"/rooms//{other}/history",
        f"/rooms/{other}%00/history", f"/rooms/{other}/history/", f"//rooms/{other}/history",
        f"/rooms/{other}/history?room=user_{user}", "/rooms/synap_revocations/history",
    ):  # fmt: skip
        response = await mine.get(path)
        assert response.status_code in (400, 403, 404), path
        assert "secret-of-another" not in response.text


async def test_a_scope_that_does_not_read(client: Client, user: str) -> None:
    """Authorization: every action requires both the scope and the room."""
    room = f"user_{user}"
    sender = client.showing(client.keys.token(user, scope="broadcast"))
    await sender.publish(room, "n0")
    for route in ("history", "events", "presence"):
        check_error(await sender.get(room_path(room, route)), 403, "forbidden")
    await _require_closed(sender, room)


async def test_a_batch_over_rooms_that_are_not_open(client: Client, user: str) -> None:
    """Authorization: in a batch, each notification to a room that is not allowed fails alone."""
    mine, other = f"user_{user}", fresh_room()
    sender = client.showing(client.keys.token(user, scope="broadcast"))
    rooms = ([mine], [other], [mine, other], [mine])
    answer = await sender.batch([note(f"n{n}", rooms=each) for n, each in enumerate(rooms)])
    assert answer["success"] is False
    assert [result["success"] for result in answer["results"]] == [True, False, False, True]
    for failed in answer["results"][1:3]:
        assert set(failed) == {"success", "error", "details", "code"}
        assert failed["code"] == "forbidden"
    assert ids_of((await client.history(mine))["notifications"]) == ["n0", "n3"]
    assert (await client.history(other))["notifications"] == []
    reader = client.showing(client.keys.token(user))
    response = await reader.post("/broadcast", {"notifications": [note(rooms=[mine])]})
    check_error(response, 403, "forbidden")


# --- the three ways


@contextlib.asynccontextmanager
async def _listening(
    client: Client,
    room: str,
    *,
    subprotocols: Sequence[str] = (),
    headers: dict[str, str] | None = None,
    token: str | None = None,
) -> AsyncIterator[Listener]:
    path = room_path(room, "subscribe", after="earliest", token=token)
    async with client.showing(None).listen_at(path, subprotocols, headers) as listener:
        yield listener


@pytest.mark.parametrize("way", ["header", "subprotocol", "query"])
async def test_each_way_opens_a_room(client: Client, user: str, way: str) -> None:
    """Credentials: `Authorization: Bearer …`, `bearer.<token>`, or `?token=`."""
    room = f"user_{user}"
    await client.publish(room, "n0")
    token = client.keys.token(user)
    ways: dict[str, dict[str, Any]] = {
        "header": {"headers": bearer(token), "subprotocols": [V1]},
        "subprotocol": {"subprotocols": [V1, f"bearer.{token}"]},
        "query": {"token": token, "subprotocols": [V1]},
    }
    async with _listening(client, room, **ways[way]) as listener:
        assert listener.ws.subprotocol == V1
        assert (await listener.next())["id"] == "n0"
        await listener.subscribed()


@pytest.mark.parametrize("way", ["header", "query"])
async def test_each_way_opens_the_other_routes(client: Client, user: str, way: str) -> None:
    """Credentials: on every route."""
    room = f"user_{user}"
    await client.publish(room, "n0")
    token = client.keys.token(user)
    anonymous = client.showing(token if way == "header" else None)
    query = None if way == "header" else token
    response = await anonymous.get(room_path(room, "history", token=query))
    assert ids_of(response.json()["notifications"]) == ["n0"]
    async with anonymous.stream(room, "earliest", token=query) as stream:
        assert (await stream.next())["id"] == "n0"


async def test_bearer_is_any_case(client: Client, user: str) -> None:
    """Credentials: `Authorization: Bearer …`; RFC 9110, 11.1: the scheme is any case."""
    headers = {"Authorization": Secret(f"bearer {client.keys.token(user)}")}
    response = await client.get(room_path(f"user_{user}", "history"), headers)
    assert response.status_code == 200


async def test_selects_the_token_subprotocol_when_offered_alone(client: Client, user: str) -> None:
    """Credentials: `bearer.…` is selected if `synap.v1` is not offered."""
    offered = f"bearer.{client.keys.token(user)}"
    await client.publish(f"user_{user}", "n0")
    async with _listening(client, f"user_{user}", subprotocols=[offered]) as listener:
        assert listener.ws.subprotocol == offered
        assert (await listener.next())["id"] == "n0"
        assert await listener.ping() == [], "it hears no control frame"


@pytest.mark.parametrize("first", ["header", "subprotocol"])
async def test_first_credential_present_is_used(client: Client, user: str, first: str) -> None:
    """Credentials: only the first that is present counts."""
    room, good = f"user_{user}", client.keys.token(user)
    shown: dict[str, Any]
    if first == "header":
        shown = {
            "headers": bearer("nonsense"), "subprotocols": [f"bearer.{good}"], "token": good,
        }  # fmt: skip
    else:
        shown = {"subprotocols": ["bearer.nonsense"], "token": good}
    with pytest.raises(InvalidStatus) as caught:
        async with _listening(client, room, **shown):
            pass
    assert caught.value.response.status_code == 401
    if first == "header":
        shown = {"headers": bearer(good), "subprotocols": ["bearer.nonsense"], "token": "nonsense"}
    else:
        shown = {"subprotocols": [f"bearer.{good}"], "token": "nonsense"}
    await client.publish(room, "n0")
    async with _listening(client, room, **shown) as listener:
        assert (await listener.next())["id"] == "n0"


async def test_a_page_without_a_credential(client: Client) -> None:
    """A handshake with an `Origin` and no credential is immediately closed with 4501."""
    room = fresh_room()
    path = room_path(room, "subscribe")
    status, refusal = await client.showing(None).refusal(path)
    assert (status, refusal["code"]) == (401, "unauthorized")
    headers = {"Origin": client.keys.origin}
    async with client.showing(None).listen_at(path, [V1], headers) as listener:
        assert await listener.closed() == 4501
    assert await client.connections(room) == 0


CAUSES = {
    "none": "no credential",
    "nonsense": "unknown key",
    "invalid_request": "malformed token",
    "expired": "token expired",
    "forged": "invalid signature",
    "another-audience": "audience mismatch",
    "not-yet": "token not valid yet",
    "endless": "missing claim 'exp'",
}
"""What `details` and the close reason begin with."""


def _bad(client: Client, user: str, kind: str) -> Secret | None:
    keys = client.keys
    now = int(time.time())
    return {
        "none": None,
        "nonsense": Secret("nonsense"),
        "invalid_request": Secret("a.b.c"),
        "expired": keys.token(user, expires_in_s=-60),
        "forged": Secret(jwt.encode({"sub": user, "exp": now + 900}, "?" * 43, "HS256")),
        "another-audience": keys.token(user, aud="another"),
        "not-yet": keys.token(user, nbf=now + 600),
        "endless": Secret(jwt.encode({"sub": user, "iat": now}, keys.token_secret, "HS256")),
    }[kind]


@pytest.mark.parametrize("kind", CAUSES)
async def test_a_refused_credential_receives_the_cause(
    client: Client, user: str, kind: str
) -> None:
    """Errors: 401, `details` says why, and so does the close reason of a page's handshake."""
    anonymous = client.showing(_bad(client, user, kind))
    for route in ("history", "events"):
        answer = await anonymous.get(f"/rooms/user_{user}/{route}")
        check_error(answer, 401, "unauthorized")
        assert answer.json()["details"].startswith(CAUSES[kind])
    path = room_path(f"user_{user}", "subscribe")
    status, refusal = await anonymous.refusal(path)
    assert (status, str(refusal["details"])[: len(CAUSES[kind])]) == (401, CAUSES[kind])
    headers = {"Origin": client.keys.origin}
    async with anonymous.listen_at(path, [V1], headers) as listener:
        assert await listener.closed() == 4501
        assert _reason(listener).startswith(CAUSES[kind])


async def test_a_refused_room_or_scope_is_the_close_reason(client: Client, user: str) -> None:
    """Close codes: 4503, the reason says whether it is the room or the scope."""
    headers = {"Origin": client.keys.origin}
    for token, named in (
        (client.keys.token("another"), "room"),
        (client.keys.token(user, scope="broadcast"), "scope"),
    ):
        path = room_path(f"user_{user}", "subscribe")
        async with client.showing(token).listen_at(path, [V1], headers) as listener:
            assert await listener.closed() == 4503
            assert named in _reason(listener)


def _reason(listener: Listener) -> str:
    reason = listener.ws.close_reason or ""
    assert 0 < len(reason.encode()) <= 123
    return reason


# --- a token's end


async def test_connection_closes_when_its_token_expires(client: Client, user: str) -> None:
    """WebSocket: `synap.token_expiring`: the token ends, and the connection with it (4401)."""
    async with (
        client.showing(client.keys.token(user, expires_in_s=2)).listen(
            f"user_{user}", v1=True
        ) as listener,
        client.showing(client.keys.token(user, expires_in_s=2)).listen(f"user_{user}") as old,
    ):
        received = [await listener.next(), await listener.next()]
        assert {message["type"] for message in received} == {
            "synap.subscribed", "synap.token_expiring",
        }  # fmt: skip
        (frame,) = (message for message in received if message["type"] == "synap.token_expiring")
        assert set(frame["data"]) == {"expiresAt"}
        assert frame["data"]["expiresAt"].endswith("Z")
        assert await listener.closed() == 4401
        assert await old.closed() == 4401


async def test_event_stream_closes_when_its_token_expires(client: Client, user: str) -> None:
    """Server-Sent Events: the control frames as events; it ends where a WebSocket is closed."""
    mine = client.showing(client.keys.token(user, expires_in_s=2))
    response = await mine.get(room_path(f"user_{user}", "events"))
    assert response.status_code == 200
    assert "event: synap.token_expiring" in response.text


async def _warning(listener: Listener) -> float:
    """Wait for the warning, alive; how many seconds that took."""
    began = time.monotonic()
    while not (received := await listener.ping()):  # noqa: ASYNC110 - it has to ping
        await asyncio.sleep(0.2)
    (message,) = received
    assert message["type"] == "synap.token_expiring"
    return time.monotonic() - began


async def test_warns_of_a_short_token_when_two_thirds_of_it_are_left(
    client: Client, user: str
) -> None:
    """WebSocket: `synap.token_expiring`: or the client would replace it as soon as it arrives."""
    mine = client.showing(client.keys.token(user, expires_in_s=32))
    async with mine.listen(f"user_{user}", v1=True) as listener:
        await listener.subscribed()
        assert 9 < await _warning(listener) < 14
        for _ in range(2):
            await _renew(listener, client.keys.token(user, expires_in_s=64))
            await _renew(listener, client.keys.token(user, expires_in_s=66))
            assert await listener.ping() == []
    mine = client.showing(client.keys.token(user, expires_in_s=9))
    async with mine.listen(f"user_{user}", v1=True) as listener:
        await listener.subscribed()
        for _ in range(2):
            assert await _warning(listener) > 1.5
            await _renew(listener, client.keys.token(user, expires_in_s=9))


async def test_does_not_warn_again_of_a_token_that_ends_no_later(client: Client, user: str) -> None:
    """WebSocket: `synap.token_expiring`: once for each expiry, whatever token the client sends."""
    token = client.keys.token(user, expires_in_s=5)
    async with client.showing(token).listen(f"user_{user}", v1=True) as listener:
        await listener.subscribed()
        assert (await listener.next())["type"] == "synap.token_expiring"
        for _ in range(5):
            await _renew(listener, token)
        await _renew(listener, client.keys.token(user, expires_in_s=2))
        assert await listener.ping() == []
        assert await listener.closed() == 4401


async def _renew(listener: Listener, token: str) -> None:
    await listener.send(Secret(json.dumps({"action": "authenticate", "token": token})))


async def test_new_token_keeps_the_connection_open(client: Client, user: str) -> None:
    """WebSocket: `authenticate` replaces the token."""
    short = client.showing(client.keys.token(user, expires_in_s=2))
    room = f"user_{user}"
    async with short.listen(room, v1=True) as renewed, short.listen(room) as left:
        await _renew(renewed, client.keys.token(user))
        assert await left.closed() == 4401, "the old token has ended"
        await client.publish(room, "n0")
        received = await renewed.until("n0")
        assert {message["type"] for message in received[:-1]} <= {
            "synap.subscribed", "synap.token_expiring",
        }  # fmt: skip
        assert await renewed.ping() == []


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("nonsense", 4501), ("expired", 4501), ("forged", 4501), ("key", 4503),
        ("another-user", 4503), ("another-user-of-the-room", 4503), ("nobody", 4503),
        ("another-scope", 4503),
    ],
)  # fmt: skip
async def test_invalid_new_token_closes_the_connection(
    client: Client, user: str, wrong: str, code: int
) -> None:
    """WebSocket: of the same user, and allowing the room; otherwise 4501 or 4503."""
    keys, room = client.keys, f"user_{user}"
    good = keys.token(user)
    token = {
        "nonsense": "nonsense",
        "expired": keys.token(user, expires_in_s=-60),
        "forged": Secret(jwt.encode({"sub": user, "exp": 2e9}, "?" * 43, "HS256")),
        "key": keys.api_key,
        "another-user": keys.token("another"),
        "another-user-of-the-room": keys.token("another", rooms=[room]),
        "nobody": keys.token(rooms=[room]),
        "another-scope": keys.token(user, scope="broadcast"),
    }[wrong]
    async with client.showing(good).listen(room, v1=True) as listener:
        await _renew(listener, token)
        assert await listener.closed() == code
        if wrong in CAUSES:
            assert _reason(listener).startswith(CAUSES[wrong])
        else:
            assert ("scope" if wrong == "another-scope" else "user") in _reason(listener)


async def test_a_new_token_that_does_not_open_the_room(client: Client, user: str) -> None:
    """WebSocket: a token that does not allow the room is closed with 4503."""
    room = fresh_room("workspace")
    mine = client.showing(client.keys.token(user, rooms=[room]))
    async with mine.listen(room, v1=True) as listener:
        await _renew(listener, client.keys.token(user))
        assert await listener.closed() == 4503
