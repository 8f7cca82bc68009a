"""The server bounds its pending connections and serves real clients during a flood."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from synap_realtime import AsyncBroadcaster
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from synap_realtime.tokens import mint_token
from tests.support.command_line import COMMAND
from tests.support.credentials import API_KEY, SECRET

PENDING_CLIENTS, KEPT = 5000, 200

BODY = (
    b"POST /rooms/user_1/broadcast HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1000000\r\n\r\n" + b"x" * 60_000
)
HALVES = {
    "idle_timeout": b"",
    "half a head": b"GET /rooms/user_1/subscribe HTTP/1.1\r\nHost: x\r\nX-Half: " + b"x" * 2000,
    "half a long head": b"GET /health HTTP/1.1\r\nHost: x\r\nX-Half: " + b"x" * 62 * 1024,
    "a long target": b"GET /" + b"x" * 62 * 1024 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a body that nobody asked for": BODY,
    "and then silent": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    # A page's handshake without a credential: it is closed, and the peer says nothing to that.
    "a WebSocket that is refused": (
        b"GET /rooms/user_1/subscribe HTTP/1.1\r\nHost: x\r\nOrigin: https://app.example\r\n"
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ),
}


@pytest.fixture(autouse=True)
def _sockets() -> Iterator[None]:
    """This process holds the clients' ends."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = before
    wanted = PENDING_CLIENTS + 500
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def served(*options: str) -> Iterator[tuple[int, str]]:
    process = subprocess.Popen(
        [COMMAND, "serve", "--port", "0", "--max-pending-connections", str(KEPT), *options],
        env={
            **os.environ,
            "SYNAP_REALTIME_API_KEYS": f"jobs={API_KEY}",
            "SYNAP_REALTIME_TOKEN_SECRETS": SECRET,
            "SYNAP_REALTIME_ALLOWED_ORIGINS": "https://app.example",
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"listening on (http://\S+)", line):
                yield process.pid, found[1]
                break
        process.terminate()
        assert process.wait(20) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


def rss(pid: int) -> int:
    """In bytes."""
    shown = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True
    )
    return int(shown.stdout) * 1024


class PendingClient(asyncio.Protocol):
    """Sends its half and waits."""

    def __init__(self, half: bytes, cut: list[int]) -> None:
        self._half = half
        self._cut = cut

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._half)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cut[0] += 1


