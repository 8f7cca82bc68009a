"""PROTOCOL.md, "Subscribing" and "WebSocket"."""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.support.timeouts import TIMEOUT_S

from .client import V1, Client, SlowListener, fresh_room, ids_of, is_control, note, room_path

NO_CURSORS = [
    "a b",
    "é",
    "a_b",
    "x" * 65,
    "../..",
    "a\u0000",
    "-1.5",
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
]


def _altered(cursor: str) -> str:
    """A cursor of the same shape as one of this server, in a log that it does not have."""
    other = {"9": "1", "z": "a", "Z": "A", "-": "-"}
    first = cursor[0]
    return other.get(first, chr(ord(first) + 1)) + cursor[1:]


async def test_a_request_room_starts_at_the_earliest(client: Client) -> None:
    """Subscribing: a `request_` room starts at `earliest`, for every connection."""
    room = fresh_room("request")
    await client.fill(room, 2)
    for _ in range(2):
        async with client.listen(room) as listener:
            assert ids_of(await listener.take(2)) == ["n0", "n1"]
        async with client.listen(room, v1=True) as listener:
            [_, last] = await listener.take(2)
            await listener.subscribed()
            await listener.ack(last["cursor"])
        async with client.stream(room) as stream:
            assert ids_of(await stream.take(2)) == ["n0", "n1"]


async def test_user_room_starts_at_the_acknowledged_cursor(client: Client) -> None:
    """Subscribing: any other room starts after its acknowledged cursor, then live."""
    room = fresh_room()
    await client.fill(room, 2)
    async with client.listen(room) as listener:
        assert ids_of(await listener.take(2)) == ["n0", "n1"]
        assert await listener.ping() == []
    await client.until_connections(room, 0)
    await client.publish(room, "n2")
    async with client.listen(room) as listener:
        assert (await listener.next())["id"] == "n2"
        await client.publish(room, "n3")
        assert (await listener.next())["id"] == "n3"


async def test_live_delivery_advances_the_acknowledged_cursor(client: Client) -> None:
    """Subscribing: without `synap.v1`, it is the furthest that was delivered."""
    room = fresh_room()
    async with client.listen(room) as listener:
        await client.until_connections(room, 1)
        await client.publish(room, "n0")
        assert (await listener.next())["id"] == "n0"
        assert await listener.ping() == []
    await client.until_connections(room, 0)
    await client.publish(room, "n1")
    async with client.listen(room) as listener:
        assert (await listener.next())["id"] == "n1"


async def test_client_without_synap_v1_advances_the_cursor_for_one_with_it(client: Client) -> None:
    """Subscribing: the next connection starts after the room's acknowledged cursor."""
    room = fresh_room()
    await client.fill(room, 2)
    async with client.listen(room) as listener:
        await listener.take(2)
        assert await listener.ping() == []
    async with client.listen(room, v1=True) as listener:
        assert (await listener.subscribed())["replayed"] == 0


async def test_delivery_with_synap_v1_does_not_advance_the_acknowledged_cursor(
    client: Client,
) -> None:
    """Subscribing: with `synap.v1` it is the furthest that was acknowledged."""
    room = fresh_room()
    await client.fill(room, 2)
    for _ in range(2):
        async with client.listen(room, v1=True) as listener:
            assert ids_of(await listener.take(2)) == ["n0", "n1"]
            await listener.subscribed()
            assert await listener.ping() == []


async def test_ack_advances_the_acknowledged_cursor(client: Client) -> None:
    """Subscribing: the furthest that a client with `synap.v1` has acknowledged."""
    room = fresh_room()
    await client.fill(room, 3)
    async with client.listen(room, v1=True) as listener:
        received = await listener.take(3)
        await listener.subscribed()
        await listener.ack(received[1]["cursor"])
    async with client.listen(room, v1=True) as listener:
        assert (await listener.next())["id"] == "n2"
        assert (await listener.subscribed())["replayed"] == 1


