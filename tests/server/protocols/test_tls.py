"""``serve`` over TLS, with real certificates and clients that check them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import websockets
from websockets.asyncio.client import ClientConnection
from websockets.typing import Subprotocol

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.protocols.tls import ReloadingCertificate
from synap_realtime.server.serve import running_server
from tests.support.certificates import Certified, certify
from tests.support.waits import SetWaits

from .conftest import Run


@pytest.fixture
def certified(tmp_path: Path) -> Certified:
    return certify(tmp_path)


@contextlib.asynccontextmanager
async def serving(certified: Certified, **settings: Any) -> AsyncIterator[str]:
    certificate = ReloadingCertificate(certified.chain, certified.key)
    app = create_app(load_settings(drain_timeout_s=1, **settings))
    async with running_server(app, certificate=certificate) as url:
        assert url.startswith("https://127.0.0.1:")
        yield url


@contextlib.asynccontextmanager
async def client(url: str, certified: Certified) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, verify=certified.client()) as http:
        yield http


async def dial(url: str, tls: ssl.SSLContext) -> ClientConnection:
    ws = await websockets.connect(
        url.replace("https", "wss") + "/rooms/user_1/subscribe",
        ssl=tls,
        subprotocols=[Subprotocol("synap.v1")],
    )
    assert json.loads(await ws.recv())["type"] == "synap.subscribed"
    return ws


async def publish(http: httpx.AsyncClient, id: str, size: int = 1) -> None:
    note = {"type": "a", "data": {"x": "y" * size}, "id": id}
    answer = await http.post("/rooms/user_1/broadcast", json=note)
    assert answer.status_code == 200, answer.text


async def next_id(ws: ClientConnection) -> str:
    return str(json.loads(await ws.recv())["id"])


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


def test_publishes_reach_websockets_and_event_streams(run: Run, certified: Certified) -> None:
    """The root alone is trusted: the chain is shown whole."""

    async def test() -> None:
        async with serving(certified) as url, client(url, certified) as http:
            ws = await dial(url, certified.client())
            async with http.stream("GET", "/rooms/user_1/events") as stream:
                lines = stream.aiter_lines()
                await publish(http, "n1")
                await publish(http, "n2", 200_000)
                assert [await next_id(ws), await next_id(ws)] == ["n1", "n2"]
                received_ids = []
                async for line in lines:
                    if '"type":"a"' in line:
                        received_ids.append(json.loads(line.removeprefix("data:"))["id"])
                    if len(received_ids) == 2:
                        break
                assert received_ids == ["n1", "n2"]
            history = (await http.get("/rooms/user_1/history")).json()["notifications"]
            assert [each["id"] for each in history] == ["n1", "n2"]
            tls = ws.transport.get_extra_info("ssl_object")
            assert tls.version() == "TLSv1.3"
            await ws.close()
            assert ws.close_code == 1000

    run(test())


def test_http_1_1_is_agreed_on_and_old_tls_is_not_spoken(run: Run, certified: Certified) -> None:
    async def test() -> None:
        async with serving(certified) as url:
            tls = certified.client()
            tls.set_alpn_protocols(["h2", "http/1.1"])
            _, writer = await asyncio.open_connection("127.0.0.1", port_of(url), ssl=tls)
            assert writer.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"
            writer.close()
            await writer.wait_closed()
        ours = ReloadingCertificate(certified.chain, certified.key).context()
        assert ours.minimum_version is ssl.TLSVersion.TLSv1_2

    run(test())


def test_idle_websocket_stays_open_over_tls(
    run: Run, certified: Certified, set_waits: SetWaits
) -> None:
    """A TLS transport with a limit of 0 pauses its writer at nothing."""
    set_waits(reader_timeout_s=0.05)

    async def test() -> None:
        async with serving(certified) as url, client(url, certified) as http:
            ws = await dial(url, certified.client())
            await asyncio.sleep(0.3)
            for n in range(10):
                await publish(http, f"n{n}")
                assert await next_id(ws) == f"n{n}"
            await ws.close()

    run(test())


def test_closes_slow_consumer_over_tls(run: Run, certified: Certified) -> None:
    async def test() -> None:
        async with serving(certified) as url, client(url, certified) as http:
            ws = await dial(url, certified.client())
            ws.transport.pause_reading()
            for n in range(60):
                await publish(http, f"n{n}", 250_000)  # 15 MB: more than all buffers together
                usage = (await http.get("/metrics")).text
                if 'reason="slow_consumer"} 1.0' in usage:
                    break
            else:
                raise AssertionError("it was not too slow")
            ws.transport.resume_reading()
            received = []
            with contextlib.suppress(websockets.ConnectionClosed):
                while True:
                    received.append(json.loads(await ws.recv()))
            assert ws.close_code == 4008
            ids = [each["id"] for each in received if each["type"] == "a"]
            assert ids == [f"n{n}" for n in range(len(ids))]
            async with http.stream("GET", "/rooms/user_1/events") as stream:
                assert stream.status_code == 200
            assert (await http.get("/rooms/user_1/presence")).status_code < 500

    run(test())


def test_many_rooms_over_tls(run: Run, certified: Certified) -> None:
    """A peer that reads slowly receives each room whole; a stream has all rooms, too."""
    rooms = [f"user_{number}" for number in range(8)]

    async def test() -> None:
        async with serving(certified) as url, client(url, certified) as http:
            ws = await websockets.connect(
                url.replace("https", "wss") + "/subscribe",
                ssl=certified.client(), subprotocols=[Subprotocol("synap.v2")], max_queue=None,
            )  # fmt: skip
            for room in rooms:
                await ws.send(json.dumps({"action": "subscribe", "room": room}))
            for _ in rooms:
                assert json.loads(await ws.recv())["type"] == "synap.subscribed"
            ws.transport.pause_reading()
            for number in range(8):
                for room in rooms:
                    note = {"type": "a", "data": {"x": "y" * 8_000}, "id": f"n{number}"}
                    await http.post(f"/rooms/{room}/broadcast", json=note)
            ws.transport.resume_reading()
            received: dict[str, list[str]] = {room: [] for room in rooms}
            for _ in range(8 * 8):
                message = json.loads(await ws.recv())
                received[message["room"]].append(message["id"])
            assert received == {room: [f"n{n}" for n in range(8)] for room in rooms}
            await ws.close()
            query = {"room": rooms, "after": "earliest"}
            async with http.stream("GET", "/events", params=query) as stream:
                count = 0
                async for line in stream.aiter_lines():
                    count += line.startswith("data:") and '"type":"a"' in line
                    if count == 8 * 8:
                        break

    run(test())


async def silent(url: str, said: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that opens a connection and sends no more than that."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
    writer.write(said)
    return reader, writer


async def is_cut(reader: asyncio.StreamReader) -> None:
    """Wait until the server has hung up."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(1000):
            pass


