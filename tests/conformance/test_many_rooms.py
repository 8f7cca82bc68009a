"""PROTOCOL.md, "Many rooms on one connection"."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from websockets import InvalidStatus

from tests.support.timeouts import TIMEOUT_S

from .client import (
    Client,
    Json,
    Listener,
    Stream,
    check_error,
    fresh_room,
    ids_of,
    is_control,
    note,
)
from .credentials import Secret

V2 = "synap.v2"
MAX_ROOMS = 128
MAX_STREAM_ROOMS = 24


@pytest.fixture(autouse=True)
async def _offers_many_rooms(client: Client) -> None:
    response = await client.get("/subscribe")
    if response.status_code == 404:
        check_error(response, 404, "not_found")
        check_error(await client.get("/events?room=user_1"), 404, "not_found")
        with pytest.raises(InvalidStatus) as refusal:
            async with client.listen_at("/subscribe", [V2]):
                pass
        assert refusal.value.response.status_code == 404
        pytest.skip("the server has no connections with many rooms")


def _all_rooms(client: Client, user: str | None = None, **claims: Any) -> Client:
    """The client with a token for all rooms, on a server with keys."""
    with contextlib.suppress(AssertionError):
        claims = {"rooms": ["*"], "scope": "subscribe presence", **claims}
        return client.showing(client.keys.token(user, **claims))
    return client


class Connection:
    """A connection with many rooms."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.next = listener.next
        self.take = listener.take
        self.ping = listener.ping
        self.closed = listener.closed

    async def act(self, action: str, room: str | None = None, **members: object) -> None:
        message = {"action": action, "room": room, **members}
        given = {name: value for name, value in message.items() if value is not None}
        await self.listener.send(json.dumps(given))

    async def frame(self, type: str) -> Json:
        """The data of the next message, which has to be a control frame of this type."""
        message = await self.next()
        assert message["type"] == f"synap.{type}", message
        data: Json = message["data"]
        return data

    async def subscribe(self, room: str, **members: object) -> Json:
        """Subscribe to a room that has nothing to replay."""
        await self.act("subscribe", room, **members)
        data = await self.frame("subscribed")
        assert data["room"] == room
        return data

    async def error(self, code: str, room: str | None = None, action: str | None = None) -> Json:
        """The error that has to be the next message."""
        data = await self.frame("error")
        assert (data["code"], data.get("room"), data.get("action")) == (code, room, action), data
        assert data["details"]
        return data

    async def is_well(self, client: Client, room: str) -> bool:
        """Whether the connection is open, and a room of it still delivers."""
        await client.publish(room, "still-there")
        return (await self.next())["id"] == "still-there" and await self.ping() == []


@contextlib.asynccontextmanager
async def connect(client: Client) -> AsyncIterator[Connection]:
    async with _all_rooms(client).listen_at("/subscribe", [V2]) as listener:
        assert listener.ws.subprotocol == V2
        yield Connection(listener)


@contextlib.asynccontextmanager
async def stream(
    client: Client, *rooms: str, last_event_id: str | None = None, **query: str
) -> AsyncIterator[Stream]:
    given = _all_rooms(client)
    path = "/events?" + urlencode([*(("room", room) for room in rooms), *query.items()])
    resume = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    async with (
        httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as http,
        http.stream(
            "GET", client.url + path, headers={**given.headers_for(path), **resume}
        ) as response,
    ):
        assert response.status_code == 200, await response.aread()
        yield Stream(response)


async def test_delivers_each_room(client: Client) -> None:
    """Each room is a subscription of its own, with its own position and replay."""
    one, two, other = fresh_room("request"), fresh_room(), fresh_room()
    await client.fill(one, 3)
    async with connect(client) as connection:
        await connection.act("subscribe", one)
        replayed = await connection.take(3)
        assert {message["room"] for message in replayed} == {one}
        assert ids_of(replayed) == ["n0", "n1", "n2"]
        subscribed = await connection.frame("subscribed")
        assert subscribed["cursor"] == replayed[-1]["cursor"]
        assert (subscribed["replayed"], subscribed["recovered"]) == (3, True)
        assert (await connection.subscribe(two))["replayed"] == 0
        for room, id in ((two, "a"), (other, "b"), (one, "c")):
            await client.publish(room, id)
        received = await connection.take(2)
        assert [(each["room"], each["id"]) for each in received] == [(two, "a"), (one, "c")]
        assert await connection.ping() == []


