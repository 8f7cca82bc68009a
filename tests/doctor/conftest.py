"""Fixtures of these tests: an environment without settings, and misconfigured servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import pytest

from synap_realtime.doctor import Finding, run_checks
from tests.support.credentials import API_KEY, SECRET

WRONG_KEY, WRONG_SECRET = "w" * 43, "z" * 43


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if "REALTIME_" in name or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


async def findings(url: str | None = None, **given: Any) -> list[Finding]:
    """All of them; none holds a secret of these tests."""
    found = [finding async for finding in run_checks(url, given)]
    text = "\n".join(map(str, found))
    for secret in (SECRET, API_KEY, WRONG_KEY, WRONG_SECRET):
        assert secret not in text
    for finding in found:
        assert finding.level == "ok" or finding.advice or "not tried" in finding.found, finding
    return found


async def diagnosis(url: str | None = None, **given: Any) -> dict[str, Finding]:
    """The same by what was looked at."""
    return {finding.check: finding for finding in await findings(url, **given)}


Answer = tuple[int, Mapping[str, str], str]


@contextlib.asynccontextmanager
async def answering(
    answer: Callable[[str], Answer], host: str = "127.0.0.1", context: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A small HTTP server: what it answers to a path, with no other headers than those given."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            status, headers, body = answer(head.split()[1])
            lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            writer.write(("\r\n".join(lines) + "\r\n\r\n" + body).encode())
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(handle, host, 0, ssl=context) as server:
        port = server.sockets[0].getsockname()[1]
        yield f"{'https' if context else 'http'}://{host}:{port}"


HEALTH = '{"status":"ok"}'


@contextlib.asynccontextmanager
async def proxy(
    url: str, *, holds_events: bool = False, drops_upgrades: bool = False
) -> AsyncIterator[str]:
    """Stands before a server. A connection carries one request, or one WebSocket."""
    where = urlsplit(url)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
            return
        if drops_upgrades:
            lines = head.split(b"\r\n")
            hop = (b"upgrade:", b"connection:", b"sec-websocket")
            head = b"\r\n".join(line for line in lines if not line.lower().startswith(hop))
        up_reader, up_writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            up_writer.write(head)
            if holds_events and b"/events" in head.split(b"\r\n")[0]:
                # All of it first, as a proxy that buffers does.
                writer.write(await up_reader.read(-1))
            else:
                await asyncio.gather(carry(reader, up_writer), carry(up_reader, writer))
        finally:
            writer.close()
            up_writer.close()

    handlers: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(handle(reader, writer))
        handlers.add(task)
        task.add_done_callback(handlers.discard)

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        # From Python 3.12 on, a server waits at its end for every connection.
        for task in tuple(handlers):
            task.cancel()
