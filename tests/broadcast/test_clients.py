"""Requests, retries and results of a broadcast, with respx as the server."""

from __future__ import annotations

import json
import time
import uuid
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
import respx
import uuid_utils

from synap_realtime import BroadcastError, ConfigurationError, InvalidArgumentError, NoteCreated
from synap_realtime.documentation import Topic, see

from .conftest import Publish

URL = "http://rooms.test"
OK = {"success": True, "results": [{"success": True, "broadcastCount": 2, "id": "n1"}]}
MESSAGE: dict[str, Any] = {"type": "note.creation.completed", "data": {"entityId": "e1"}}


def send(publish: Publish, **options: Any) -> Any:
    return publish(
        "broadcast_notification",
        user_id="42",
        request_id="r1",
        message=MESSAGE,
        options={"url": URL, **options},
    )


@respx.mock
def test_both_rooms_are_reached_by_one_request(publish: Publish) -> None:
    route = respx.post(f"{URL}/broadcast").respond(json=OK)
    result = send(publish, api_key="secret")
    request = route.calls.last.request
    assert request.headers["Authorization"] == "Bearer secret"
    assert request.headers["Content-Type"] == "application/json"
    (item,) = json.loads(request.content)["notifications"]
    assert item["rooms"] == ["user_42", "request_r1"]
    assert item["type"] == MESSAGE["type"]
    assert item["data"] == MESSAGE["data"]
    assert item["requestId"] == "r1"
    assert item["timestamp"].endswith("Z")
    assert result.success
    assert result.broadcast_count == 2
    assert result.id == item["id"]
    assert result.rooms == ("user_42", "request_r1")
    assert (result.attempts, result.error) == (1, None)
    assert result.raise_for_status() is result


@respx.mock
@pytest.mark.parametrize(
    ("id", "text"),
    [(42, "42"), (0, "0"), (uuid.UUID(int=7), str(uuid.UUID(int=7))), (uuid_utils.uuid7(), None)],
)
def test_an_int_and_a_uuid_are_ids(publish: Publish, id: Any, text: str | None) -> None:
    text = text or str(id)
    route = respx.post(f"{URL}/broadcast").respond(json=OK)
    publish(
        "broadcast_notification", user_id=id, request_id=id, message=MESSAGE, options={"url": URL}
    )
    (item,) = json.loads(route.calls.last.request.content)["notifications"]
    assert item["rooms"] == [f"user_{text}", f"request_{text}"]
    assert item["requestId"] == text


@respx.mock
def test_success_and_error_have_the_reports_shape(publish: Publish) -> None:
    route = respx.post(f"{URL}/broadcast").respond(json=OK)
    payload = NoteCreated(entity_id="e", title="t", file_url="u", file_path="p")
    options = {"url": URL}
    publish("broadcast_success", "42", "a.completed", payload, "r1", id="x1", options=options)
    (item,) = json.loads(route.calls.last.request.content)["notifications"]
    assert item["status"] == "success"
    assert item["data"] == {"entityId": "e", "title": "t", "fileUrl": "u", "filePath": "p"}
    assert item["id"] == "x1"
    publish("broadcast_error", "42", "a.failed", "It is empty.", options=options)
    (item,) = json.loads(route.calls.last.request.content)["notifications"]
    assert item["status"] == "error"
    assert item["data"] == {"error": "It is empty."}
    assert item["rooms"] == ["user_42"]


@respx.mock
@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_retries_transient_failures_with_the_same_id(publish: Publish, status: int) -> None:
    answers: list[httpx.Response | Exception] = [
        httpx.Response(status),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ]
    route = respx.post(f"{URL}/broadcast")
    answers.append(httpx.Response(200, json=OK))
    route.side_effect = answers
    result = send(publish)
    assert result.success
    assert result.attempts == 4
    bodies = [json.loads(call.request.content)["notifications"][0] for call in route.calls]
    assert len({body["id"] for body in bodies}) == 1
    assert len({body["timestamp"] for body in bodies}) == 1


@respx.mock
@pytest.mark.parametrize("status", [401, 403, 413, 415, 422, 302])
def test_other_statuses_are_final_and_reported(publish: Publish, status: int) -> None:
    key = "; set REALTIME_API_KEY to one of the server's API keys"
    hints = {401: f"{key}{see(Topic.CREDENTIALS)}", 403: see(Topic.PERMISSIONS)}
    body = {"error": "No", "details": "because", "code": "no"}
    route = respx.post(f"{URL}/broadcast").respond(status, json=body)
    result = send(publish)
    assert not result.success
    assert result.attempts == route.call_count == 1
    assert result.error == f"{URL} (url=) answered {status}: No: because{hints.get(status, '')}"
    assert result.rooms == ()
    with pytest.raises(BroadcastError, match="No: because"):
        result.raise_for_status()