HALF_A_HELLO = bytes.fromhex("1603010200010001fc0303")


@pytest.mark.parametrize("said", [b"", HALF_A_HELLO])
def test_unfinished_handshakes_make_room_for_others(
    run: Run, certified: Certified, set_waits: SetWaits, said: bytes
) -> None:
    set_waits(tls_handshake_timeout_s=3600.0)

    async def test() -> None:
        async with serving(certified, max_pending_connections=5) as url:
            pending = [await silent(url, said) for _ in range(5)]
            async with client(url, certified) as http:
                await publish(http, "n1")
                await is_cut(pending[0][0])
                pending += [await silent(url, said) for _ in range(20)]
                for reader, _ in pending[:20]:
                    await is_cut(reader)
                await publish(http, "n2")
            for _, writer in pending:
                writer.transport.abort()

    run(test())


@pytest.mark.parametrize("said", [b"", HALF_A_HELLO])
def test_handshake_is_bounded_in_time(
    run: Run, certified: Certified, set_waits: SetWaits, said: bytes
) -> None:
    set_waits(tls_handshake_timeout_s=0.2)

    async def test() -> None:
        async with serving(certified, max_pending_connections=0) as url:
            reader, writer = await silent(url, said)
            await is_cut(reader)
            writer.transport.abort()

    run(test())


def test_closes_connection_that_speaks_no_tls(run: Run, certified: Certified) -> None:
    """Nothing is in the log: who speaks no TLS is no news."""

    async def test() -> None:
        async with serving(certified) as url:
            for said in (
                b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                b"\x16\x03\x01" + b"\xff" * 99,
            ):
                reader, writer = await silent(url, said)
                await is_cut(reader)
                writer.transport.abort()
            with pytest.raises(ssl.SSLCertVerificationError):
                await dial(url, ssl.create_default_context())
            for _ in range(20):
                with socket.create_connection(("127.0.0.1", port_of(url))) as reset:
                    reset.sendall(HALF_A_HELLO)
                    reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            async with client(url, certified) as http:
                await publish(http, "n1")

    run(test())


def test_a_request_that_comes_with_the_end_of_the_handshake_is_answered(
    run: Run, certified: Certified
) -> None:
    """In one packet: the server receives it before it knows that the handshake is done."""

    async def test() -> None:
        async with serving(certified) as url:
            reader, writer = await silent(url)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = certified.client().wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    writer.write(outgoing.read())
                    incoming.write(await reader.read(65536))
            tls.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            writer.write(outgoing.read())
            answer = b""
            while not answer.endswith(b'{"status":"ok"}'):
                try:
                    answer += tls.read(65536)
                except ssl.SSLWantReadError:
                    more = await reader.read(65536)
                    assert more, answer
                    incoming.write(more)
            writer.transport.abort()

    run(test())


def test_new_connections_get_the_renewed_certificate(
    run: Run, certified: Certified, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    trusted_before = certified.client()

    async def test() -> None:
        async with serving(certified) as url:
            before = await dial(url, trusted_before)
            renewed = certify(tmp_path).client()
            while True:
                try:
                    after = await dial(url, renewed)
                    break
                except ssl.SSLCertVerificationError:
                    await asyncio.sleep(0.1)  # it looks once a second
            certified.chain.write_text("broken")
            while not caplog.records:
                async with client(url, certified) as http:
                    assert (await http.get("/health")).status_code == 200
                await asyncio.sleep(0.1)
            await asyncio.sleep(1.1)
            async with client(url, certified) as http:
                await publish(http, "n1")
            assert [await next_id(before), await next_id(after)] == ["n1", "n1"]
            (said,) = caplog.records
            assert (
                "certificate reload failed, keeping previous one: --tls-cert" in said.getMessage()
            )
            caplog.clear()
            await before.close()
            await after.close()

    run(test())


def test_draining_closes_all_connections(run: Run, certified: Certified) -> None:
    async def test() -> None:
        async with serving(certified) as url:
            ws = await dial(url, certified.client())
            pending, writer = await silent(url)
            idle, idle_writer = await asyncio.open_connection(
                "127.0.0.1", port_of(url), ssl=certified.client()
            )
        assert json.loads(await ws.recv())["type"] == "synap.closing"
        await ws.wait_closed()
        assert ws.close_code == 4012
        await is_cut(pending)
        await is_cut(idle)
        writer.transport.abort()
        idle_writer.transport.abort()
        with pytest.raises(ConnectionRefusedError):
            await silent(url)

    run(test())