async def test_starts_after_a_cursor(client: Client) -> None:
    """`after`: as in the query of a connection with one room."""
    rooms = [fresh_room() for _ in range(3)]
    cursors = [await client.fill(room, 4) for room in rooms]
    async with connect(client) as connection:
        for room, after, ids in (
            (rooms[0], cursors[0][1], ["n2", "n3"]),
            (rooms[1], "latest", []),
            (rooms[2], "earliest", ["n0", "n1", "n2", "n3"]),
        ):
            await connection.act("subscribe", room, after=after)
            assert ids_of(await connection.take(len(ids))) == ids
            assert (await connection.frame("subscribed"))["room"] == room


async def test_acknowledges_each_room(client: Client) -> None:
    """`ack`: its own acknowledged cursor."""
    one, two = fresh_room(), fresh_room()
    cursors = await client.fill(one, 3)
    await client.fill(two, 3)
    async with connect(client) as connection:
        for room in (one, two):
            await connection.act("subscribe", room)
            await connection.take(3)
            await connection.frame("subscribed")
        await connection.act("ack", one, cursor=cursors[1])
        assert await connection.ping() == []
    async with connect(client) as connection:
        await connection.act("subscribe", one)
        assert ids_of(await connection.take(1)) == ["n2"]
        await connection.frame("subscribed")
        await connection.act("subscribe", two)
        assert ids_of(await connection.take(3)) == ["n0", "n1", "n2"]


async def test_unsubscribes(client: Client) -> None:
    """`synap.unsubscribed`: nothing more of this room follows."""
    room, stays = fresh_room(), fresh_room()
    async with connect(client) as connection:
        await connection.subscribe(room)
        await connection.subscribe(stays)
        await connection.act("unsubscribe", room)
        assert await connection.frame("unsubscribed") == {"room": room}
        await client.until_connections(room, 0)
        await client.publish(room, "a")
        await client.publish(stays, "b")
        assert ids_of(await connection.take(1)) == ["b"]
        await connection.act("subscribe", room)
        assert ids_of(await connection.take(1)) == ["a"], "it was not acknowledged"


async def test_counts_once_in_each_room(client: Client) -> None:
    """Limits: it counts once in each of its rooms."""
    one, two = fresh_room(), fresh_room()
    async with connect(client) as connection, client.listen(one, v1=True) as listener:
        await listener.subscribed()
        await connection.subscribe(one)
        await connection.subscribe(two)
        assert (await client.connections(one), await client.connections(two)) == (2, 1)
        assert (await client.publish(one))["broadcastCount"] == 2
    await client.until_connections(one, 0)
    await client.until_connections(two, 0)


async def test_presence_names_its_room(client: Client) -> None:
    """`synap.presence` has `room`, too."""
    room = fresh_room()
    async with connect(client) as connection:
        await connection.act("subscribe", room, presence=True, device="laptop")
        messages = [await connection.next(), await connection.next()]
        frames = {message["type"]: message["data"] for message in messages}
        assert frames["synap.presence"]["room"] == room
        assert frames["synap.presence"]["event"] == "state"
        assert frames["synap.subscribed"]["room"] == room


async def test_many_subscribers_of_one_room(client: Client) -> None:
    """A connection with many rooms is a subscriber of each, also of large ones."""
    rooms = [fresh_room() for _ in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connect(client)) for _ in range(20)]
        for connection in connections:
            for room in rooms:
                await connection.subscribe(room)
        for number in range(5):
            for room in rooms:
                answer = await client.publish(room, f"n{number}")
                assert answer["broadcastCount"] == 20
        for connection in connections:
            received = await connection.take(15)
            for room in rooms:
                ids = ids_of(each for each in received if each["room"] == room)
                assert ids == [f"n{number}" for number in range(5)]
        await connections[0].act("unsubscribe", rooms[0])
        await connections[0].frame("unsubscribed")
        await client.publish(rooms[0], "last")
        for connection in connections[1:]:
            assert ids_of(await connection.take(1)) == ["last"]
        assert await connections[0].ping() == []