@respx.mock
def test_the_deadline_ends_the_attempts_and_the_last_answer_is_reported(publish: Publish) -> None:
    route = respx.post(f"{URL}/broadcast").respond(500, text="boom")
    result = send(publish, deadline_s=0.6)
    assert not result.success
    assert route.call_count == result.attempts > 1
    assert result.error == f"{URL} (url=) answered 500: boom"


@respx.mock
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_past_the_deadline_is_not_waited_for(publish: Publish, form: str) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=31), usegmt=True)
    header = "30" if form == "seconds" else later
    route = respx.post(f"{URL}/broadcast").respond(503, headers={"Retry-After": header})
    result = send(publish)
    assert route.call_count == 1
    assert "asked to retry after" in (result.error or "")


@respx.mock
def test_retry_after_is_obeyed(publish: Publish) -> None:
    route = respx.post(f"{URL}/broadcast")
    route.side_effect = [
        httpx.Response(429, headers={"Retry-After": "1"}),
        httpx.Response(503, headers={"Retry-After": "soon"}),
        httpx.Response(200, json=OK),
    ]
    start = time.monotonic()
    assert send(publish).attempts == 3
    assert time.monotonic() - start >= 1


@respx.mock
@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>Welcome to the hotel</html>"),
        httpx.Response(200, json={"ok": True}),
        httpx.Response(200, json={"results": []}),
        httpx.Response(200, json=[1]),
        httpx.Response(204),
    ],
)
def test_a_200_that_is_no_room_servers_is_no_success(
    publish: Publish, answer: httpx.Response
) -> None:
    respx.post(f"{URL}/broadcast").mock(return_value=answer)
    result = send(publish)
    assert not result.success
    assert "check the URL" in (result.error or "")


@respx.mock
def test_invalid_item_fails_with_its_reason(publish: Publish) -> None:
    item = {
        "success": False,
        "error": "Too large",
        "details": "at most",
        "code": "payload_too_large",
    }
    respx.post(f"{URL}/broadcast").respond(json={"success": False, "results": [item]})
    result = send(publish)
    assert (result.success, result.error) == (
        False,
        f"{URL} (url=) rejected the notification: Too large: at most",
    )


OLD = {"success": True, "broadcastCount": 1, "message": "Notification broadcasted"}


@respx.mock
@pytest.mark.parametrize(
    "unknown",
    [
        httpx.Response(400, text="Invalid path. Expected: /rooms/:roomId/:action"),
        httpx.Response(404, text="Not found"),
        httpx.Response(405),
    ],
)
def test_the_reports_server_gets_a_request_for_each_room(
    publish: Publish, unknown: httpx.Response
) -> None:
    batch = respx.post(f"{URL}/broadcast").mock(return_value=unknown)
    user = respx.post(f"{URL}/rooms/user_42/broadcast").respond(json=OLD)
    request = respx.post(f"{URL}/rooms/request_r1/broadcast").respond(json=OLD)
    result = send(publish)
    assert result.success
    assert result.broadcast_count == 2
    assert result.attempts == 3
    assert (batch.call_count, user.call_count, request.call_count) == (1, 1, 1)
    sent = json.loads(user.calls.last.request.content)
    assert sent["type"] == MESSAGE["type"]
    assert "rooms" not in sent


@respx.mock
@pytest.mark.parametrize("status", [404, 405])
def test_another_application_is_named_by_its_address(publish: Publish, status: int) -> None:
    respx.post(url__regex=r".*").respond(status, text="Not Found")
    result = send(publish)
    assert not result.success
    assert result.attempts == 2
    said = f"{URL} (url=) is not a room server (HTTP {status})"
    assert (result.error or "").startswith(said)
    assert "check the URL (url=)" in (result.error or "")


@respx.mock
def test_detects_a_server_that_replaces_another_application() -> None:
    from synap_realtime import Broadcaster

    batch = respx.post(f"{URL}/broadcast")
    batch.side_effect = [httpx.Response(404), httpx.Response(200, json=OK)]
    respx.post(f"{URL}/rooms/user_42/broadcast").respond(404)
    with Broadcaster(URL) as broadcaster:
        assert not broadcaster.broadcast_success("42", "a.completed", {}).success
        assert broadcaster.broadcast_success("42", "a.completed", {}).success


