"""PROTOCOL.md, "Who may"."""

from __future__ import annotations

import pytest

from .client import Client, fresh_room, note, room_path

LOOPBACK = [
    "http://localhost", "http://localhost:3000", "https://localhost:8443", "http://127.0.0.1:8000",
    "http://127.1.2.3", "http://[::1]:5173",
]  # fmt: skip
FOREIGN = [
    "https://evil.example", "http://127.0.0.1.evil.example", "http://localhost.evil.example",
    "http://evil.example:80", "null", "http://[", "http://10.0.0.1", "http://0.0.0.0", "localhost",
    "file://", "http://localhost@evil.example", "http://evil.example/localhost",
    "http://evil.example#localhost", "", "http://xn--lcalhost-54a",
]  # fmt: skip


@pytest.mark.without_keys
@pytest.mark.parametrize("origin", LOOPBACK)
async def test_a_page_of_this_machine(client: Client, origin: str) -> None:
    """Who may: a browser's `Origin` must be a loopback one or on the server's list."""
    headers = {"Origin": origin}
    room = fresh_room()
    response = await client.request(
        "POST", room_path(room, "broadcast"), body=note("n0"), headers=headers
    )
    assert response.status_code == 200
    path = room_path(room, "subscribe", after="earliest")
    async with client.listen_at(path, headers=headers) as listener:
        assert (await listener.next())["id"] == "n0"
    async with client.stream(room, "earliest", headers=headers) as stream:
        assert (await stream.next())["id"] == "n0"


@pytest.mark.without_keys
@pytest.mark.parametrize("origin", LOOPBACK)
async def test_a_page_of_this_machine_reads_the_answers(client: Client, origin: str) -> None:
    """Who may: such a page may also read the answers (CORS)."""
    headers = {"Origin": origin}
    room = fresh_room()
    for method, path, body in (
        ("POST", room_path(room, "broadcast"), note()),
        ("POST", "/broadcast", {"notifications": [note(rooms=[room])]}),
        ("GET", room_path(room, "history"), None),
        ("GET", room_path(room, "health"), None),
        ("GET", room_path("nope", "history"), None),  # what is wrong is an answer, too
        ("GET", room_path(room, "nothing"), None),
    ):
        response = await client.request(method, path, body=body, headers=headers)
        assert response.headers["access-control-allow-origin"] in (origin, "*"), path
    async with client.stream(room, headers=headers) as stream:
        assert stream.response.headers["access-control-allow-origin"] in (origin, "*")


@pytest.mark.parametrize("origin", FOREIGN)
async def test_a_page_from_elsewhere(client: Client, origin: str) -> None:
    """Who may: a browser's `Origin`, where there is one. Errors: 403 `forbidden`."""
    headers = {"Origin": origin}
    room = fresh_room()
    for method, path, body in (
        ("POST", room_path(room, "broadcast"), note()),
        ("POST", "/broadcast", {"notifications": [note(rooms=[room])]}),
        ("GET", room_path(room, "events"), None),
        ("GET", room_path(room, "history"), None),
        ("GET", room_path(room, "health"), None),
        ("GET", room_path(room, "subscribe"), None),
    ):
        response = await client.request(method, path, body=body, headers=headers)
        assert (response.status_code, response.json()["code"]) == (403, "forbidden"), path
        assert "access-control-allow-origin" not in response.headers
    status, refusal = await client.refusal(room_path(room, "subscribe"), headers)
    assert (status, refusal["code"]) == (403, "forbidden")
    assert (await client.history(room))["notifications"] == []


@pytest.mark.without_keys
@pytest.mark.parametrize("value", ["Bearer secret", "Bearer", "Basic eDp5", "nonsense"])
async def test_authorization_is_not_read(client: Client, value: str) -> None:
    """Who may: a publisher may send `Authorization: Bearer …` already; it is not read."""
    room = fresh_room()
    headers = {"Authorization": value}
    response = await client.request(
        "POST", room_path(room, "broadcast"), body=note("n0"), headers=headers
    )
    assert response.status_code == 200
    body = {"notifications": [note("n1", rooms=[room])]}
    response = await client.request("POST", "/broadcast", body=body, headers=headers)
    assert (response.status_code, response.json()["success"]) == (200, True)
    path = room_path(room, "subscribe", after="earliest")
    async with client.listen_at(path, headers=headers) as listener:
        assert (await listener.next())["id"] == "n0"


# --- a server with keys


@pytest.mark.with_keys
async def test_a_page_on_the_list(client: Client) -> None:
    """Who may, Origins: on the server's list; such a page may also read the answers (CORS)."""
    headers = {"Origin": client.keys.origin}
    room = fresh_room()
    for method, path, body in (
        ("POST", room_path(room, "broadcast"), note("n0")),
        ("POST", "/broadcast", {"notifications": [note("n1", rooms=[room])]}),
        ("GET", room_path(room, "history"), None),
        ("GET", room_path(room, "health"), None),
        ("GET", room_path(room, "nothing"), None),
    ):
        response = await client.request(method, path, body=body, headers=headers)
        assert response.headers["access-control-allow-origin"] in (client.keys.origin, "*"), path
    response = await client.showing(None).get(room_path(room, "history"), headers)
    assert response.status_code == 401
    allowed = response.headers["access-control-allow-origin"]
    assert allowed in (client.keys.origin, "*"), "what is wrong is an answer, too"
    async with client.stream(room, "earliest", headers=headers) as stream:
        assert (await stream.next())["id"] == "n0"
    path = room_path(room, "subscribe", after="earliest")
    async with client.listen_at(path, headers=headers) as listener:
        assert (await listener.next())["id"] == "n0"


@pytest.mark.with_keys
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_preflight(client: Client, method: str) -> None:
    """Who may, Origins: a preflight is answered 204; it carries no credential."""
    path = room_path(fresh_room(), "broadcast" if method == "POST" else "history")
    headers = {
        "Origin": client.keys.origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    response = await client.showing(None).request("OPTIONS", path, headers=headers)
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] in (client.keys.origin, "*")
    assert method in response.headers["access-control-allow-methods"]
    assert "authorization" in response.headers["access-control-allow-headers"].lower()
    headers["Origin"] = "https://evil.example"
    response = await client.showing(None).request("OPTIONS", path, headers=headers)
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.with_keys
@pytest.mark.parametrize("origin", LOOPBACK)
async def test_a_page_of_this_machine_is_from_elsewhere(client: Client, origin: str) -> None:
    """Who may, Without keys: a loopback `Origin` is let in, too; with keys it is on the list, or
    not. Whatever credential it holds."""
    headers = {"Origin": origin}
    room = fresh_room()
    response = await client.get(room_path(room, "history"), headers)
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert "access-control-allow-origin" not in response.headers
    status, refusal = await client.refusal(room_path(room, "subscribe"), headers)
    assert (status, refusal["code"]) == (403, "forbidden")
