"""PROTOCOL.md, "Authentication and authorization"."""

from __future__ import annotations

import httpx
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
    "http://evil.example@localhost", "http://[::1].evil.example", "http://evil.example[::1]",
    "http://localhost:evil.example", "http://localhost:80:80",
]  # fmt: skip


def _check_readable(response: httpx.Response, origin: str) -> None:
    """The page of this origin may read it, and no cache gives it to another page."""
    allowed = response.headers["access-control-allow-origin"]
    assert allowed in (origin, "*"), response.url
    if allowed == origin:
        assert "origin" in response.headers["vary"].lower(), response.url


@pytest.mark.without_keys
@pytest.mark.parametrize("origin", LOOPBACK)
async def test_admits_page_of_a_loopback_origin(client: Client, origin: str) -> None:
    """Authorization: a browser's `Origin` must be a loopback one or on the server's list."""
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
async def test_loopback_page_may_read_responses(client: Client, origin: str) -> None:
    """Authorization: such a page may also read the answers (CORS)."""
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
        _check_readable(response, origin)
    async with client.stream(room, headers=headers) as stream:
        _check_readable(stream.response, origin)


@pytest.mark.parametrize("origin", FOREIGN)
async def test_refuses_page_of_a_remote_origin(client: Client, origin: str) -> None:
    """Authorization: a browser's `Origin`, where there is one. Errors: 403 `forbidden`."""
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
async def test_ignores_authorization_without_keys(client: Client, value: str) -> None:
    """Authorization: a publisher may send `Authorization: Bearer …` already; it is not read."""
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


@pytest.mark.parametrize("site", ["cross-site", "same-site", "of-a-later-specification"])
async def test_refuses_hidden_request_of_a_foreign_page(client: Client, site: str) -> None:
    """Origins: a browser that sends no `Origin` says with `Sec-Fetch-Site` that a page of
    another origin asks. An image must not move an acknowledged cursor."""
    room = fresh_room()
    await client.publish(room, "n0")
    for mode, dest in (
        ("no-cors", "image"), ("no-cors", "script"), ("no-cors", "empty"),
        ("navigate", "iframe"), ("navigate", "document"),
    ):  # fmt: skip
        headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
        for path in (
            room_path(room, "events"), room_path(room, "history"), room_path(room, "subscribe"),
            room_path(room, "health"), "/health", "/ready", "/metrics", "/openapi.json",
        ):  # fmt: skip
            response = await client.get(path, headers)
            assert (response.status_code, response.json()["code"]) == (403, "forbidden"), path
    async with client.listen(room) as listener:
        assert (await listener.next())["id"] == "n0"


@pytest.mark.parametrize("site", ["same-origin", "none"])
async def test_admits_requests_that_no_foreign_page_sent(client: Client, site: str) -> None:
    """Origins: a typed address, a page of the server itself, a program."""
    response = await client.get("/health", {"Sec-Fetch-Site": site})
    assert response.status_code == 200


@pytest.mark.without_keys
@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_admits_page_of_this_machine_on_another_site(client: Client, site: str) -> None:
    """Origins: `Origin` decides where it is sent. `localhost` and `127.0.0.1` are two
    sites."""
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors", "Origin": LOOPBACK[0]}
    assert (await client.get(room_path(fresh_room(), "history"), headers)).status_code == 200


@pytest.mark.without_keys
@pytest.mark.parametrize("peers", ["127.0.0.1:5555", "[::1]:80", "[::1]", "127.0.0.1:1, ::1"])
async def test_ignores_port_of_a_forwarded_address(client: Client, peers: str) -> None:
    """Without keys: some proxies add the port."""
    assert (await client.get("/health", {"X-Forwarded-For": peers})).status_code == 200


@pytest.mark.without_keys
@pytest.mark.parametrize(
    "peers", ["203.0.113.7:80", "[2001:db8::1]:80", "127.0.0.1:1, 203.0.113.7"]
)
async def test_refuses_forwarded_address_of_another_machine(client: Client, peers: str) -> None:
    response = await client.get("/health", {"X-Forwarded-For": peers})
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")


@pytest.mark.without_keys
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Real-IP", "203.0.113.7"), ("Forwarded", "for=203.0.113.7"),
        ("Forwarded", "by=127.0.0.1;FOR=\"[2001:db8::1]:80\";proto=http"),
        ("Forwarded", "for=127.0.0.1, for = unknown"), ("Forwarded", "for=_hidden"),
    ],
)  # fmt: skip
async def test_refuses_remote_address_in_any_forwarding_field(
    client: Client, name: str, value: str
) -> None:
    """Without keys: a proxy of this machine need not send `X-Forwarded-For`."""
    response = await client.get("/health", {name: value})
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")


@pytest.mark.without_keys
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Real-IP", "127.0.0.1"), ("Forwarded", "for=127.0.0.1:5555;proto=http"),
        ("Forwarded", "For=\"[::1]:80\", for=::1"), ("Forwarded", "proto=http"),
    ],
)  # fmt: skip
async def test_admits_loopback_address_in_any_forwarding_field(
    client: Client, name: str, value: str
) -> None:
    assert (await client.get("/health", {name: value})).status_code == 200


# --- a server with keys


@pytest.mark.with_keys
async def test_a_page_on_the_list(client: Client) -> None:
    """Origins: on the server's list; such a page may also read the answers (CORS)."""
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
        _check_readable(response, client.keys.origin)
    response = await client.showing(None).get(room_path(room, "history"), headers)
    assert response.status_code == 401
    _check_readable(response, client.keys.origin)  # what is wrong is an answer, too
    async with client.stream(room, "earliest", headers=headers) as stream:
        assert (await stream.next())["id"] == "n0"
    path = room_path(room, "subscribe", after="earliest")
    async with client.listen_at(path, headers=headers) as listener:
        assert (await listener.next())["id"] == "n0"


