"""Bodies, rooms and positions: any client input gets a clear error and a quiet log, and the server
keeps serving.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from synap_realtime import ConfigurationError
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.support.bad_input import (
    BODY,
    NOTE,
    answer,
    note,
    require_alive,
)
from tests.support.servers import FRONTS

pytestmark = pytest.mark.usefixtures("quiet_log")


@pytest.fixture(params=["front-memory", "asgi-memory", "front-sqlite"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    front, _, kind = request.param.partition("-")
    store = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/rooms.db"
    async with FRONTS[front](create_app(load_settings(store=store, drain_timeout_s=1))) as url:
        yield url


# --- bodies -------------------------------------------------------------------------------------

BAD_BODIES = [
    b"", b"{", b"nonsense", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"\xef\xbb\xbf" + BODY,
    BODY.decode().encode("utf-16"), b"null", b"[]", b'"text"', b"7", b"true", b"{}", BODY + BODY,
    BODY + b"\x00", b"{'type':'a'}", b'{"type":"a"}', b'{"data":{}}', b'{"type":"a","data":[]}',
    b'{"type":"a","data":null}', b'{"type":"a","data":"{}"}', b'{"type":7,"data":{}}',
    b'{"type":null,"data":{}}', b'{"type":"","data":{}}', b'{"type":"synap.x","data":{}}',
    b'{"type":"a","data":{"x":NaN}}', b'{"type":"a","data":{"x":-Infinity}}',
    b'{"type":"a","data":{"x":1e999}}', b'{"type":"a","data":{},"x":-1e999}',
    b'{"type":"a","data":{"x":"\\ud800"}}', b'{"type":"a","data":{"\\udfff":1}}',
    b'{"type":"a","data":{},"id":"\\ud800"}', b'{"type":"\\ud800","data":{}}',
    b'{"type":"a","data":{},"x":"\\ud800"}', b'{"type":"a","data":{},"\\ud800":1}',
    b'{"type":"a","data":{"x":"\\ude00\\ud83d"}}', b'{"type":"a","data":{"x":"\xed\xa0\x80"}}',
    b'{"type":"a","data":{"x":"\n"}}', b'{"type":"a","data":{"x":01}}',
    b'{"type":"a","data":{"x":' + b"9" * 5000 + b"}}",
    note(id=""), note(id=7), note(id={}), note(id="x" * 129), note(type="x" * 129),
    note(status="done"), note(status=1), note(status=["success"]), note(requestId={}),
    note(requestId=1), note(timestamp="now"), note(timestamp=0), note(timestamp="9999-99-99"),
    note(timestamp="0001-01-01T00:00:00+23:59"), note(timestamp="2026-01-01T00:00:00"),
    note(timestamp="\uff12026-01-01T00:00:00Z"),
]  # fmt: skip


async def test_a_bad_body_gets_a_clear_400(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        for body in BAD_BODIES:
            response = await client.post("/rooms/user_1/broadcast", content=body)
            assert response.status_code == 400, body[:100]
            answer = response.json()
            assert answer["code"] == "invalid_request"
            assert answer["error"]
            assert answer["details"]
            assert len(response.content) < 1000
            assert "Traceback" not in response.text
            batch = b'{"notifications":[' + body.replace(b"{", b'{"rooms":["user_1"],', 1) + b"]}"
            response = await client.post("/broadcast", content=batch)
            if response.status_code == 200:
                assert response.json()["results"][0]["code"] == "invalid_request", body[:100]
            else:
                assert response.status_code == 400, body[:100]
            await require_alive(url, body[:100])
        assert (await client.get("/rooms/user_1/history")).json()["notifications"] == []


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b'{"notifications":[]}', b'{"notifications":{}}', b'{"notifications":null}'],
)
async def test_a_bad_batch_gets_a_clear_400(rooms: str, body: bytes) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        response = await client.post("/broadcast", content=body)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")


async def test_unusual_valid_input_is_stored_and_delivered_unchanged(url: str) -> None:
    """A store may not choke on it, nor change it."""
    odd: list[dict[str, Any]] = [
        {"id": "\x00"}, {"id": "a\x00b"}, {"id": "a\x00c"}, {"id": "'; DROP TABLE entry; --"},
        {"id": "😀" * 128}, {"id": "\u2028\r\n\x7f\ufffe"}, {"type": "a\x00\n"},
        {"data": {"x": "\x00", "\x00": ["😀", "\u2028", "\r\n"]}},
        {"data": {"x": 2**63}}, {"data": {"x": -(2**200)}}, {"data": {"x": 1.5e308}},
        {"data": {"": {"": ""}}}, {"data": {"k" * 200_000: 1}}, {"requestId": "\x00" * 1000},
        {"__proto__": {}, "constructor": 1, "model_extra": 2, "request_id": "r"}, {"\x00": "\x00"},
        {"room": "user_2", "cursor": "x"}, {"room": 7, "cursor": []},
        {"timestamp": "2026-01-01t00:00:00.1234567890+01:00"},
    ]  # fmt: skip
    async with httpx.AsyncClient(base_url=url) as client:
        for number, members in enumerate(odd):
            body = note(**members)
            room = f"/rooms/request_{number}"
            receipt = (await client.post(f"{room}/broadcast", content=body)).json()
            assert receipt["success"], (members, receipt)
            history = (await client.get(f"{room}/history")).json()
            (kept,) = history["notifications"]
            sent = {**NOTE, "id": receipt["id"], **members}
            for name, value in sent.items():
                if name not in ("room", "cursor", "timestamp", "request_id"):
                    assert kept[name] == value, members
            assert kept["room"] == f"request_{number}"
            assert kept["cursor"] == receipt["cursor"]
            again = (await client.post(f"{room}/broadcast", json=kept)).json()
            assert again == {**receipt, "duplicate": True}
            async with client.stream("GET", f"{room}/events") as events:
                text = ""  # not by aiter_lines(), which splits at U+2028, too
                async for part in events.aiter_text():
                    text += part
                    if "event: " in text:
                        break
            data = text.partition("\ndata: ")[2].partition("\n\n")[0]
            assert json.loads(data) == kept
            await require_alive(url, members)


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "rooms.db"
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE its (own TEXT)")
    before = file.read_bytes()
    with pytest.raises(ConfigurationError, match="another program's database"):
        create_app(load_settings(store=f"sqlite:///{file}"))
    assert file.read_bytes() == before


async def test_restored_file_accepts_the_next_write(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And what stood in its place meanwhile is not touched."""
    file, away, elsewhere = (tmp_path / f"{name}.db" for name in ("rooms", "away", "other"))
    with contextlib.closing(sqlite3.connect(elsewhere)) as other:
        other.execute("CREATE TABLE its (own TEXT)")
    async with running_server(create_app(load_settings(store=f"sqlite:///{file}"))) as url:
        room = f"{url}/rooms/user_1/broadcast"
        async with httpx.AsyncClient() as client:
            assert (await client.post(room, json=NOTE)).status_code == 200
            file.rename(away)
            file.write_bytes(elsewhere.read_bytes())
            for _ in range(2):
                refused = await client.post(room, json=NOTE)
                assert refused.status_code == 503
                assert "moved or deleted" in refused.json()["details"]
            assert file.read_bytes() == elsewhere.read_bytes()
            away.replace(file)
            assert (await client.post(room, json=NOTE)).status_code == 200
    # Once each: that it went, and that it is back.
    said = [record.getMessage() for record in caplog.records]
    assert ["failed" in line for line in said] == [True, False]
    caplog.clear()


