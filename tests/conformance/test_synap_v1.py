"""PROTOCOL.md, "WebSocket": the subprotocol ``synap.v1``, its control frames and acks."""

from __future__ import annotations

import pytest

from .client import V1, Client, fresh_room, ids_of, is_control, room_path


@pytest.mark.parametrize(
    "offered", [[V1], ["other", V1], [V1, "other"], ["synap.v9", "graphql-ws", V1, "synap.v0"]]
)
async def test_selects_synap_v1_when_offered(client: Client, offered: list[str]) -> None:
    """WebSocket: the server selects `synap.v1` if it is offered, also among others."""
    async with client.listen_at(room_path(fresh_room(), "subscribe"), offered) as listener:
        assert listener.ws.subprotocol == V1
        await listener.subscribed()


@pytest.mark.parametrize(
    "offered", [[], ["other"], ["synap.v2", "synap.v11", "synap", "SYNAP.V1", "xsynap.v1"]]
)
async def test_no_other_client_sees_a_control_frame(client: Client, offered: list[str]) -> None:
    """WebSocket: control frames; no other client ever sees one."""
    room = fresh_room("request")
    await client.fill(room, 3)
    async with client.listen_at(room_path(room, "subscribe"), offered) as listener:
        assert listener.ws.subprotocol is None
        received = await listener.take(3)
        await client.publish(room, "n3")
        received += await listener.until("n3")
        assert await listener.ping() == []
    assert ids_of(received) == ["n0", "n1", "n2", "n3"]


async def test_subscribed(client: Client) -> None:
    """WebSocket: `{"type":…,"data":{…}}`; `synap.subscribed` and its data."""
    room = fresh_room()
    async with client.listen(room, v1=True) as listener:
        message = await listener.next()
    assert set(message) == {"type", "data"}
    assert message["type"] == "synap.subscribed"
    cursor = message["data"].pop("cursor")
    assert message["data"] == {"room": room, "replayed": 0, "recovered": True}
    assert isinstance(cursor, str)


async def test_subscribed_stands_between_replay_and_live(client: Client) -> None:
    """WebSocket: `synap.subscribed`: once, after the replay, before the first live notification."""
    room = fresh_room()
    await client.fill(room, 20)
    async with client.listen(room, v1=True) as listener:
        received = await listener.take(21)
        await client.fill(room, 5, first=20)
        received += await listener.until("n24")
    controls = [place for place, message in enumerate(received) if is_control(message)]
    assert controls == [20]
    assert received[20]["data"]["replayed"] == 20
    assert received[20]["data"]["recovered"] is True
    assert ids_of(m for m in received if not is_control(m)) == [f"n{n}" for n in range(25)]


async def test_subscribed_reports_the_replayed_count(client: Client) -> None:
    """WebSocket: `replayed` (a count)."""
    room = fresh_room()
    cursors = await client.fill(room, 300)
    for position in (0, 100, 298, 299):
        async with client.listen(room, cursors[position], v1=True) as listener:
            await listener.take(299 - position)
            assert (await listener.subscribed())["replayed"] == 299 - position


@pytest.mark.parametrize("before", [0, 3])
@pytest.mark.parametrize("after", [None, "earliest", "latest"])
async def test_resuming_from_subscribed(client: Client, after: str | None, before: int) -> None:
    """WebSocket: resuming from `cursor` misses nothing, also in an empty room."""
    room = fresh_room()
    if before:
        await client.fill(room, before)
    async with client.listen(room, after, v1=True) as listener:
        if after != "latest":
            await listener.take(before)
        cursor = (await listener.subscribed())["cursor"]
    await client.fill(room, 2, first=before)
    expected = [f"n{before}", f"n{before + 1}"]
    async with client.listen(room, cursor, v1=True) as listener:
        assert ids_of(await listener.take(2)) == expected
        data = await listener.subscribed()
        assert (data["replayed"], data["recovered"]) == (2, True)
        assert data["cursor"] == (await client.history(room, limit=1000))["cursor"]


async def test_resuming_from_subscribed_after_the_retention(client: Client) -> None:
    """WebSocket: `recovered` is false if more came than is retained."""
    room = fresh_room()
    async with client.listen(room, v1=True) as listener:
        cursor = (await listener.subscribed())["cursor"]
    await client.fill(room, 1001)
    async with client.listen(room, cursor, v1=True) as listener:
        assert (await listener.next())["id"] == "n1"
        await listener.take(999)
        assert (await listener.subscribed())["recovered"] is False


async def test_an_ack_beyond_is_ignored(client: Client) -> None:
    """WebSocket: a cursor beyond what was delivered on the connection is ignored."""
    room, other = fresh_room(), fresh_room()
    await client.fill(room, 2)
    async with client.listen(room, v1=True) as listener:
        await listener.take(2)
        await listener.subscribed()
        # Published later, or of another log: never delivered on this connection.
        await listener.ack((await client.fill(other, 5))[-1])
    await client.publish(room, "n2")
    async with client.listen(room, v1=True) as listener:
        received = ids_of(await listener.take(3))
    assert received == ["n0", "n1", "n2"], "nothing was acknowledged"


async def test_ack_of_a_live_notification(client: Client) -> None:
    """WebSocket: `{"action":"ack","cursor":…}`: it has received everything up to this cursor."""
    room = fresh_room()
    async with client.listen(room, v1=True) as listener:
        await listener.subscribed()
        await client.fill(room, 3)
        received = await listener.take(3)
        await listener.ack(received[1]["cursor"])
    async with client.listen(room, v1=True) as listener:
        assert (await listener.next())["id"] == "n2"


async def test_each_connection_is_reported_once(client: Client) -> None:
    """WebSocket: `synap.subscribed` goes to the connection that has subscribed, not to the room."""
    room = fresh_room()
    async with client.listen(room, v1=True) as first:
        await first.subscribed()
        async with client.listen(room, v1=True) as second:
            await second.subscribed()
            await client.publish(room, "n0")
            assert (await first.next())["id"] == "n0"
            assert (await second.next())["id"] == "n0"
