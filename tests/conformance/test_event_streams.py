"""PROTOCOL.md, "Server-Sent Events"."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
from urllib.parse import urlsplit

import pytest

from tests.support.timeouts import scaled

from .client import Client, EventParser, dial, fresh_room, ids_of, room_path
from .watch import COMMENT_EVERY_S, Watch


async def test_the_headers(client: Client) -> None:
    """Server-Sent Events: header fields tell proxies not to store or delay the stream."""
    async with client.stream(fresh_room()) as stream:
        headers = stream.response.headers
    assert headers["content-type"].partition(";")[0] == "text/event-stream"
    assert {"no-cache", "no-store"} & set(headers["cache-control"].replace(",", " ").split())
    assert headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize("accept", ["text/event-stream", "text/html", "*/*", "application/json"])
async def test_accept_is_not_asked(client: Client, accept: str) -> None:
    """Server-Sent Events: the server ignores `Accept`."""
    async with client.stream(fresh_room(), headers={"Accept": accept}) as stream:
        await stream.subscribed()


async def test_each_notification_is_an_event(client: Client) -> None:
    """Server-Sent Events: an event without a name: `id:` is the cursor, `data:` the JSON."""
    room = fresh_room("request")
    text = "é 😀 \u2028 \u2029 \x85 \r\n\n data: x"
    await client.publish(room, "n0", data={"text": text})
    async with client.stream(room) as stream:
        events = [await stream.event()]
        await stream.subscribed()
        await client.publish(room, "n1", data={"text": text})
        events.append(await stream.event())
    history = (await client.history(room))["notifications"]
    assert [event.name for event in events] == [None, None]
    assert [event.json() for event in events] == history
    assert [event.id for event in events] == [notification["cursor"] for notification in history]


async def test_control_events_are_named(client: Client) -> None:
    """Server-Sent Events: the control frames come as named events, `data:` alone, with an `id:`."""
    room = fresh_room("request")
    await client.fill(room, 2)
    async with client.stream(room) as stream:
        await stream.take(2)
        event = await stream.event()
        assert event.name == "synap.subscribed"
        data = event.json()
        cursor = data.pop("cursor")
        assert data == {"room": room, "replayed": 2, "recovered": True}
        assert isinstance(cursor, str)
        await client.publish(room, "n2")
        assert (await stream.event()).json()["id"] == "n2", "it is said once"
    async with client.stream(room, last_event_id=event.id) as stream:
        assert (await stream.next())["id"] == "n2", "its id resumes"


async def test_the_id_of_a_control_event_in_an_empty_room(client: Client) -> None:
    """Server-Sent Events: a control event has an `id:`, from which nothing is missed."""
    room = fresh_room()
    async with client.stream(room) as stream:
        event = await stream.event()
    await client.publish(room, "n0")
    async with client.stream(room, last_event_id=event.id) as stream:
        assert (await stream.next())["id"] == "n0"
        data = await stream.subscribed()
        assert (data["replayed"], data["recovered"]) == (1, True)


async def test_last_event_id_resumes(client: Client) -> None:
    """Server-Sent Events: `Last-Event-ID` resumes."""
    room = fresh_room("request")
    cursors = await client.fill(room, 3)
    async with client.stream(room, last_event_id=cursors[0]) as stream:
        assert ids_of(await stream.take(2)) == ["n1", "n2"]
        data = await stream.subscribed()
        assert (data["replayed"], data["recovered"]) == (2, True)


@pytest.mark.parametrize("after", ["earliest", "latest", "first"])
async def test_last_event_id_wins(client: Client, after: str) -> None:
    """Server-Sent Events: `Last-Event-ID` takes precedence over `?after=`."""
    room = fresh_room()
    cursors = await client.fill(room, 3)
    start = cursors[0] if after == "first" else after
    async with client.stream(room, start, last_event_id=cursors[1]) as stream:
        assert (await stream.next())["id"] == "n2"
        assert (await stream.subscribed())["replayed"] == 1


@pytest.mark.parametrize("junk", ["nonsense", "a b", "elsewhere-1", "x" * 65, "-", "0", "{}"])
async def test_a_last_event_id_that_is_no_cursor(client: Client, junk: str) -> None:
    """Server-Sent Events: a value that is not a cursor is treated as a lost position."""
    room = fresh_room()
    await client.fill(room, 3)
    async with client.stream(room, "latest", last_event_id=junk) as stream:
        assert ids_of(await stream.take(3)) == ["n0", "n1", "n2"]
        data = await stream.subscribed()
        assert (data["replayed"], data["recovered"]) == (3, False)


async def test_a_lost_position(client: Client) -> None:
    """Subscribing: the whole retained log is replayed; the subscription says `recovered: false`."""
    room = fresh_room()
    cursors = await client.fill(room, 1002)
    async with client.stream(room, last_event_id=cursors[0]) as stream:
        assert ids_of(await stream.take(1000)) == [f"n{n}" for n in range(2, 1002)]
        data = await stream.subscribed()
        assert (data["replayed"], data["recovered"]) == (1000, False)


async def test_after(client: Client) -> None:
    """HTTP: `GET /rooms/{room}/events` is the same: `?after=` selects the start."""
    room = fresh_room()
    cursors = await client.fill(room, 3)
    for after, expected in (("earliest", 3), (cursors[0], 2), (cursors[2], 0), ("latest", 0)):
        async with client.stream(room, after) as stream:
            received = ids_of(await stream.take(expected))
            assert received == ["n0", "n1", "n2"][3 - expected :]
            assert (await stream.subscribed())["replayed"] == expected


async def test_stream_behaves_as_client_without_synap_v1(client: Client) -> None:
    """Server-Sent Events: a stream counts as a client without `synap.v1`."""
    room = fresh_room()
    await client.fill(room, 2)
    async with client.stream(room) as stream:
        assert ids_of(await stream.take(2)) == ["n0", "n1"]
        await stream.subscribed()
        await client.publish(room, "n2")
        await client.publish(room, "n3")
        assert ids_of(await stream.take(2)) == ["n2", "n3"]
    await client.until_connections(room, 0)  # else n4 is still delivered to the closed stream
    await client.publish(room, "n4")
    async with client.listen(room, v1=True) as listener:
        # The stream was closed right after n3 had come: the cursor may not be there yet.
        received = ids_of([await listener.next()])
        received += ids_of(await listener.take(1)) if received == ["n3"] else []
    assert received[-1] == "n4"


async def test_stream_is_counted_as_a_connection(client: Client) -> None:
    """Terminology: a connection is one open WebSocket or event stream."""
    room = fresh_room()
    async with client.stream(room) as stream:
        await stream.subscribed()
        assert await client.connections(room) == 1
        assert (await client.publish(room, "n0"))["broadcastCount"] == 1
        assert (await stream.next())["id"] == "n0"
    await client.until_connections(room, 0)


async def test_a_large_notification(client: Client) -> None:
    """Server-Sent Events: `data:` is the JSON on one line, however long."""
    room = fresh_room()
    async with client.stream(room) as stream:
        await stream.subscribed()
        await client.publish(room, "n0", data={"x": "é" * 120_000})
        assert (await stream.next())["data"] == {"x": "é" * 120_000}


async def test_a_stream_that_is_too_slow_ends_and_resumes(client: Client) -> None:
    """Server-Sent Events: it ends where a WebSocket would be closed with a code below 4500."""
    room = fresh_room()
    where = urlsplit(client.url)
    sock = dial(client.url, receive_buffer=4096)
    connection = http.client.HTTPConnection(str(where.hostname), where.port)
    connection.sock = sock
    try:
        path = room_path(room, "events")
        connection.request("GET", path, headers=client.headers_for(path))
        with await asyncio.to_thread(connection.getresponse) as response:
            # A stream that is still in its replay has no backlog: what it has not read is the log.
            body = await asyncio.to_thread(_read, response, until=b"synap.subscribed")
            sent = 0
            for sent in range(1, 101):
                answer = await client.publish(room, f"n{sent}", data={"x": "y" * 200_000})
                if answer["broadcastCount"] == 0:
                    break
            else:
                pytest.fail("a stream that takes nothing was never let go")
            body += await asyncio.to_thread(_read, response)
    finally:
        connection.close()
        sock.close()
    whole = [event for event in EventParser().feed(body) if event.name is None]
    received = [event.json()["id"] for event in whole]
    after = whole[-1].id if whole else "earliest"
    async with client.stream(room, after) as stream:
        received += ids_of(await stream.take(sent - len(received)))
    assert received == [f"n{n}" for n in range(1, sent + 1)]


def _read(response: http.client.HTTPResponse, until: bytes | None = None) -> bytes:
    """Read to the end, or until this has come."""
    body = b""
    # It may end within an event; what is whole counts.
    with contextlib.suppress(http.client.HTTPException, ConnectionError, ValueError):
        while until is None or until not in body:
            chunk = response.read1(65536)
            if not chunk:
                break
            body += chunk
    return body


def test_a_comment_comes_every_15_s(watch: Watch) -> None:
    """Server-Sent Events: a comment line comes every 15 s."""
    assert watch.comment_s.result(3 * COMMENT_EVERY_S) < COMMENT_EVERY_S + scaled(2)