async def test_last_of_a_repeated_member_is_used(rooms: str) -> None:
    body = b'{"type":"a","type":"b","data":[],"data":{"x":1,"x":2},"id":"n1","id":"n2"}'
    async with httpx.AsyncClient(base_url=rooms) as client:
        receipt = (await client.post("/rooms/user_1/broadcast", content=body)).json()
        (kept,) = (await client.get("/rooms/user_1/history")).json()["notifications"]
    assert receipt["id"] == kept["id"] == "n2"
    assert (kept["type"], kept["data"]) == ("b", {"x": 2})


async def test_too_much_gets_a_413(rooms: str) -> None:
    big = {**NOTE, "data": {"x": "y" * 256 * 1024}}
    long_key = {**NOTE, "data": {"k" * 1_000_000: 1}}
    huge = {**NOTE, "data": {"x": "y" * 2 * 1024 * 1024}}
    many = {"notifications": [{**NOTE, "rooms": ["user_1"]}] * 1001}
    many_rooms = {"notifications": [{**NOTE, "rooms": [f"user_{n}" for n in range(1001)]}]}
    async with httpx.AsyncClient(base_url=rooms) as client:
        for path, body in [
            ("/rooms/user_1/broadcast", big),
            ("/rooms/user_1/broadcast", long_key),
            ("/rooms/user_1/broadcast", huge),
            ("/broadcast", {"notifications": [huge]}),
            ("/broadcast", many),
            ("/broadcast", many_rooms),
        ]:
            response = await client.post(path, json=body)
            assert (response.status_code, response.json()["code"]) == (413, "payload_too_large")
            await require_alive(rooms, path)


@pytest.mark.parametrize("coding", ["gzip", "br", "gzip, identity", "GZIP", "x"])
async def test_rejects_body_with_content_encoding(rooms: str, coding: str) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        for path, content in (
            ("/rooms/user_1/broadcast", gzip.compress(BODY)),
            ("/broadcast", gzip.compress(BODY)),
            ("/revoke", b"{}"),
        ):
            headers = {"Content-Encoding": coding}
            response = await client.post(path, content=content, headers=headers)
            if path == "/revoke" and response.status_code == 403:
                continue  # authorization is checked first
            answer = (response.status_code, response.json()["code"])
            assert answer == (415, "unsupported_media_type"), path
            assert response.headers["Accept-Encoding"] == "identity"
        headers = {"Content-Encoding": "identity"}
        plain = await client.post("/rooms/user_1/broadcast", content=BODY, headers=headers)
        assert plain.status_code == 200


