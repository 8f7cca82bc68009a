"""PROTOCOL.md, "HTTP": every route of a real server, with valid and invalid input."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from synap_realtime.server.messages import MAX_QUERY_FIELDS, Request, RequestError

NOTE: dict[str, Any] = {"type": "note.creation.completed", "data": {"entityId": "e1"}}


async def post(rooms: str, path: str, **kwargs: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=rooms) as client:
        return await client.post(path, **kwargs)


async def get(rooms: str, path: str, **kwargs: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=rooms) as client:
        return await client.get(path, **kwargs)


async def test_broadcast_response_extends_the_documented_shape(rooms: str) -> None:
    response = await post(rooms, "/rooms/user_1/broadcast", json=NOTE)
    assert response.status_code == 200
    body = response.json()
    assert body["success"] is True
    assert body["broadcastCount"] == 0
    assert body["message"] == "Notification broadcasted"
    assert body["duplicate"] is False
    assert body["id"]
    assert body["cursor"]


async def test_the_same_id_again_answers_with_the_first_result(rooms: str) -> None:
    answers = [
        (await post(rooms, "/rooms/user_1/broadcast", json={**NOTE, "id": "n1"})).json()
        for _ in range(2)
    ]
    assert [answer["duplicate"] for answer in answers] == [False, True]
    assert answers[0]["cursor"] == answers[1]["cursor"]


async def test_batch_returns_results_in_order_and_an_invalid_item_fails_alone(rooms: str) -> None:
    items = [
        {**NOTE, "rooms": ["user_1", "request_1"], "id": "a"},
        {**NOTE, "rooms": ["user/1"]},
        {**NOTE, "rooms": []},
        {**NOTE, "rooms": "user_1"},
        {**NOTE, "rooms": [7]},
        {**NOTE, "rooms": ["user_1"], "type": "synap.closing"},
        {"rooms": ["user_1"], "type": "x"},
        "notification",
        {**NOTE, "rooms": ["user_1"], "data": {"x": "y" * 300_000}},
        {**NOTE, "rooms": ["user_1", "user_1"], "id": "z"},
    ]
    response = await post(rooms, "/broadcast", json={"notifications": items})
    assert response.status_code == 200
    body = response.json()
    assert body["success"] is False
    results = body["results"]
    assert [r["success"] for r in results] == [True, *[False] * 8, True]
    assert results[0]["id"] == "a"
    assert set(results[0]["rooms"]) == {"user_1", "request_1"}
    assert set(results[-1]["rooms"]) == {"user_1"}
    assert all({"error", "details", "code"} <= set(r) for r in results if not r["success"])
    assert results[-2]["code"] == "payload_too_large"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/rooms/user_1", 404, "not_found"),
        ("GET", "/rooms/user_1/broadcast", 405, "method_not_allowed"),
        ("POST", "/rooms/user_1/subscribe", 405, "method_not_allowed"),
        ("GET", "/broadcast", 405, "method_not_allowed"),
        ("GET", "/rooms/user_1/subscribe", 426, "upgrade_required"),
    ],
)
async def test_unknown_routes_and_methods_are_reported(
    rooms: str, method: str, path: str, status: int, code: str
) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        response = await client.request(method, path)
    assert (response.status_code, response.json()["code"]) == (status, code)
    if status == 405:
        assert response.headers["Allow"] in ("GET", "POST")
    if status == 426:
        assert response.headers["Upgrade"] == "websocket"


async def test_escaped_text_is_measured_as_it_is_delivered(rooms: str) -> None:
    text = json.dumps({**NOTE, "data": {"x": "é" * 100_000}}, ensure_ascii=True)
    assert len(text) > 256 * 1024
    response = await post(rooms, "/rooms/user_1/broadcast", content=text)
    assert response.status_code == 200


async def test_one_request_reaches_a_thousand_rooms_and_not_more(rooms: str) -> None:
    names = [f"user_{n}" for n in range(1001)]
    for count, status in ((1000, 200), (1001, 413)):
        body = {"notifications": [{**NOTE, "rooms": names[:count]}]}
        assert (await post(rooms, "/broadcast", json=body)).status_code == status


async def test_batch_over_the_total_size_in_its_rooms_gets_a_413(rooms: str) -> None:
    item = {**NOTE, "data": {"x": "y" * 68_000}, "rooms": [f"user_{n}" for n in range(1000)]}
    response = await post(rooms, "/broadcast", json={"notifications": [item]})
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_only_json_is_accepted(rooms: str, content_type: str, status: int) -> None:
    headers = {"Content-Type": content_type}
    body = json.dumps(NOTE)
    response = await post(rooms, "/rooms/user_1/broadcast", content=body, headers=headers)
    assert response.status_code == status


async def test_health_counts_the_connections_of_a_room(rooms: str) -> None:
    assert (await get(rooms, "/health")).json() == {"status": "ok"}
    assert (await get(rooms, "/ready")).json() == {"status": "ready"}
    health = (await get(rooms, "/rooms/user_1/health")).json()
    assert health == {"status": "ok", "connections": 0, "roomId": "user_1"}


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("http://127.0.0.1:8000", 200),
        ("https://evil.example", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
async def test_a_page_of_another_origin_cannot_publish(
    rooms: str, origin: str, status: int
) -> None:
    headers = {"Origin": origin}
    response = await post(rooms, "/rooms/user_1/broadcast", json=NOTE, headers=headers)
    assert response.status_code == status


async def test_a_position_in_the_history_is_a_cursor_or_earliest(rooms: str) -> None:
    response = await get(rooms, "/rooms/user_1/history?after=latest")
    assert response.status_code == 400
    assert response.json()["details"] == "after: expected a cursor, or 'earliest'"
    response = await get(rooms, "/rooms/user_1/events?after=later")
    assert response.json()["details"] == "after: expected a cursor, 'earliest' or 'latest'"


@given(st.text("ab=&%+20;C3#é", max_size=60))
def test_a_query_is_parsed_as_by_the_standard_library(query: str) -> None:
    expected = {name: values[-1] for name, values in parse_qs(query).items()}
    request = Request("GET", "/", query, {})
    try:
        request.parse_target()
    except RequestError:
        assert query.count("&") >= MAX_QUERY_FIELDS
    else:
        assert request.query == expected
