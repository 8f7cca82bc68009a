"""PROTOCOL.md, "HTTP": the routes, one, many. History and errors have their own files."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator

import pytest

from .client import Client, Json, fresh_room, ids_of, note, raw_head, room_path


async def test_one(client: Client) -> None:
    """HTTP: the members of the answer."""
    room = fresh_room()
    response = await client.broadcast(room, note("n1"))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/json")
    answer = response.json()
    cursor = answer.pop("cursor")
    assert answer == {
        "success": True,
        "broadcastCount": 0,
        "message": "Notification broadcasted",
        "id": "n1",
        "duplicate": False,
    }
    assert (await client.history(room))["notifications"][0]["cursor"] == cursor


async def test_a_body_without_a_declared_length(client: Client) -> None:
    """HTTP: `POST /rooms/{room}/broadcast` takes one notification, however it is transferred."""

    async def parts() -> AsyncIterator[bytes]:
        for byte in json.dumps(note("n1")).encode():
            yield bytes([byte])

    room = fresh_room()
    response = await client.request("POST", room_path(room, "broadcast"), content=parts())
    assert (response.status_code, response.json()["id"]) == (200, "n1")


async def test_many(client: Client) -> None:
    """HTTP, batch: 200 with one result for each, in order."""
    one, two = fresh_room(), fresh_room("request")
    async with client.listen(one) as first, client.listen(two) as second:
        await client.until_connections(one, 1)
        await client.until_connections(two, 1)
        answer = await client.batch(
            [note("a", rooms=[one, two]), note("b", rooms=[two]), note("c", rooms=[one])]
        )
        assert answer["success"] is True
        results = answer["results"]
        assert [result["success"] for result in results] == [True, True, True]
        assert [result["id"] for result in results] == ["a", "b", "c"]
        assert [result["broadcastCount"] for result in results] == [2, 1, 1]
        assert [set(result["rooms"]) for result in results] == [{one, two}, {two}, {one}]
        for received, room in ((await first.take(2), one), (await second.take(2), two)):
            for notification in received:
                result = results["abc".index(notification["id"])]["rooms"][room]
                cursor = notification["cursor"]
                assert result == {"broadcastCount": 1, "cursor": cursor, "duplicate": False}
    assert ids_of((await client.history(one))["notifications"]) == ["a", "c"]
    assert ids_of((await client.history(two))["notifications"]) == ["a", "b"]


async def test_rooms_is_not_delivered(client: Client) -> None:
    """HTTP, batch: `rooms` is not delivered as a member of the notification."""
    room = fresh_room()
    await client.batch([note("a", rooms=[room])])
    assert "rooms" not in (await client.history(room))["notifications"][0]


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (note(rooms=["nope"]), "invalid_request"),
        (note(rooms=[]), "invalid_request"),
        (note(rooms="user_1"), "invalid_request"),
        (note(rooms=[7]), "invalid_request"),
        (note(rooms={"user_1": 1}), "invalid_request"),
        (note(rooms=None), "invalid_request"),
        (note(), "invalid_request"),
        (note(rooms=["user_1"], type="synap.closing"), "invalid_request"),
        ({"rooms": ["user_1"], "type": "x"}, "invalid_request"),
        ({"rooms": ["user_1"], "data": {}}, "invalid_request"),
        ("notification", "invalid_request"),
        (None, "invalid_request"),
        ([], "invalid_request"),
        (note(rooms=["user_1"], data={"x": "y" * 300_000}), "payload_too_large"),
    ],
)
async def test_invalid_notification_fails_alone(client: Client, bad: object, code: str) -> None:
    """HTTP, batch: an invalid notification fails alone."""
    room = fresh_room()
    answer = await client.batch([note("a", rooms=[room]), bad, note("z", rooms=[room])])
    assert answer["success"] is False
    first, failed, last = answer["results"]
    assert [first["success"], failed["success"], last["success"]] == [True, False, True]
    assert set(failed) == {"success", "error", "details", "code"}
    assert failed["code"] == code
    assert failed["error"]
    assert ids_of((await client.history(room))["notifications"]) == ["a", "z"]


async def test_invalid_notification_reaches_none_of_its_rooms(client: Client) -> None:
    """HTTP, batch: an invalid notification fails: it is in no room."""
    room = fresh_room()
    answer = await client.batch([note("a", rooms=[room, "nope"])])
    assert answer["success"] is False
    assert (await client.history(room))["notifications"] == []


async def test_a_thousand_notifications(client: Client) -> None:
    """HTTP, batch: at most 1,000 notifications; a subscriber receives all, in order."""
    room = fresh_room()
    async with client.listen(room) as listener:
        await client.until_connections(room, 1)
        await client.fill(room, 1000)
        assert ids_of(await listener.take(1000)) == [f"n{n}" for n in range(1000)]


async def test_a_thousand_rooms(client: Client) -> None:
    """HTTP, batch: at most 1,000 rooms in total."""
    names = [f"{fresh_room()}-{n}" for n in range(1000)]
    answer = await client.batch([note("a", rooms=names[:400]), note("b", rooms=names[400:])])
    assert answer["success"] is True
    assert len(answer["results"][0]["rooms"]) == 400
    assert ids_of((await client.history(names[-1]))["notifications"]) == ["b"]


async def test_too_many(client: Client) -> None:
    """HTTP, batch: at most 1,000 notifications, 1,000 rooms and 1 MiB. Errors: 413."""
    room = fresh_room()
    names = [f"{room}-{n}" for n in range(1001)]
    large = [note(f"n{n}", rooms=[room], data={"x": "y" * 200_000}) for n in range(6)]
    bodies: list[list[Json]] = [
        [note(rooms=[room])] * 1001,
        [note()] * 1001,
        [note(rooms=names)],
        [note(rooms=names[:500]), note(rooms=names[500:])],
        large,
    ]
    for items in bodies:
        response = await client.post("/broadcast", {"notifications": items})
        assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
    for name in (room, names[0]):
        assert (await client.history(name))["notifications"] == []


async def test_too_much_over_all_rooms(client: Client) -> None:
    """HTTP, batch: at most 16 MiB, each notification counted once for each of its rooms."""
    room = fresh_room()
    names = [f"{room}-{n}" for n in range(100)]
    response = await client.post(
        "/broadcast", {"notifications": [note(rooms=names, data={"x": "y" * 200_000})]}
    )
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
    assert (await client.history(names[0]))["notifications"] == []


async def test_almost_a_mebibyte(client: Client) -> None:
    """HTTP, batch: at most 1 MiB."""
    room = fresh_room()
    items = [note(f"n{n}", rooms=[room], data={"x": "y" * 200_000}) for n in range(5)]
    text = json.dumps({"notifications": items}).encode()
    response = await client.request("POST", "/broadcast", content=text.ljust(1024 * 1024, b" "))
    assert response.status_code == 200
    assert response.json()["success"] is True


async def test_the_broadcast_count(client: Client) -> None:
    """HTTP: `broadcastCount` is the number of connections that it was delivered to."""
    room = fresh_room()
    assert (await client.publish(room))["broadcastCount"] == 0
    async with client.listen(room), client.listen(room, v1=True), client.stream(room):
        await client.until_connections(room, 3)
        assert (await client.publish(room))["broadcastCount"] == 3
        answer = await client.batch([note(rooms=[room])])
        assert answer["results"][0]["rooms"][room]["broadcastCount"] == 3
    await client.until_connections(room, 0)
    assert (await client.publish(room))["broadcastCount"] == 0


async def test_the_health_of_a_room(client: Client) -> None:
    """HTTP: `GET /rooms/{room}/health` counts the connections."""
    room = fresh_room()
    expected = {"status": "ok", "connections": 0, "roomId": room}
    assert (await client.get(room_path(room, "health"))).json() == expected
    async with client.listen(room), client.stream(room):
        await client.until_connections(room, 2)
    await client.until_connections(room, 0)


async def test_a_peer_that_vanishes_is_not_counted(client: Client) -> None:
    """Terminology: a connection is one open WebSocket or event stream."""
    room = fresh_room()
    async with client.listen(room) as listener:
        await client.until_connections(room, 1)
        listener.ws.transport.abort()
        await client.until_connections(room, 0)


async def test_health(client: Client) -> None:
    """HTTP: `GET /health`."""
    response = await client.get("/health")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


async def test_ready(client: Client) -> None:
    """HTTP: `GET /ready`."""
    response = await client.get("/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})


async def test_an_upgrade_to_another_protocol_is_ignored(client: Client) -> None:
    """Limits: every `Upgrade` but a WebSocket handshake's is ignored, and the body is the body."""
    room = fresh_room()
    fields = {
        "Connection": "Upgrade, HTTP2-Settings",
        "Upgrade": "h2c",
        "HTTP2-Settings": "AAMAAABkAAQCAAAAAAIAAAAA",
    }
    for id in ("n0", "n1"):
        path = room_path(room, "broadcast")
        answer = await client.request("POST", path, body=note(id), headers=fields)
        assert answer.status_code == 200, answer.text
    answer = await client.get(room_path(room, "history"), fields)
    assert [each["id"] for each in answer.json()["notifications"]] == ["n0", "n1"]