@pytest.mark.parametrize(
    "message",
    [
        "hello", "[]", '"subscribe"', "{}", '{"action":1}', '{"action":"broadcast"}',
        '{"action":"subscribe"', '{"action":["ack"]}',
    ],
)  # fmt: skip
async def test_unknown_action(client: Client, message: str) -> None:
    """`invalid_request`: no JSON object, an unknown action."""
    room = fresh_room()
    async with connect(client) as connection:
        await connection.subscribe(room)
        await connection.listener.send(message)
        await connection.error("invalid_request")
        assert await connection.is_well(client, room)


@pytest.mark.parametrize(
    ("action", "members", "named"),
    [
        ("subscribe", {}, "room"),
        ("subscribe", {"room": ""}, "room"),
        ("subscribe", {"room": 7}, "room"),
        ("subscribe", {"room": "USER_1"}, "room"),
        ("subscribe", {"room": "synap_revocations"}, "room"),
        ("subscribe", {"room": "no room"}, "room"),
        ("unsubscribe", {}, "room"),
        ("ack", {"cursor": "a-1"}, "room"),
        ("authenticate", {"room": "user_1"}, "token"),
        ("authenticate", {}, "token"),
    ],
)
async def test_missing_or_invalid_member(
    client: Client, action: str, members: dict[str, object], named: str
) -> None:
    """`invalid_request`: a member that is missing or invalid; `details` names it."""
    room = fresh_room()
    async with connect(client) as connection:
        await connection.subscribe(room)
        await connection.listener.send(json.dumps({"action": action, **members}))
        data = await connection.frame("error")
        assert (data["code"], data["action"]) == ("invalid_request", action)
        assert data["details"].startswith(f"{named}: ")
        assert await connection.is_well(client, room)


@pytest.mark.parametrize(
    ("action", "members", "named"),
    [
        ("subscribe", {"after": "yesterday"}, "after"),
        ("subscribe", {"after": 7}, "after"),
        ("subscribe", {"presence": "yes"}, "presence"),
        ("subscribe", {"device": "a b"}, "device"),
        ("subscribe", {"device": ""}, "device"),
        ("subscribe", {"token": 5}, "token"),
        ("ack", {}, "cursor"),
        ("ack", {"cursor": "earliest"}, "cursor"),
        ("ack", {"cursor": None}, "cursor"),
    ],
)
async def test_invalid_member_of_a_room(
    client: Client, action: str, members: dict[str, object], named: str
) -> None:
    """`synap.error`: `room`, if it is a valid one. The action had no effect."""
    room, other = fresh_room(), fresh_room()
    async with connect(client) as connection:
        await connection.subscribe(room)
        await connection.listener.send(json.dumps({"action": action, "room": other, **members}))
        data = await connection.error("invalid_request", other, action)
        assert data["details"].startswith(f"{named}: ")
        assert await client.connections(other) == 0
        assert await connection.is_well(client, room)


async def test_subscribed_twice(client: Client) -> None:
    """`already_subscribed`."""
    room = fresh_room()
    async with connect(client) as connection:
        await connection.act("subscribe", room)
        await connection.act("subscribe", room)
        types = sorted([(await connection.next())["type"], (await connection.next())["type"]])
        assert types == ["synap.error", "synap.subscribed"]
        await connection.act("subscribe", room)
        await connection.error("already_subscribed", room, "subscribe")
        assert await client.connections(room) == 1
        assert await connection.is_well(client, room)


@pytest.mark.parametrize("action", ["unsubscribe", "ack", "authenticate"])
async def test_room_without_a_subscription(client: Client, action: str) -> None:
    """`not_subscribed`."""
    room, other = fresh_room(), fresh_room()
    async with connect(client) as connection:
        await connection.subscribe(room)
        await connection.act(action, other, cursor="a-1", token="t")
        await connection.error("not_subscribed", other, action)
        assert await connection.is_well(client, room)