async def test_acknowledged_cursor_only_moves_forward(client: Client) -> None:
    """Subscribing: the store keeps the acknowledged cursor; it only moves forward."""
    room = fresh_room()
    cursors = await client.fill(room, 3)
    async with client.listen(room, v1=True) as listener:
        await listener.take(3)
        await listener.subscribed()
        await listener.ack(cursors[1])
        await listener.ack(cursors[0])
    async with client.listen(room, "earliest", v1=True) as listener:
        await listener.take(3)
        await listener.subscribed()
        await listener.ack(cursors[0])
    async with client.listen(room, v1=True) as listener:
        assert (await listener.next())["id"] == "n2"


async def test_replay_from_the_start_does_not_move_the_acknowledged_cursor_back(
    client: Client,
) -> None:
    """Subscribing: it only moves forward, even if a client replays from the start."""
    room = fresh_room()
    await client.fill(room, 3)
    for after in (None, "earliest"):
        async with client.listen(room, after) as listener:
            assert ids_of(await listener.take(3)) == ["n0", "n1", "n2"]
            assert await listener.ping() == []
    async with client.listen(room, v1=True) as listener:
        assert (await listener.subscribed())["replayed"] == 0


@pytest.mark.parametrize("kind", ["user", "request"])
async def test_after_earliest(client: Client, kind: str) -> None:
    """Subscribing: `earliest`, whatever was received."""
    room = fresh_room(kind)
    await client.fill(room, 2)
    for _ in range(2):
        async with client.listen(room, "earliest") as listener:
            assert ids_of(await listener.take(2)) == ["n0", "n1"]
            assert await listener.ping() == []


@pytest.mark.parametrize("kind", ["user", "request"])
async def test_after_latest(client: Client, kind: str) -> None:
    """Subscribing: `latest`: only what comes from now on."""
    room = fresh_room(kind)
    await client.fill(room, 2)
    async with client.listen(room, "latest", v1=True) as listener:
        assert (await listener.subscribed())["replayed"] == 0
        await client.publish(room, "n2")
        assert (await listener.next())["id"] == "n2"


@pytest.mark.parametrize("kind", ["user", "request"])
async def test_after_a_cursor(client: Client, kind: str) -> None:
    """Subscribing: a cursor (resume)."""
    room = fresh_room(kind)
    cursors = await client.fill(room, 3)
    for position, cursor in enumerate(cursors):
        async with client.listen(room, cursor, v1=True) as listener:
            expected = ["n0", "n1", "n2"][position + 1 :]
            assert ids_of(await listener.take(len(expected))) == expected
            data = await listener.subscribed()
            assert (data["replayed"], data["recovered"]) == (len(expected), True)


async def test_a_cursor_of_history_resumes(client: Client) -> None:
    """Subscribing: a cursor is a position, wherever it was read."""
    room = fresh_room()
    await client.fill(room, 3)
    page = await client.history(room, limit=2)
    async with client.listen(room, page["cursor"]) as listener:
        assert (await listener.next())["id"] == "n2"


async def test_an_empty_after_is_none(client: Client) -> None:
    """Subscribing: if it is missing or empty, the room's own start."""
    request, user = fresh_room("request"), fresh_room()
    for room in (request, user):
        cursors = await client.fill(room, 2)
        async with client.listen(room, "", v1=True) as listener:
            assert ids_of(await listener.take(2)) == ["n0", "n1"]
            await listener.subscribed()
            await listener.ack(cursors[0])
    async with client.listen(request, "") as listener:
        assert (await listener.next())["id"] == "n0"
    async with client.listen(user, "") as listener:
        assert (await listener.next())["id"] == "n1"


@pytest.mark.parametrize("after", NO_CURSORS, ids=range(len(NO_CURSORS)))
async def test_rejects_invalid_position(client: Client, after: str) -> None:
    """Subscribing: an impossible handshake (a bad position) is refused with the HTTP error."""
    status, body = await client.refusal(room_path(fresh_room(), "subscribe", after=after))
    assert (status, body["code"]) == (400, "invalid_request")
    response = await client.get(room_path(fresh_room(), "events", after=after))
    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/rooms/user/subscribe", 400, "invalid_request"),
        ("/rooms/user_a%2Fb/subscribe", 400, "invalid_request"),
        ("/rooms/user_1/listen", 404, "not_found"),
        ("/", 404, "not_found"),
    ],
)
async def test_rejects_invalid_handshake(client: Client, path: str, status: int, code: str) -> None:
    """Subscribing: an impossible handshake (a bad room) is refused with the HTTP error."""
    refused, body = await client.refusal(path)
    assert (refused, body["code"]) == (status, code)
    assert body["error"]
    assert body["details"]