def statuses(answer: bytes) -> list[int]:
    """The statuses of the responses in these bytes, which have to follow each other exactly."""
    found = []
    while answer:
        head, _, rest = answer.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.1 (\d{3}) ", head)
        assert status, answer
        found.append(int(status[1]))
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        assert length, head
        answer = rest[int(length[1]) :]
    return found


async def test_a_connection_serves_requests_in_order(client: Client) -> None:
    """HTTP: HTTP/1.1, whose connections persist, and whose answers come in the order of the
    requests (RFC 9112, section 9.3)."""
    room = fresh_room()
    sent = [
        raw_head(client, f"GET /rooms/{room}/health HTTP/1.1"),
        raw_head(client, "GET /nothing HTTP/1.1"),
        raw_head(client, "GET /broadcast HTTP/1.1"),
        raw_head(client, "GET /health HTTP/1.1", "Connection: close"),
    ]
    assert statuses(await client.exchange(b"".join(sent), ends=False)) == [200, 404, 405, 200]


async def test_a_connection_ends_after_the_request_that_says_so(client: Client) -> None:
    """HTTP: nothing is answered behind `Connection: close` (RFC 9112, section 9.6)."""
    room = fresh_room()
    body = json.dumps(note("n1")).encode()
    path = room_path(room, "broadcast")
    length = f"Content-Length: {len(body)}"
    sent = [
        raw_head(client, "GET /health HTTP/1.1", "Connection: close"),
        raw_head(client, f"POST {path} HTTP/1.1", length, "Content-Type: application/json") + body,
    ]
    assert statuses(await client.exchange(b"".join(sent), ends=False)) == [200]
    assert (await client.history(room))["notifications"] == []


