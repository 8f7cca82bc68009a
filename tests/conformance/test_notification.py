"""PROTOCOL.md, "Notification"."""

from __future__ import annotations

import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from .client import Client, Json, fresh_room, note, room_path

MAX_BYTES = 256 * 1024


async def _delivered(client: Client, notification: Json) -> Json:
    """What a subscriber gets of a notification, which has to be what history shows too."""
    room = fresh_room()
    response = await client.broadcast(room, notification)
    assert response.status_code == 200, response.text
    async with client.listen(room, after="earliest") as listener:
        received = await listener.next()
    assert (await client.history(room))["notifications"] == [received]
    return received


async def _refused(client: Client, notification: Json) -> None:
    response = await client.broadcast(fresh_room(), notification)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request"), (
        response.text
    )


@pytest.mark.parametrize("id", ["n1", "x" * 128, "é" * 128, "a b/c\n", "0", "__proto__"])
async def test_the_id_is_the_senders(client: Client, id: str) -> None:
    """Notification: `id` is a string of 1 to 128, the sender's."""
    room = fresh_room()
    assert (await client.publish(room, id))["id"] == id
    assert (await client.history(room))["notifications"][0]["id"] == id


async def test_the_default_id_is_a_uuid_7(client: Client) -> None:
    """Notification: `id` default: a UUIDv7."""
    room = fresh_room()
    answers = [await client.publish(room) for _ in range(2)]
    batch = await client.batch([note(rooms=[room]), note(rooms=[room])])
    ids = [answer["id"] for answer in [*answers, *batch["results"]]]
    assert len(set(ids)) == 4
    for id in ids:
        assert str(uuid.UUID(id)) == id
        assert uuid.UUID(id).version == 7
    history = await client.history(room)
    assert [notification["id"] for notification in history["notifications"]] == ids


@pytest.mark.parametrize("id", ["", "x" * 129], ids=["empty", "129"])
async def test_the_length_of_an_id(client: Client, id: str) -> None:
    """Notification: `id` is a string of 1 to 128."""
    await _refused(client, note(id))


@pytest.mark.parametrize(
    "type", ["a", "note.creation.completed", "t" * 128, "synap", "synapse.x", "é"]
)
async def test_the_type(client: Client, type: str) -> None:
    """Notification: `type` is a string of 1 to 128; only the prefix `synap.` is reserved."""
    assert (await _delivered(client, note(type=type)))["type"] == type


@pytest.mark.parametrize("type", ["", "t" * 129, "synap.", "synap.closing", "synap.x"])
async def test_rejects_invalid_type(client: Client, type: str) -> None:
    """Notification: `type` is a string of 1 to 128. The prefix `synap.` is reserved."""
    await _refused(client, note(type=type))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"a": {"b": [1, -2.5, 1e-7, True, False, None, "", [], {}]}},
        {"text": 'é 😀 \u2028 \u2029 \x85 \r\n \t " \\ / \x7f'},
        {"": 1, " ": 2, "a.b": 3, "__proto__": {"x": 1}, "constructor": 4, "id": 5, "room": 6},
        {"n": 2**53 - 1, "m": -(2**53) + 1},
        {"nul": "a\u0000b"},
    ],
    ids=["empty", "nested", "text", "names", "numbers", "nul"],
)
async def test_the_data_is_delivered_as_it_is(client: Client, data: Json) -> None:
    """Notification: `data` is an object."""
    assert (await _delivered(client, note(data=data)))["data"] == data


async def test_deep_data(client: Client) -> None:
    """Notification: at most about 200 levels."""
    deep: Any = "end"
    for _ in range(150):
        deep = [deep]
    assert (await _delivered(client, note(data={"deep": deep})))["data"] == {"deep": deep}


@pytest.mark.parametrize(
    "number", ["1e400", "-1e400", "9" * 5000, "1e-400", "0.1e1", "-0", "12345678901234567890"]
)  # fmt: skip
async def test_a_number_that_is_hard_to_keep(client: Client, number: str) -> None:
    """Notification: JSON is read strictly, no `NaN`: what is taken is delivered as JSON."""
    room = fresh_room()
    content = f'{{"type":"a","data":{{"n":{number}}}}}'.encode()
    response = await client.request("POST", room_path(room, "broadcast"), content=content)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 200:
        text = (await client.get(room_path(room, "history"))).text
        assert "Infinity" not in text
        assert "NaN" not in text


async def test_the_request_id(client: Client) -> None:
    """Notification: `requestId` is the request that this answers."""
    assert (await _delivered(client, note(requestId="r 1/é")))["requestId"] == "r 1/é"


@pytest.mark.parametrize("status", ["pending", "success", "error"])
async def test_the_status(client: Client, status: str) -> None:
    """Notification: `status` is `pending`, `success` or `error`."""
    assert (await _delivered(client, note(status=status)))["status"] == status


async def test_optional_members_are_not_made_up(client: Client) -> None:
    """Notification: `requestId` and `status` are optional."""
    received = await _delivered(client, note())
    assert set(received) == {"id", "type", "data", "timestamp", "room", "cursor"}