async def test_number_of_rooms(client: Client) -> None:
    """`too_many_rooms`: the connection has 128 rooms."""
    rooms = [fresh_room("workspace") for _ in range(MAX_ROOMS)]
    async with connect(client) as connection:
        for room in rooms:
            await connection.subscribe(room)
        one_more = fresh_room("workspace")
        await connection.act("subscribe", one_more)
        await connection.error("too_many_rooms", one_more, "subscribe")
        await client.publish(rooms[0], "first")
        await client.publish(rooms[-1], "last")
        assert ids_of(await connection.take(2)) == ["first", "last"]
        await connection.act("unsubscribe", rooms[5])
        await connection.frame("unsubscribed")
        await connection.subscribe(one_more)


@pytest.mark.parametrize("offered", [[], ["synap.v1"], ["synap.v3", "SYNAP.V2"]])
async def test_needs_the_subprotocol(client: Client, offered: list[str]) -> None:
    """The client MUST offer the subprotocol `synap.v2`; without it, the answer is 400."""
    with pytest.raises(InvalidStatus) as refusal:
        async with _all_rooms(client).listen_at("/subscribe", offered):
            pass
    assert refusal.value.response.status_code == 400
    assert json.loads(refusal.value.response.body)["code"] == "invalid_request"


async def test_without_an_upgrade(client: Client) -> None:
    """Errors: 426: the route needs a WebSocket upgrade."""
    check_error(await client.get("/subscribe"), 426, "upgrade_required")
    assert (await client.post("/subscribe", {})).status_code == 405


async def test_a_room_does_not_select_synap_v2(client: Client) -> None:
    """Version 1 stays: a connection with one room offers `synap.v1`."""
    room = fresh_room()
    async with client.listen_at(f"/rooms/{room}/subscribe", [V2, "synap.v1"]) as listener:
        assert listener.ws.subprotocol == "synap.v1"
        await listener.subscribed()


@pytest.mark.parametrize(
    ("message", "code"), [(b"{}", 4540), ("x" * (12 * 1024 + 1), 4540), ("x" * 65537, None)]
)
async def test_protocol_violation(client: Client, message: str | bytes, code: int | None) -> None:
    """Limits: a binary frame or a text over 12 KiB (4540)."""
    async with connect(client) as connection:
        await connection.subscribe(fresh_room())
        await connection.listener.send(message)
        assert await connection.closed() in ({4540, 1009} if code is None else {code})


async def test_message_rate(client: Client) -> None:
    """Limits: the client may send four times as many messages; then 4029."""
    room = fresh_room()
    async with connect(client) as connection, client.listen(room) as other:
        await connection.subscribe(room)
        for _ in range(200):
            await connection.act("ack", room, cursor="a-1")
        assert await connection.ping() == []
        with contextlib.suppress(Exception):
            for _ in range(2000):
                await connection.act("ack", room, cursor="a-1")
        assert await connection.closed() == 4029
        assert await other.ping() == []


async def test_a_long_replay_delays_no_other_room(client: Client) -> None:
    """The server MUST NOT let a room wait for the replay of another one."""
    long, short = fresh_room(), fresh_room()
    size, count = 8_000, 500  # more than fits into the buffers of sockets
    for first in range(0, count, 100):
        await client.batch(
            [
                note(f"n{number}", rooms=[long], data={"text": "x" * size})
                for number in range(first, first + 100)
            ]
        )
    async with connect(client) as connection:
        await connection.act("subscribe", long, after="earliest")
        await connection.act("subscribe", short)
        received = await connection.take(count + 2)
    frames = [place for place, message in enumerate(received) if is_control(message)]
    assert [received[place]["data"]["room"] for place in frames] == [short, long]
    notifications = [message for message in received if not is_control(message)]
    assert ids_of(notifications) == [f"n{number}" for number in range(count)]


# ---- event streams