async def test_an_answer_to_head_has_no_body(client: Client) -> None:
    """HTTP: `HEAD` is answered like `GET`, without the body (RFC 9110, section 9.3.2)."""
    head = raw_head(client, "HEAD /health HTTP/1.1", "Connection: close")
    answer = await client.exchange(head)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")
    assert answer.count(b"\r\n\r\n") == 1


async def test_subscribe_without_an_upgrade(client: Client) -> None:
    """HTTP: `GET /rooms/{room}/subscribe` is a WebSocket; 426 without an upgrade."""
    response = await client.get(room_path(fresh_room(), "subscribe"))
    assert (response.status_code, response.json()["code"]) == (426, "upgrade_required")
    assert response.headers["upgrade"].lower() == "websocket"


async def test_openapi(client: Client) -> None:
    """HTTP: `GET /openapi.json`, these routes as an OpenAPI 3.1 document."""
    response = await client.get("/openapi.json")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("application/json")
    document = response.json()
    assert document["openapi"].startswith("3.1")
    assert document["info"]["title"]
    assert document["info"]["version"]
    routes = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{room}", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert routes >= {
        ("POST", "/rooms/{room}/broadcast"),
        ("POST", "/broadcast"),
        ("GET", "/rooms/{room}/subscribe"),
        ("GET", "/rooms/{room}/events"),
        ("GET", "/rooms/{room}/history"),
        ("GET", "/rooms/{room}/health"),
        ("GET", "/health"),
        ("GET", "/ready"),
    }


@pytest.mark.parametrize(
    "target",
    ["/health?" + "x" * 9000, "/" + "a/" * 5000, "/health?" + "a=b&" * 2500],
    ids=["query", "path", "fields"],
)
async def test_rejects_target_over_8_kib(client: Client, target: str) -> None:
    """Limits: 8 KiB of a request target. Errors: 414."""
    response = await client.request("GET", target)
    assert (response.status_code, response.json()["code"]) == (414, "payload_too_large")


async def test_rejects_query_of_more_than_32_parameters(client: Client) -> None:
    """Limits: 32 parameters of a query. Errors: 400."""
    for count, status in ((32, 200), (33, 400)):
        query = "&".join(["a=b"] * count)
        assert (await client.request("GET", f"/health?{query}")).status_code == status


async def test_rejects_body_with_content_encoding(client: Client) -> None:
    """Errors: 415; a body is read as it came."""
    for coding, status in (("gzip", 415), ("br", 415), ("identity", 200)):
        path = f"/rooms/{fresh_room()}/broadcast"
        headers = {"Content-Encoding": coding}
        response = await client.request("POST", path, body=note(), headers=headers)
        assert response.status_code == status