@respx.mock
def test_that_the_route_is_missing_is_remembered() -> None:
    from synap_realtime import Broadcaster

    batch = respx.post(f"{URL}/broadcast").respond(400, text="Invalid path.")
    user = respx.post(f"{URL}/rooms/user_42/broadcast").respond(json=OLD)
    with Broadcaster(URL) as broadcaster:
        for _ in range(3):
            broadcaster.broadcast_success("42", "a.completed", {})
    assert (batch.call_count, user.call_count) == (1, 3)


@respx.mock
def test_partial_delivery_is_not_a_success(publish: Publish) -> None:
    respx.post(f"{URL}/broadcast").respond(404)
    respx.post(f"{URL}/rooms/user_42/broadcast").respond(json=OLD)
    respx.post(f"{URL}/rooms/request_r1/broadcast").respond(403, json={"error": "Forbidden"})
    result = send(publish)
    assert not result.success
    assert result.rooms == ("user_42",)
    assert result.broadcast_count == 1
    reason = f"answered 403: Forbidden{see(Topic.PERMISSIONS)}"
    assert result.error == f"request_r1: {URL} (url=) {reason}"


@respx.mock
def test_our_own_400_is_not_taken_for_a_missing_route(publish: Publish) -> None:
    body = {"error": "Invalid batch", "details": "…", "code": "invalid_request"}
    route = respx.post(f"{URL}/broadcast").respond(400, json=body)
    assert not send(publish).success
    assert route.call_count == 1


@respx.mock
def test_a_room_id_is_percent_encoded(publish: Publish) -> None:
    respx.post(f"{URL}/broadcast").respond(404)
    route = respx.post(url__regex=r".*/rooms/user_auth0%7C5f/broadcast").respond(json=OLD)
    publish("broadcast_success", "auth0|5f", "a.completed", {}, options={"url": URL})
    assert route.called


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"message": MESSAGE}, "user_id"),
        ({"user_id": 4.2, "message": MESSAGE}, "user_id"),
        ({"user_id": True, "message": MESSAGE}, "user_id"),
        ({"user_id": b"42", "message": MESSAGE}, "user_id"),
        ({"request_id": False, "message": MESSAGE}, "request_id"),
        ({"user_id": "a/b", "message": MESSAGE}, "user_id"),
        ({"request_id": "", "message": MESSAGE}, "request_id"),
        ({"user_id": "1", "message": "hello"}, "message"),
        ({"user_id": "1", "message": {"data": {}}}, "type"),
        ({"user_id": "1", "message": {"type": "a"}}, "data"),
        ({"user_id": "1", "message": {"type": "a", "data": [1]}}, "data"),
        ({"user_id": "1", "message": {"type": "a", "data": {"x": float("nan")}}}, "data"),
        ({"user_id": "1", "message": {"type": "a", "data": {"x": "\ud800"}}}, "data"),
        ({"user_id": "1", "message": {"type": "a", "data": {"x": "y" * 300_000}}}, "data"),
        ({"user_id": "1", "message": {"type": "a", "data": {}, "status": "done"}}, "status"),
    ],
)
def test_invalid_argument_raises_immediately_and_is_named(
    publish: Publish, arguments: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        publish("broadcast_notification", **arguments, options={"url": URL})
    assert caught.value.field == field


@pytest.mark.parametrize(
    "url", ["rooms.test", "ftp://rooms.test", "ws://x", "http://", "http://[::"]
)
def test_invalid_url_raises_immediately(publish: Publish, url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^url: "):
        publish("broadcast_success", "1", "a", {}, options={"url": url})


@pytest.mark.parametrize("url", ["ftp://u:s3cret@x", "http://u:s3cret@x?y=1"])
def test_password_in_an_invalid_url_is_not_shown(publish: Publish, url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        publish("broadcast_success", "1", "a", {}, options={"url": url})
    assert "s3cret" not in str(caught.value)


def test_a_key_that_no_header_can_carry_is_not_shown(publish: Publish) -> None:
    with pytest.raises(ConfigurationError, match="line end") as caught:
        publish("broadcast_success", "1", "a", {}, options={"url": URL, "api_key": "s3cret\n"})
    assert "s3cret" not in str(caught.value)