async def test_a_body_without_a_declared_length_is_bounded_too(rooms: str) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b" " * 65536

    async with httpx.AsyncClient(base_url=rooms) as client:
        response = await client.post("/broadcast", content=endless())
    assert response.status_code == 413


# --- rooms and positions ------------------------------------------------------------------------


async def test_a_bad_room_gets_a_clear_refusal(rooms: str) -> None:
    for room in [
        "user", "user_", "_1", "USER_1", "1user_1", "user_a%2Fb", "user_%00", "user_a%20b",
        "%2e%2e", "user_%ff", "user_%ed%a0%80", "user_%C3%A9", "user_" + "x" * 201, "user_1%0a",
        "x" * 10_000,
        "user_1%0d%0aX:%20y", "user_%2500", "user_%", "user_%zz", "x" * 33 + "_1", "user_1;a=b",
    ]:  # fmt: skip
        for method, rest in (
            ("POST", "/broadcast"), ("GET", "/health"), ("GET", "/history"), ("GET", "/events"),
            ("GET", "/subscribe"), ("HEAD", "/events"),
        ):  # fmt: skip
            line = b"%s /rooms/%s%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
            head, body = await answer(rooms, line % (
                method.encode(), room.encode(), rest.encode()))  # fmt: skip
            status = b"414" if len(room) > 8192 else b"400"
            assert head.split()[1] == status, (room, rest, head)
            assert len(body) < 1000
        await require_alive(rooms, room)


async def test_dots_are_ordinary_in_a_room_and_do_not_climb(rooms: str) -> None:
    for path, status in [
        ("/rooms/user_../health", 200), ("/rooms/user_./health", 200), ("/rooms/../health", 400),
        ("/rooms/user_1/../health", 404), ("/rooms/./user_1/health", 404), ("//health//", 200),
        ("/rooms/user_1/%68ealth", 200), ("/rooms%2Fuser_1/health", 404), ("/../../etc", 404),
    ]:  # fmt: skip
        head, _ = await answer(rooms, b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode())
        assert head.startswith(b"HTTP/1.1 %d " % status), (path, head)


BAD_POSITIONS = [
    "0", "-", "-1", "a-", "a-b", "a-1-1", "a-1%0a", "a-%D9%A1", "a-" + "9" * 19, "a" * 33 + "-1",
    "lost", "EARLIEST", "latest%00", "%00", "%ff", "a-1%20", "a--1", "a-1e3", "null", "x" * 5000,
]  # fmt: skip
GOOD_POSITIONS = ["", "earliest", "a-1", "a-0", "a-" + "9" * 18, "a" * 32 + "-1", "a-0000001"]


async def test_a_position_is_right_or_refused(url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        await client.post("/rooms/user_1/broadcast", json=NOTE)
        for after in BAD_POSITIONS:
            for rest in ("history", "events"):
                response = await client.get(f"/rooms/user_1/{rest}?after={after}")
                assert response.status_code == 400, after
                assert response.json()["code"] == "invalid_request"
            ws = f"{url.replace('http', 'ws')}/rooms/user_1/subscribe?after={after}"
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(ws)
            assert refused.value.response.status_code == 400
        for after in GOOD_POSITIONS:
            history = (await client.get(f"/rooms/user_1/history?after={after}")).json()
            assert len(history["notifications"]) == 1
        for limit in ("0", "-1", "1001", "1e2", "%2B1", "1.0", "%D9%A1", "x", "%00", "9" * 5000):
            response = await client.get(f"/rooms/user_1/history?limit={limit}")
            assert response.status_code == 400, limit
    await require_alive(url, "positions")


async def test_a_last_event_id_that_is_no_cursor_is_a_lost_position(rooms: str) -> None:
    async with httpx.AsyncClient(base_url=rooms) as client:
        await client.post("/rooms/user_1/broadcast", json=NOTE)
        for last in ("x" * 10_000, "a-", "lost", "\xff", "a-" + "9" * 19, "latest", "'"):
            headers = {b"Last-Event-ID": last.encode("latin-1")}
            async with client.stream("GET", "/rooms/user_1/events", headers=headers) as events:
                lines = events.aiter_lines()
                async for line in lines:
                    if line == "event: synap.subscribed":
                        break
                await anext(lines)  # its id
                said = json.loads((await anext(lines)).removeprefix("data: "))
                assert (said["replayed"], said["recovered"]) == (1, False), last