@pytest.mark.with_keys
async def test_admits_page_on_the_list_of_another_site(client: Client) -> None:
    """Origins: `Origin` decides where it is sent."""
    headers = {"Origin": client.keys.origin, "Sec-Fetch-Site": "cross-site"}
    assert (await client.get(room_path(fresh_room(), "history"), headers)).status_code == 200


@pytest.mark.with_keys
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_preflight(client: Client, method: str) -> None:
    """Origins: a preflight is answered 204; it carries no credential."""
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
@pytest.mark.parametrize(
    "names",
    [
        "cache-control,x-requested-with", "authorization, traceparent,tracestate", "content-type",
        "authorization,cache-control,last-event-id,baggage,x-datadog-trace-id",
    ],
)  # fmt: skip
async def test_preflight_allows_every_header_field_of_allowed_page(
    client: Client, names: str
) -> None:
    """Origins: polyfills of `EventSource` and tracing add header fields, and ask with
    credentials."""
    room = fresh_room()
    headers = {
        "Origin": client.keys.origin,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": names,
    }
    for route in ("events", "history", "broadcast"):
        path = room_path(room, route)
        response = await client.showing(None).request("OPTIONS", path, headers=headers)
        assert response.status_code == 204
        assert response.headers["access-control-allow-origin"] == client.keys.origin
        assert response.headers["access-control-allow-credentials"] == "true"
        allowed = response.headers["access-control-allow-headers"].lower().replace(" ", "")
        assert set(names.replace(" ", "").split(",")) <= set(allowed.split(","))
    answered = await client.get(room_path(room, "history"), {"Origin": client.keys.origin})
    assert answered.headers["access-control-allow-credentials"] == "true"
    assert answered.headers["access-control-allow-origin"] == client.keys.origin


@pytest.mark.with_keys
@pytest.mark.parametrize("names", ["a\tb", "a;b", ",,", "x" * 2000])
async def test_preflight_repeats_nothing_but_names_of_header_fields(
    client: Client, names: str
) -> None:
    headers = {
        "Origin": client.keys.origin,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": names,
    }
    path = room_path(fresh_room(), "history")
    response = await client.showing(None).request("OPTIONS", path, headers=headers)
    assert response.status_code in (204, 400)
    assert names not in response.headers.get("access-control-allow-headers", "")


def _own_origins(client: Client) -> list[str]:
    """As React Native sends it: on Android, on iOS, and in other letters."""
    own = str(client.url).rstrip("/")
    return [own, f"{own}/", own.upper().replace("HTTP", "http", 1), own.replace("http:", "https:")]


async def test_admits_the_servers_own_origin(client: Client) -> None:
    """Origins: React Native has no page, and sends the server's own address."""
    room = fresh_room()
    await client.publish(room, "n0")
    for origin in _own_origins(client):
        headers = {"Origin": origin}
        assert (await client.get(room_path(room, "history"), headers)).status_code == 200, origin
        path = room_path(room, "subscribe", after="earliest")
        async with client.listen_at(path, headers=headers) as listener:
            assert (await listener.next())["id"] == "n0"
        async with client.stream(room, "earliest", headers=headers) as stream:
            assert (await stream.next())["id"] == "n0"


@pytest.mark.with_keys
async def test_own_origin_is_host_and_port(client: Client) -> None:
    own = str(client.url).rstrip("/")
    host = own.partition("://")[2].rpartition(":")[0]
    for origin in (f"http://{host}", f"http://{host}:1", f"{own}0", f"{own}.evil.example", host,
                   f"ftp://{own.partition('://')[2]}", f"{own}/page", f"{own}, {own}"):  # fmt: skip
        response = await client.get(room_path(fresh_room(), "history"), {"Origin": origin})
        assert response.status_code == 403, origin


@pytest.mark.with_keys
async def test_own_origin_gives_no_credential(client: Client) -> None:
    """Origins: DNS rebinding makes a page of the server's own origin, and no more."""
    headers = {"Origin": "http://rebound.example", "Host": "rebound.example"}
    response = await client.showing(None).get(room_path(fresh_room(), "history"), headers)
    assert response.status_code == 401


@pytest.mark.without_keys
async def test_rebound_name_is_not_the_servers_own_without_keys(client: Client) -> None:
    headers = {"Origin": "http://rebound.example", "Host": "rebound.example"}
    response = await client.get(room_path(fresh_room(), "history"), headers)
    assert response.status_code == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
async def test_grants_no_private_network_access_to_a_foreign_page(
    client: Client, origin: str
) -> None:
    """Origins: the preflight of Private Network Access is refused like every other."""
    headers = {
        "Origin": origin,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Private-Network": "true",
        "Sec-Fetch-Site": "cross-site",
    }
    path = room_path(fresh_room(), "broadcast")
    response = await client.showing(None).request("OPTIONS", path, headers=headers)
    assert response.status_code == 403
    assert not any(name.startswith("access-control-") for name in response.headers)


@pytest.mark.with_keys
@pytest.mark.parametrize("origin", LOOPBACK)
async def test_loopback_origin_is_foreign_with_keys(client: Client, origin: str) -> None:
    """Without keys: a loopback `Origin` is let in, too; with keys it is on the list, or
    not. Whatever credential it holds."""
    headers = {"Origin": origin}
    room = fresh_room()
    response = await client.get(room_path(room, "history"), headers)
    assert (response.status_code, response.json()["code"]) == (403, "forbidden")
    assert "access-control-allow-origin" not in response.headers
    status, refusal = await client.refusal(room_path(room, "subscribe"), headers)
    assert (status, refusal["code"]) == (403, "forbidden")