@pytest.mark.parametrize(
    ("sent", "delivered"),
    [
        ("2026-01-31T12:00:00.000Z", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31T12:00:00.5Z", "2026-01-31T12:00:00.500Z"),
        ("2026-01-31T12:00:00.123400Z", "2026-01-31T12:00:00.123Z"),
        ("2026-01-31T12:00:00.123000001Z", "2026-01-31T12:00:00.123Z"),
        ("2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31T23:30:00-05:30", "2026-02-01T05:00:00.000Z"),
        ("2026-01-31T12:00:00-00:00", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31t12:00:00z", "2026-01-31T12:00:00.000Z"),
    ],
)
async def test_the_timestamp_is_delivered_in_utc(client: Client, sent: str, delivered: str) -> None:
    """Notification: `timestamp` is delivered in UTC with milliseconds and `Z`."""
    assert (await _delivered(client, note(timestamp=sent)))["timestamp"] == delivered


async def test_a_missing_timestamp_is_filled_in(client: Client) -> None:
    """Notification: the server fills `timestamp` in when it is missing."""
    filled = (await _delivered(client, note()))["timestamp"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", filled)
    # The clocks of two machines may differ by a little.
    assert abs(datetime.fromisoformat(filled) - datetime.now(UTC)) < timedelta(minutes=5)


@pytest.mark.parametrize(
    "timestamp",
    ["", "now", "2026-01-31", "2026-01-31T12:00:00", "2026-02-30T12:00:00Z", "2026-01-31T25:00:00Z",
     "1769860800", "Sat, 31 Jan 2026 12:00:00 GMT", "20260131T120000Z",
     "2026-01-31T12:00:00+0100", "\uff12026-01-31T12:00:00Z"],
)  # fmt: skip
async def test_rejects_invalid_timestamp(client: Client, timestamp: str) -> None:
    """Notification: `timestamp` is RFC 3339."""
    await _refused(client, note(timestamp=timestamp))


async def test_room_and_cursor_are_the_servers(client: Client) -> None:
    """Notification: `room` and `cursor` are set by the server; what a sender wrote is replaced."""
    rooms = [fresh_room(), fresh_room("request")]
    sent = note("n1", room="user_other", cursor="elsewhere-1")
    answer = await client.batch([{**sent, "rooms": rooms}])
    for room in rooms:
        [received] = (await client.history(room))["notifications"]
        assert received["room"] == room
        assert received["cursor"] == answer["results"][0]["rooms"][room]["cursor"]


@pytest.mark.parametrize(
    "members",
    [
        {"progress": 0.5, "tags": ["a", {"b": None}], "": "", "a.b": True, "nothing": None},
        {"__proto__": 1, "constructor": 2, "__class__": 3, "self": 4, "toString": 5},
        {"request_id": "r1"},
        {"request_id": 7, "Type": 1, "ID": 2},
        {"rooms": ["user_1"], "event": "x", "action": "ack"},
        {"model_config": 1, "model_extra": {"x": 1}, "model_fields": 2, "value": 3, "é😀": 4},
    ],
    ids=["plain", "reserved-words", "snake-case", "other-case", "of-other-messages", "libraries"],
)
async def test_unknown_members_are_kept(client: Client, members: Json) -> None:
    """Notification: unknown members are kept and delivered."""
    received = await _delivered(client, note(**members))
    assert {name: received.get(name, "missing") for name in members} == members
    assert "requestId" not in received


def _sized(size: int, fill: str = "x") -> Json:
    """A notification of exactly so many bytes of compact JSON, with nothing left to fill in."""
    made = note("n1", timestamp="2026-01-31T12:00:00.000Z", data={"x": ""})
    missing = size - len(json.dumps(made, separators=(",", ":")).encode())
    made["data"]["x"] = fill * (missing // len(fill.encode())) + "x" * (
        missing % len(fill.encode())
    )
    return made


@pytest.mark.parametrize("fill", ["x", "é", "😀"])
async def test_the_largest_notification(client: Client, fill: str) -> None:
    """Notification: at most 256 KiB, as UTF-8 JSON without white space."""
    largest = _sized(MAX_BYTES, fill)
    for text in (
        json.dumps(largest, ensure_ascii=False, separators=(",", ":")),
        json.dumps(largest, ensure_ascii=True, indent=4),
    ):
        room = fresh_room()
        response = await client.request("POST", room_path(room, "broadcast"), content=text.encode())
        assert response.status_code == 200, response.text
        async with client.listen(room, after="earliest") as listener:
            assert (await listener.next())["data"] == largest["data"]


@pytest.mark.parametrize("fill", ["x", "é"])
async def test_a_notification_that_is_too_large(client: Client, fill: str) -> None:
    """Notification: at most 256 KiB. Errors: 413 `payload_too_large`."""
    room = fresh_room()
    response = await client.broadcast(room, _sized(MAX_BYTES + 1, fill))
    assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
    assert (await client.history(room))["notifications"] == []
