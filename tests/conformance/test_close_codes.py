"""PROTOCOL.md, "Close codes"."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import pytest
from websockets import ConnectionClosed

from tests.support.timeouts import scaled

from .client import Client, SlowListener, fresh_room, ids_of
from .watch import Watch


@pytest.mark.parametrize(
    "message",
    [b"", b"ping", b"x" * 5000, "x" * 4097, "é" * 2049, "x" * 10_000,
     "x" * 1024 * 1024, ["x" * 3000] * 2],
    ids=["binary-empty", "binary", "binary-long", "4097", "4098-in-utf-8", "10k", "1M",
         "in-pieces"],
)  # fmt: skip
@pytest.mark.parametrize("v1", [True, False])
async def test_4540(client: Client, message: str | bytes | Sequence[str], v1: bool) -> None:
    """Close codes: 4540, the client violated the protocol: a binary frame, or text over 4 KiB."""
    room = fresh_room()
    async with client.listen(room, v1=v1) as listener:
        await client.until_connections(room, 1)
        with contextlib.suppress(ConnectionClosed):  # the server may end it before it has all
            await listener.send(message)
        far_over = isinstance(message, str) and len(message) > 64 * 1024
        assert await listener.closed() in ((4540, 1009) if far_over else (4540,))
        assert listener.ws.close_reason, "the reason says what was wrong"
    await client.until_connections(room, 0)


async def test_4540_closes_only_the_violating_connection(client: Client) -> None:
    """Close codes: 4540 is for one connection; the others of the room stay."""
    room = fresh_room()
    async with client.listen(room) as good, client.listen(room) as bad:
        await client.until_connections(room, 2)
        await bad.send(b"binary")
        assert await bad.closed() == 4540
        await client.until_connections(room, 1)
        await client.publish(room, "n0")
        assert (await good.next())["id"] == "n0"


async def test_4008(client: Client) -> None:
    """Close codes: 4008, slow consumer: a backlog over 1 MiB. Nothing is lost: resume."""
    room = fresh_room()
    slow = await asyncio.to_thread(SlowListener, client, room)
    try:
        async with client.listen(room) as reader:
            await client.until_connections(room, 2)
            # A client that is still in its replay has no backlog: what it has not read is the log.
            await client.publish(room, "n0")
            assert (await reader.next())["id"] == "n0"
            notifications, _ = await asyncio.to_thread(slow.read, "n0")
            sent = 0
            for sent in range(1, 101):
                slow.ping()  # it takes nothing, but it is not silent
                answer = await client.publish(room, f"n{sent}", data={"x": "y" * 200_000})
                assert (await reader.next())["id"] == f"n{sent}", "a reader beside it is not harmed"
                assert await reader.ping() == []
                if answer["broadcastCount"] == 1:
                    break
            else:
                pytest.fail("a client that takes nothing was never let go")
            rest, code = await asyncio.to_thread(slow.read)
            notifications += rest
            assert code == 4008
            await client.until_connections(room, 1)
            await client.publish(room, "end")
            assert (await reader.next())["id"] == "end"
    finally:
        slow.close()
    async with client.listen(room, notifications[-1]["cursor"]) as listener:
        rest = await listener.until("end")
    expected = [*(f"n{n}" for n in range(sent + 1)), "end"]
    assert ids_of([*notifications, *rest]) == expected


async def test_close_of_the_client_is_answered(client: Client) -> None:
    """Close codes: the close of a client is answered."""
    room = fresh_room()
    async with client.listen(room) as listener:
        await client.until_connections(room, 1)
        await listener.ws.close(1000)
        assert listener.ws.close_code == 1000
    await client.until_connections(room, 0)


def test_4009(watch: Watch) -> None:
    """Close codes: 4009, nothing came for 75 s, not even a pong."""
    closed = watch.silent.result(watch.idle_timeout_s + 30)
    assert closed.code == 4009
    assert watch.idle_timeout_s * 0.9 < closed.after_s < watch.idle_timeout_s + scaled(10)


def test_a_connection_that_sends_no_message_stays(watch: Watch) -> None:
    """WebSocket: a client needs no text `ping`; answering protocol pings is enough."""
    assert watch.quiet.result(2 * watch.idle_timeout_s + 30) is None


def test_ping_keeps_a_connection(watch: Watch) -> None:
    """Close codes: 4009, send `ping`. WebSocket: a connection from which a message comes stays."""
    assert watch.kept.result(2 * watch.idle_timeout_s + 30) is None
