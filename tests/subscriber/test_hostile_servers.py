"""A subscription bounds its time and memory and keeps its token, for any server behaviour."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame, Opcode

from synap_realtime import SubscriptionError, subscribe_sync
from tests.support.timeouts import scaled
from tests.support.waits import SetWaits

from .conftest import Listen, Scripted, note, scripted_server
from .hostile_server import Answer, answering, dribbling


def flooding(first: bytes, then: bytes) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while True:
            writer.write(then)
            await writer.drain()

    return answer


SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n"

HANDSHAKES = {
    "idle_timeout": dribbling(b"", b""),
    "status": dribbling(b"H", b"T"),
    "headers": dribbling(SWITCHING, b"X: y\r\n"),
    "header": dribbling(SWITCHING, b"x"),
    "body": dribbling(b"HTTP/1.1 403 No\r\nContent-Length: 5000\r\n\r\n", b" "),
    "endless body": dribbling(b"HTTP/1.1 403 No\r\n\r\n", b" "),
    "continue": flooding(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "flood of headers": flooding(SWITCHING, b"X: y\r\n" * 1000),
    "flood of body": flooding(b"HTTP/1.1 403 No\r\n\r\n", b" " * 65536),
}


# The library's thread may fail to answer a server that has gone; the caller gets an error in time.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("kind", HANDSHAKES)
async def test_handshake_is_bounded_in_time(
    listen: Listen, kind: str, scheme: str, set_waits: SetWaits
) -> None:
    set_waits(open_timeout_s=0.5)
    async with answering(HANDSHAKES[kind]) as host:
        start = time.monotonic()
        async with listen("user_1", f"{scheme}://{host}", max_reconnects=0) as receive:
            with pytest.raises(SubscriptionError):
                await receive()
        assert time.monotonic() - start < scaled(8)


def test_a_name_that_is_looked_up_for_ever_ends_in_time(
    monkeypatch: pytest.MonkeyPatch, set_waits: SetWaits
) -> None:
    released: list[float] = []

    def getaddrinfo(*arguments: Any, **options: Any) -> Any:
        time.sleep(2)
        released.append(time.monotonic())
        raise OSError("no such host")

    set_waits(open_timeout_s=0.2)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(SubscriptionError, match="in time"):
        next(subscribe_sync("user_1", "http://rooms.invalid", max_reconnects=0))
    assert not released


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_not_followed_with_the_token(
    listen: Listen, scripted: Scripted, status: int
) -> None:
    async with scripted_server(None) as other:
        for url in (other.url.replace("http", "ws"), f"{scripted.url}/elsewhere"):
            scripted.scripts.append((status, {"Location": f"{url}/?secret=1"}))
            async with listen("user_1", scripted.url, "secret-token", max_reconnects=0) as receive:
                with pytest.raises(SubscriptionError, match=f"redirects to {url}") as caught:
                    await receive()
            assert "secret" not in str(caught.value)
        assert other.requests == []
    assert len(scripted.requests) == 2


async def taken(ws: ServerConnection, data: bytes, most: int) -> int:
    """Write past the library, which would not send such frames; how many bytes were taken."""
    size = 0
    while size < most and not ws.transport.is_closing():
        ws.transport.write(data)
        size += len(data)
        for _ in range(200):
            if ws.transport.get_write_buffer_size() < 500_000:
                break
            await asyncio.sleep(0.005)
        else:
            break  # it takes no more
    ws.transport.abort()
    return size


async def test_a_message_of_endless_empty_fragments_is_a_lost_connection(
    listen: Listen, scripted: Scripted
) -> None:
    begin = Frame(Opcode.TEXT, b"", fin=False).serialize(mask=False)
    go_on = Frame(Opcode.CONT, b"", fin=False).serialize(mask=False)

    async def endless(ws: ServerConnection) -> None:
        await ws.send(note("n1", "c-1"))
        ws.transport.write(begin + go_on * 5_000)
        await ws.wait_closed()  # by the client

    async def good(ws: ServerConnection) -> None:
        await ws.send(note("n2", "c-2"))
        await scripted.listen_to(ws)

    scripted.scripts += [endless, good]
    async with listen("user_1", scripted.url) as receive:
        assert [(await receive()).id, (await receive()).id] == ["n1", "n2"]


async def test_fragmented_message_is_reassembled(listen: Listen, scripted: Scripted) -> None:
    async def pieces(ws: ServerConnection) -> None:
        for n in range(50):
            await ws.send([note(f"n{n}")[:10], "", note(f"n{n}")[10:]])
        await scripted.listen_to(ws)

    scripted.scripts.append(pieces)
    async with listen("user_1", scripted.url) as receive:
        assert [(await receive()).id for _ in range(50)] == [f"n{n}" for n in range(50)]


async def test_answers_to_pings_that_are_not_read_do_not_pile_up(
    listen: Listen, scripted: Scripted
) -> None:
    ping = Frame(Opcode.PING, b"x" * 125).serialize(mask=False)
    sizes = []

    async def deaf(ws: ServerConnection) -> None:
        await ws.send(note("n1", "c-1"))
        ws.transport.pause_reading()
        sizes.append(await taken(ws, ping * 1000, most=64_000_000))

    async def good(ws: ServerConnection) -> None:
        await ws.send(note("n2", "c-2"))
        await scripted.listen_to(ws)

    scripted.scripts += [deaf, good]
    async with listen("user_1", scripted.url) as receive:
        assert [(await receive()).id, (await receive()).id] == ["n1", "n2"]
    assert sizes[0] < 32_000_000