@pytest.mark.parametrize("position", ["first", "altered", "elsewhere", "future"])
async def test_a_lost_position(client: Client, position: str) -> None:
    """Subscribing: if something after the cursor is gone, or the cursor is of a log that is gone,
    the whole retained log is replayed, and the subscription says `recovered: false`."""
    room = fresh_room()
    cursors = await client.fill(room, 1002)
    after = {
        "first": cursors[0],
        "altered": _altered(cursors[500]),
        "elsewhere": "elsewhere-1",
        "future": re.sub(r"\d(?=\d*$)", "9", cursors[-1]),
    }
    path = room_path(room, "subscribe", after=after[position])
    if position != "first":
        # A server may also see that it never wrote such a cursor: then the position is bad.
        response = await client.get(room_path(room, "history", after=after[position]))
        if response.status_code == 400:
            assert (await client.refusal(path))[0] == 400
            return
        assert response.json()["recovered"] is False
    async with client.listen_at(path, [V1]) as listener:
        assert ids_of(await listener.take(1000)) == [f"n{n}" for n in range(2, 1002)]
        data = await listener.subscribed()
        assert (data["replayed"], data["recovered"]) == (1000, False)
        await client.publish(room, "n1002")
        assert (await listener.next())["id"] == "n1002"


async def test_the_edge_of_the_retained(client: Client) -> None:
    """Subscribing: nothing after the cursor is gone: it resumes."""
    room = fresh_room()
    cursors = await client.fill(room, 1001)
    async with client.listen(room, cursors[0], v1=True) as listener:
        assert ids_of(await listener.take(1000)) == [f"n{n}" for n in range(1, 1001)]
        data = await listener.subscribed()
        assert (data["replayed"], data["recovered"]) == (1000, True)


@pytest.mark.parametrize("v1", [True, False])
async def test_late_joiners_miss_nothing(client: Client, v1: bool) -> None:
    """Subscribing: notifications from log and live are delivered once, in order, without gaps."""
    for _ in range(15):
        room = fresh_room("request")
        count = 12

        async def publish(room: str = room, count: int = count) -> None:
            for n in range(count):
                await client.publish(room, f"n{n}")
            await client.publish(room, "end")

        async def listen(room: str = room) -> list[str]:
            async with client.listen(room, v1=v1) as listener:
                received = await listener.until("end")
            controls = [message["type"] for message in received if is_control(message)]
            assert controls == (["synap.subscribed"] if v1 else [])
            return ids_of(message for message in received if not is_control(message))

        _, *received = await asyncio.gather(publish(), *(listen() for _ in range(3)))
        assert received == [[*(f"n{n}" for n in range(count)), "end"]] * 3