async def test_stream_of_many_rooms(client: Client) -> None:
    """Event streams: `GET /events?room=…&room=…`; the `id:` is the position in all rooms."""
    one, two = fresh_room("request"), fresh_room()
    await client.fill(one, 2)
    async with stream(client, one, two) as events:
        begun = [(await events.event()) for _ in range(4)]
        replayed = [event for event in begun if event.name is None]
        assert [event.json()["id"] for event in replayed] == ["n0", "n1"]
        names = [event.json()["room"] for event in begun if event.name == "synap.subscribed"]
        assert sorted(names) == sorted([one, two])
        await client.publish(two, "a")
        event = await events.event()
        assert event.json()["id"] == "a"
        assert event.id is not None
        positions = dict(part.split("/") for part in event.id.split(","))
        assert positions == {one: replayed[-1].json()["cursor"], two: event.json()["cursor"]}
    await client.publish(one, "b")
    await client.publish(two, "c")
    async with stream(client, one, two, last_event_id=event.id) as events:
        received = [await events.event() for _ in range(4)]
        ids = sorted(event.json()["id"] for event in received if event.name is None)
        assert ids == ["b", "c"]
        frames = [event.json() for event in received if event.name is not None]
        assert [frame["recovered"] for frame in frames] == [True, True]
    async with stream(client, one, two, after=event.id) as events:
        assert sorted(ids_of(await events.take(2))) == ["b", "c"]


async def test_stream_resumes_without_a_room(client: Client) -> None:
    """Event streams: a room that the position does not name starts as if none were given."""
    one, two = fresh_room("request"), fresh_room("request")
    cursors = await client.fill(one, 3)
    await client.fill(two, 2)
    async with stream(client, one, two, last_event_id=f"{one}/{cursors[1]}") as events:
        received = await events.take(3)
    found = {room: ids_of(e for e in received if e["room"] == room) for room in (one, two)}
    assert found == {one: ["n2"], two: ["n0", "n1"]}


async def test_stream_with_a_lost_position(client: Client) -> None:
    """Event streams: an id that is not a position is a lost position in all rooms."""
    one, two = fresh_room(), fresh_room()
    for room in (one, two):
        await client.fill(room, 2)
    async with stream(client, one, two, last_event_id="nothing of ours") as events:
        received = [await events.event() for _ in range(6)]
    frames = [event.json() for event in received if event.name == "synap.subscribed"]
    assert [(frame["replayed"], frame["recovered"]) for frame in frames] == [(2, False)] * 2


@pytest.mark.parametrize(
    "query",
    [
        "", "room=", "room=USER_1", "room=user_1&room=x", "room=user_1&after=yesterday",
        "room=user_1&after=a-1", "room=user_1&after=user_1/earliest", "room=user_1&presence=2",
        "room=user_1&device=a%20b",
        "&".join(f"room=user_{n}" for n in range(MAX_STREAM_ROOMS + 1)),
        "&".join(f"room=user_{n}{'x' * 90}" for n in range(20)),
    ],
)  # fmt: skip
async def test_stream_with_an_invalid_query(client: Client, query: str) -> None:
    """Event streams: 1 to 24 rooms, with at most 1,536 characters in all of their ids."""
    check_error(await _all_rooms(client).get(f"/events?{query}"), 400, "invalid_request")


async def test_stream_of_24_rooms(client: Client) -> None:
    """Event streams: 1 to 24 rooms; a room that is named twice is one."""
    rooms = [fresh_room() for _ in range(MAX_STREAM_ROOMS)]
    async with stream(client, *rooms, rooms[0]) as events:
        subscribed = {(await events.subscribed())["room"] for _ in rooms}
        assert subscribed == set(rooms)
        await client.publish(rooms[-1], "a")
        assert (await events.next())["id"] == "a"


# ---- credentials


def _own(client: Client, *rooms: str, user: str | None = None, **claims: Any) -> Secret:
    return client.keys.token(user, rooms=list(rooms), **claims)


@contextlib.asynccontextmanager
async def connect_with(client: Client, token: str) -> AsyncIterator[Connection]:
    async with client.showing(token).listen_at("/subscribe", [V2]) as listener:
        yield Connection(listener)


