"""PROTOCOL.md, "Limits": those whose defaults can be reached."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from websockets import ConnectionClosed

from .client import Client, check_error, fresh_room, note, room_path

OF_A_USER = 50


@pytest.mark.parametrize("v1", [True, False])
async def test_client_message_rate_is_limited(client: Client, v1: bool) -> None:
    """Limits: messages of a client, a second: 100. Close codes: 4029."""
    room = fresh_room()
    async with client.listen(room, v1=v1) as listener, client.listen(room) as other:
        with contextlib.suppress(ConnectionClosed):
            for _ in range(1000):
                await listener.send("hello")
        assert await listener.closed() == 4029
        assert await other.ping() == [], "the others of the room stay"


@pytest.mark.with_keys
async def test_connections_of_a_user(client: Client) -> None:
    """Limits: connections of a user (`sub`): 50, then 4529; 429 for an event stream."""
    room, elsewhere = fresh_room(), fresh_room("workspace")
    mine = client.showing(client.keys.token(room.partition("_")[2], rooms=[elsewhere]))
    async with contextlib.AsyncExitStack() as stack:
        for number in range(OF_A_USER):
            here = elsewhere if number % 2 else room
            await stack.enter_async_context(mine.listen(here))
        async with mine.listen(room) as one_more:
            assert await one_more.closed() == 4529
        response = await mine.get(room_path(room, "events"))
        check_error(response, 429, "rate_limited")
        assert int(response.headers["retry-after"]) >= 1
        assert (await mine.history(room))["notifications"] == [], "it is about connections"
        async with client.listen(fresh_room()) as another:
            assert await another.ping() == []
    await client.until_connections(room, 0)
    await client.until_connections(elsewhere, 0)
    async with mine.listen(room) as again:
        assert await again.ping() == []


@pytest.mark.with_keys
async def test_bytes_of_a_token(client: Client) -> None:
    """Limits: 20 MiB of notifications a second, each once for each of its rooms: 429, and nothing
    of the request is kept. Of a key or a token: others go on."""
    user = fresh_room().partition("_")[2]
    sender = client.showing(client.keys.token(user, rooms=["*"], scope="broadcast"))

    async def send() -> tuple[list[str], int]:
        rooms = [fresh_room("workspace") for _ in range(16)]
        items = [note(f"n{n}", rooms=rooms, data={"x": "y" * 250_000}) for n in range(4)]
        response = await sender.post("/broadcast", {"notifications": items})
        if response.status_code == 200:
            assert response.json()["success"] is True
        else:
            check_error(response, 429, "rate_limited")
            assert int(response.headers["retry-after"]) >= 1
        return rooms, response.status_code

    answers = await asyncio.gather(*(send() for _ in range(4)))
    assert {status for _, status in answers} == {200, 429}
    await client.publish(fresh_room())
    for rooms, status in answers:
        reader = client.showing(client.keys.token(rooms=["workspace_*"]))
        kept = (await reader.history(rooms[0]))["notifications"]
        assert len(kept) == (4 if status == 200 else 0)