async def test_late_joiners_of_a_large_room_miss_nothing(client: Client) -> None:
    """Subscribing: notifications from log and live are delivered once, in order, without gaps, also
    where many subscribers share the writes of a room."""
    for _ in range(4):
        room = fresh_room("request")
        starts = [asyncio.Event() for _ in range(12)]

        async def publish(room: str = room, starts: list[asyncio.Event] = starts) -> None:
            for n in range(40):
                await client.publish(room, f"n{n}")
                starts[n * len(starts) // 40].set()
            await client.publish(room, "end")

        async def listen(number: int, start: asyncio.Event, room: str = room) -> list[str]:
            await start.wait()
            async with client.listen(room, v1=number % 2 == 0) as listener:
                received = await listener.until("end")
            return ids_of(message for message in received if not is_control(message))

        joining = (listen(number, start) for number, start in enumerate(starts))
        _, *received = await asyncio.gather(publish(), *joining)
        assert received == [[*(f"n{n}" for n in range(40)), "end"]] * len(starts)


@pytest.mark.parametrize("count", [15, 31, 45])
async def test_delivers_publishes_made_during_a_slow_replay_once(
    client: Client, count: int
) -> None:
    """Subscribing: no gaps or duplicates, also for a slow reader."""
    room = fresh_room()
    for n in range(count):
        await client.publish(room, f"n{n}", data={"x": "y" * 260_000})
    slow = await asyncio.to_thread(SlowListener, client, room)
    try:
        await client.until_connections(room, 1)
        for n in range(count, count + 5):  # more than buffers take still waits
            assert (await client.publish(room, f"n{n}"))["broadcastCount"] == 1
        received, code = await asyncio.to_thread(slow.read, f"n{count + 4}")
    finally:
        slow.close()
    assert code is None
    assert ids_of(received) == [f"n{n}" for n in range(count + 5)]


async def test_one_text_message_for_each(client: Client) -> None:
    """WebSocket: each notification is one text message."""
    room = fresh_room()
    async with client.listen(room) as listener:
        await client.until_connections(room, 1)
        await client.fill(room, 3)
        assert ids_of(await listener.take(3)) == ["n0", "n1", "n2"]


async def test_ping(client: Client) -> None:
    """WebSocket: text `ping` is answered by text `pong`."""
    for v1 in (True, False):
        async with client.listen(fresh_room(), v1=v1) as listener:
            if v1:
                await listener.subscribed()
            for _ in range(3):
                await listener.send("ping")
                assert await listener.text() == "pong"


async def test_a_ping_in_pieces(client: Client) -> None:
    """WebSocket: text `ping` is answered, however it is framed."""
    async with client.listen(fresh_room()) as listener:
        await listener.send(["p", "in", "g"])
        assert await listener.text() == "pong"


async def test_a_protocol_ping(client: Client) -> None:
    """WebSocket: protocol pings are answered too."""
    async with client.listen(fresh_room()) as listener, asyncio.timeout(TIMEOUT_S):
        await (await listener.ws.ping(b"are you there"))


async def test_a_ping_during_a_replay(client: Client) -> None:
    """WebSocket: text `ping` is answered by text `pong`, also while the log is replayed."""
    room = fresh_room("request")
    await client.fill(room, 1000)
    async with client.listen(room, v1=True) as listener:
        received = await listener.ping()
        rest = 1000 - sum(not is_control(message) for message in received)
        received += await listener.take(rest)
        assert ids_of(m for m in received if not is_control(m)) == [f"n{n}" for n in range(1000)]


@pytest.mark.parametrize("v1", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "", "hello", "PING", " ping", "ping\n", "pong", "null", "[]", "7", "{", '"ping"',
        '{"action":"dance"}', '{"action":null}', '{"action":["ack"]}', '{"type":"synap.closing"}',
        '{"action":"ack"}', '{"action":"ack","cursor":7}', '{"action":"ack","cursor":null}',
        '{"action":"ack","cursor":{}}', '{"action":"ack","cursor":""}',
        '{"action":"ack","cursor":"no cursor"}', '{"action":"ack","cursor":"latest"}',
        '{"action":"ack","cursor":"\\ud800"}', '{"action":"ack","cursor":NaN}',
        '{"action":"ack","cursor":"elsewhere-99999999999999999999999999"}',
        "[" * 4096, "x" * 4096, "é" * 2048,
    ],
    ids=lambda text: text[:24] if isinstance(text, str) else None,
)  # fmt: skip
async def test_other_texts_are_ignored(client: Client, text: str, v1: bool) -> None:
    """WebSocket: any other text of at most 4 KiB is ignored, from every client."""
    room = fresh_room()
    await client.fill(room, 1)
    async with client.listen(room, v1=v1) as listener:
        await listener.take(1)
        if v1:
            await listener.subscribed()
        await listener.send(text)
        assert await listener.ping() == []
        await client.publish(room, "n1")
        assert (await listener.next())["id"] == "n1"
    if v1:
        async with client.listen(room, v1=True) as listener:
            assert ids_of(await listener.take(2)) == ["n0", "n1"], "nothing was acknowledged"


async def test_a_batch_moves_through_a_reader(client: Client) -> None:
    """Subscribing: a publish is delivered live, and is in the history."""
    room = fresh_room()
    async with client.listen(room) as listener:
        await client.until_connections(room, 1)
        await client.batch([note(f"n{n}", rooms=[room]) for n in range(5)])
        received = await listener.take(5)
    assert received == (await client.history(room))["notifications"]