@pytest.mark.with_keys
async def test_needs_a_credential(client: Client) -> None:
    """The credential belongs to the connection, and MUST have the scope `subscribe`."""
    for credential, expected in (
        (None, (401, "unauthorized")),
        ("nonsense", (401, "unauthorized")),
        (client.keys.token("u", expires_in_s=-60), (401, "unauthorized")),
        (client.keys.token("u", scope="presence"), (403, "forbidden")),
        (client.keys.api_key, (403, "forbidden")),
    ):
        with pytest.raises(InvalidStatus) as refusal:
            async with client.showing(credential).listen_at("/subscribe", [V2]):
                pass
        refused = refusal.value.response
        assert (refused.status_code, json.loads(refused.body)["code"]) == expected
        response = await client.showing(credential).get("/events?room=user_u")
        assert (response.status_code, response.json()["code"]) == expected


@pytest.mark.with_keys
async def test_page_with_an_invalid_credential(client: Client) -> None:
    """Subscribing: a page cannot read an HTTP error; it is closed with 4501 or 4503."""
    origin = {"Origin": client.keys.origin}
    for credential, code in (("nonsense", 4501), (client.keys.token("u", scope="presence"), 4503)):
        async with client.showing(credential).listen_at("/subscribe", [V2], origin) as listener:
            assert await listener.closed() == code


@pytest.mark.with_keys
async def test_room_that_is_not_allowed(client: Client) -> None:
    """`forbidden`, for a `subscribe`."""
    mine, other = fresh_room("request"), fresh_room("request")
    async with connect_with(client, _own(client, mine)) as connection:
        await connection.subscribe(mine)
        await connection.act("subscribe", other)
        await connection.error("forbidden", other, "subscribe")
        await connection.act("subscribe", fresh_room("request"), presence=True)
        assert (await connection.frame("error"))["code"] == "forbidden"
        assert await client.connections(other) == 0
        assert await connection.is_well(client, mine)


@pytest.mark.with_keys
async def test_room_with_its_own_token(client: Client) -> None:
    """Tokens: a room may have a token of its own."""
    mine, other = fresh_room("request"), fresh_room("request")
    async with connect_with(client, _own(client, mine)) as connection:
        await connection.subscribe(mine)
        for token in (_own(client, fresh_room()), "nonsense", _own(client, other, user="x")):
            await connection.act("subscribe", other, token=token)
            code = "unauthorized" if token == "nonsense" else "forbidden"
            await connection.error(code, other, "subscribe")
        await connection.subscribe(other, token=_own(client, other))
        assert await connection.is_well(client, other)
        assert await connection.is_well(client, mine)


@pytest.mark.with_keys
async def test_token_of_a_room_expires(client: Client) -> None:
    """Tokens: when it expires, the room ends with 4401. The connection and its rooms stay."""
    mine, other = fresh_room("request"), fresh_room("request")
    async with connect_with(client, _own(client, mine)) as connection:
        await connection.subscribe(mine)
        await connection.subscribe(other, token=_own(client, other, expires_in_s=2))
        expiring = await connection.frame("token_expiring")
        assert set(expiring) == {"expiresAt", "room"}
        assert expiring["room"] == other
        ended = await connection.frame("unsubscribed")
        assert (ended["room"], ended["code"]) == (other, 4401)
        assert ended["reason"] == "token expired"
        await client.until_connections(other, 0)
        assert await connection.is_well(client, mine)
        await connection.subscribe(other, token=_own(client, other))


@pytest.mark.with_keys
async def test_new_token_of_a_room(client: Client) -> None:
    """`authenticate`: `room` if it is the token of that room; one that is not valid ends it."""
    mine, other = fresh_room("request"), fresh_room("request")
    async with connect_with(client, _own(client, mine)) as connection:
        await connection.subscribe(mine)
        await connection.subscribe(other, token=_own(client, other, expires_in_s=2))
        expiring = await connection.frame("token_expiring")
        assert expiring["room"] == other
        await connection.act("authenticate", other, token=_own(client, other))
        for _ in range(5):
            await asyncio.sleep(0.5)  # the previous token expires
            assert await connection.ping() == []
        assert await connection.is_well(client, other)
        for token, code in ((_own(client, fresh_room()), 4503), ("nonsense", 4501)):
            await connection.act("authenticate", other, token=token)
            ended = await connection.frame("unsubscribed")
            assert (ended["room"], ended["code"]) == (other, code)
            await connection.subscribe(other, after="latest", token=_own(client, other))
        assert await connection.is_well(client, mine)