@pytest.mark.parametrize("kind", HALVES)
async def test_thousands_of_pending_connections_take_bounded_memory_and_delay_nobody(
    kind: str,
) -> None:
    loop = asyncio.get_running_loop()
    with served() as (pid, url):
        host, port = str(urlsplit(url).hostname), urlsplit(url).port
        # Patience for a machine that is busy with other things.
        async with AsyncBroadcaster(url, API_KEY, timeout_s=30, deadline_s=60) as broadcaster:
            assert (await broadcaster.broadcast_success("1", "a.completed", {})).success
            before = rss(pid)
            cut = [0]
            transports: list[asyncio.BaseTransport] = []
            most = 0.0
            for _ in range(PENDING_CLIENTS // 50):
                pairs = await asyncio.gather(
                    *(
                        loop.create_connection(
                            lambda: PendingClient(HALVES[kind], cut), host, port or 0
                        )
                        for _ in range(50)
                    )
                )
                transports += [transport for transport, _ in pairs]
                began = time.monotonic()
                result = await broadcaster.broadcast_success("1", "a.completed", {})
                most = max(most, time.monotonic() - began)
                assert result.success, result.error
            # All but those that are kept have received their end by now, or soon. (The publisher's
            # own may be one of them.)
            end = time.monotonic() + 60
            while cut[0] < PENDING_CLIENTS - KEPT - 1 and time.monotonic() < end:  # noqa: ASYNC110 - callbacks count
                await asyncio.sleep(0.05)
            assert cut[0] >= PENDING_CLIENTS - KEPT - 1
            grown = rss(pid) - before
            for transport in transports:
                transport.abort()  # type: ignore[attr-defined]
    assert grown < 40 * 1024 * 1024, f"{grown} bytes more for {PENDING_CLIENTS} strangers"
    assert most < 30, "a publisher had to wait behind them"


async def test_active_request_is_not_closed_in_favour_of_pending_connections() -> None:
    """A request that takes long is none of those: it is being answered."""
    started, go_on = asyncio.Event(), asyncio.Event()

    async def may(*_: object) -> bool:
        started.set()
        await go_on.wait()
        return True

    app = create_app(load_settings(drain_timeout_s=0, max_pending_connections=2), authorize=may)
    async with running_server(app) as url:
        where = urlsplit(url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        writer.write(b"GET /rooms/user_1/history HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await started.wait()
        others = [await asyncio.open_connection(where.hostname, where.port) for _ in range(6)]
        for waiting, _ in others[:4]:
            assert await waiting.read() == b"", "the oldest are cut"
        go_on.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        for _, each in [*others, (reader, writer)]:
            each.close()


async def test_unread_histories_take_bounded_memory_that_does_not_grow() -> None:
    """One user's token, 1,000 sockets, and nothing is read; three times. About 4 MiB stay."""
    mib = 1024 * 1024
    with served("--max-pending-connections", "5000") as (pid, url):
        async with AsyncBroadcaster(url, API_KEY, timeout_s=30, deadline_s=60) as broadcaster:
            for _ in range(10):
                data = {"x": "y" * 100_000}
                assert (await broadcaster.broadcast_success("1", "a.completed", data)).success
            before = rss(pid)
            after = []
            for _ in range(3):
                sockets = await ask_and_read_nothing(url, 1000)
                assert (await broadcaster.broadcast_success("1", "a.completed", {})).success
                peak = rss(pid)
                for each in sockets:
                    each.close()
                assert peak - before < 64 * mib, f"{peak - before} bytes more"
                end = time.monotonic() + 20
                while rss(pid) - before > 16 * mib and time.monotonic() < end:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
                after.append(rss(pid) - before)
    assert max(after) < 24 * mib, after


async def test_half_bodies_to_a_mounted_app_take_bounded_memory(tmp_path: Path) -> None:
    """300 sockets send 900 KB each of a body, and nothing more."""
    mib, count = 1024 * 1024, 300
    key = f"Host: x\r\nAuthorization: Bearer {API_KEY}\r\n".encode()
    half = BODY.replace(b"Host: x\r\n", key) + b"x" * 840_000
    loop, cut = asyncio.get_running_loop(), [0]
    with mounted(tmp_path) as (pid, url):
        host, port = str(urlsplit(url).hostname), urlsplit(url).port or 0
        async with AsyncBroadcaster(url, API_KEY, timeout_s=30, deadline_s=60) as broadcaster:
            assert (await broadcaster.broadcast_success("1", "a.completed", {})).success
            before = peak = rss(pid)
            pending_clients = [
                await loop.create_connection(lambda: PendingClient(half, cut), host, port)
                for _ in range(count)
            ]
            for _ in range(20):
                await asyncio.sleep(0.1)
                peak = max(peak, rss(pid))
            assert (await broadcaster.broadcast_success("1", "a.completed", {})).success
            for transport, _ in pending_clients:
                transport.abort()
            end = time.monotonic() + 20
            while rss(pid) - before > 24 * mib and time.monotonic() < end:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            after = rss(pid)
    assert peak - before < 100 * mib, f"{peak - before} bytes more"
    assert after - before < 24 * mib, f"{after - before} bytes stay"


@contextmanager
def mounted(folder: Path) -> Iterator[tuple[int, str]]:
    """The app under uvicorn, in a process of its own."""
    app = ["--factory", "synap_realtime.server:create_app", "--port", "0", "--no-access-log"]
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", *app],
        env={**os.environ, "SYNAP_REALTIME_API_KEYS": f"jobs={API_KEY}"},
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"running on (http://\S+)", line):
                yield process.pid, found[1]
                break
        process.terminate()
        assert "Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.communicate()


async def ask_and_read_nothing(url: str, count: int) -> list[socket.socket]:
    """Open connections that ask for a long history and do not read it."""
    where = urlsplit(url)
    loop = asyncio.get_running_loop()
    token = mint_token("1", secret=SECRET)
    asked = (
        "GET /rooms/user_1/history?limit=1000 HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()
    sockets = []
    for _ in range(count):
        each = socket.socket()
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        each.setblocking(False)
        await loop.sock_connect(each, (where.hostname, where.port))
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(each, asked)
        sockets.append(each)
    return sockets