@pytest.mark.with_keys
async def test_new_token_of_the_connection(client: Client) -> None:
    """Tokens: a new token that does not allow one of its rooms ends that room with 4503."""
    mine, other, own = (fresh_room("request") for _ in range(3))
    async with connect_with(client, _own(client, mine, other)) as connection:
        await connection.subscribe(mine)
        await connection.subscribe(other)
        await connection.subscribe(own, token=_own(client, own))
        await connection.act("authenticate", token=_own(client, mine))
        ended = await connection.frame("unsubscribed")
        assert (ended["room"], ended["code"]) == (other, 4503)
        assert await connection.is_well(client, mine)
        assert await connection.is_well(client, own)
        await connection.act("authenticate", token="nonsense")
        assert await connection.closed() == 4501


@pytest.mark.with_keys
async def test_token_of_the_connection_expires(client: Client) -> None:
    """Tokens: when the token of the connection ends, the connection does (4401)."""
    mine, own = fresh_room("request"), fresh_room("request")
    async with connect_with(client, _own(client, mine, expires_in_s=2)) as connection:
        await connection.subscribe(mine)
        await connection.subscribe(own, token=_own(client, own))
        expiring = await connection.frame("token_expiring")
        assert set(expiring) == {"expiresAt"}
        assert await connection.closed() == 4401
    await client.until_connections(mine, 0)
    await client.until_connections(own, 0)


@pytest.mark.with_keys
async def test_revoked_token(client: Client) -> None:
    """Tokens: a room whose token is revoked ends with 4504; so does the connection of its own."""
    mine, own = fresh_room("request"), fresh_room("request")
    admin = client.showing(client.keys.token(scope="admin"))
    token, room_token = _own(client, mine), _own(client, own)
    async with connect_with(client, token) as connection:
        await connection.subscribe(mine)
        await connection.subscribe(own, token=room_token)
        assert (await admin.post("/revoke", {"token": room_token})).json()["closed"] == 1
        ended = await connection.frame("unsubscribed")
        assert (ended["room"], ended["code"]) == (own, 4504)
        assert await connection.is_well(client, mine)
        assert (await admin.post("/revoke", {"token": token})).json()["closed"] == 1
        assert await connection.closed() == 4504


@pytest.mark.with_keys
async def test_connections_of_a_user_are_counted_once(client: Client) -> None:
    """Limits: it counts once as a connection of its user: 50, then 4529."""
    user = fresh_room().partition("_")[2]
    token = client.keys.token(user, rooms=["*"])
    async with contextlib.AsyncExitStack() as stack:
        for number in range(50):
            connection = await stack.enter_async_context(connect_with(client, token))
            if number < 3:
                for room in (f"user_{user}", fresh_room()):
                    await connection.subscribe(room)
        async with client.showing(token).listen_at("/subscribe", [V2]) as one_more:
            assert await one_more.closed() == 4529
        response = await client.showing(token).get(f"/events?room=user_{user}")
        check_error(response, 429, "rate_limited")


@pytest.mark.with_keys
async def test_credential_as_a_room(client: Client) -> None:
    """Authentication: a credential as its room is an error that does not repeat it."""
    token = client.keys.token("u")
    async with connect(client) as connection:
        for members in ({"room": f"user_{token}"[:200]}, {"room": "user_1", "device": "x"}):
            if "device" in members:
                members["device"] = str(token)[:60]
            await connection.act("subscribe", **members)
            message = await connection.next()
            if message["type"] == "synap.error":
                assert message["data"]["code"] == "invalid_request"
                assert str(token)[:40] not in json.dumps(message)


@pytest.mark.with_keys
async def test_stream_with_a_room_that_is_not_allowed(client: Client) -> None:
    """Event streams: the credential MUST allow all of them."""
    mine, other = fresh_room("request"), fresh_room("request")
    response = await client.showing(_own(client, mine)).get(f"/events?room={mine}&room={other}")
    check_error(response, 403, "forbidden")
    assert await client.connections(mine) == 0
