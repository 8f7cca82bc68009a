"""Key changes at run time: a removed key is rejected, a broken file keeps the previous keys.

See PROTOCOL.md, "Authentication and authorization".
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.tokens import mint_token
from tests.support.credentials import ORIGIN
from tests.support.http_client import NOTE, ask
from tests.support.servers import Front
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.websocket_client import closed_with, frame, listening

OLD, NEW, KEY, OTHER_KEY = "o" * 32, "n" * 32, "k" * 43, "j" * 43
WITHIN_S = 1.0
"""A key that was removed stops counting in this time."""


def keys(secrets: list[str], **api_keys: str) -> str:
    lines = [f"token_secrets = {json.dumps(secrets)}", "[api_keys]"]
    for name, key in api_keys.items():
        lines.append(f'{name} = {{ key = "{key}", scope = "subscribe broadcast presence" }}')
    return "\n".join(lines) + "\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "keys.toml"
    file.write_text(keys([OLD, NEW], jobs=KEY, prometheus=OTHER_KEY))
    return file


@pytest.fixture
async def url(front: Front, file: Path) -> AsyncIterator[str]:
    async with front(create_app(load_settings(keys_file=file, allowed_origins=(ORIGIN,)))) as url:
        yield url


async def until_refused(url: str, credential: str, room: str = "user_1") -> None:
    async with asyncio.timeout(TIMEOUT_S):
        path = f"/rooms/{room}/history"
        while (await ask(url, "GET", path, credential)).status_code != 401:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("removed", ["secret", "API key"])
async def test_closes_connections_of_a_removed_key_without_traffic(
    url: str, file: Path, removed: str
) -> None:
    old, new = mint_token("1", secret=OLD), mint_token("1", secret=NEW)
    goes, stays = (old, new) if removed == "secret" else (KEY, OTHER_KEY)
    headers = {"Authorization": f"Bearer {goes}"}
    async with (
        listening(url, "user_1", goes) as closed,
        listening(url, "user_1", stays) as open_,
        httpx.AsyncClient(base_url=url, headers=headers) as client,
        client.stream("GET", "/rooms/user_1/events") as stream,
    ):
        lines = stream.aiter_lines()
        while await anext(lines) != "event: synap.subscribed":
            pass
        for each in (closed, open_):
            await frame(each, "synap.subscribed")
        if removed == "secret":
            file.write_text(keys([NEW], jobs=KEY, prometheus=OTHER_KEY))
        else:
            file.write_text(keys([OLD, NEW], prometheus=OTHER_KEY))
        began_at = time.monotonic()
        assert await closed_with(closed) == 4401
        async with asyncio.timeout(TIMEOUT_S):
            async for _ in lines:  # the stream ends
                pass
        assert time.monotonic() - began_at < WITHIN_S + scaled(1), (
            "with a second for a busy machine"
        )
        await until_refused(url, goes)
        await open_.send("ping")
        assert await open_.recv() == "pong"


async def test_a_connection_does_not_renew_with_a_removed_key(url: str, file: Path) -> None:
    old, new = mint_token("1", secret=OLD), mint_token("1", secret=NEW)
    async with listening(url, "user_1", old) as ws:
        await frame(ws, "synap.subscribed")
        await ws.send(json.dumps({"action": "authenticate", "token": new}))
        file.write_text(keys([NEW], jobs=KEY))
        await until_refused(url, old)
        await ws.send("ping")
        assert await ws.recv() == "pong", "it is known by the key of its new token"
        await ws.send(json.dumps({"action": "authenticate", "token": old}))
        assert await closed_with(ws) == 4501


async def test_an_open_connection_does_not_publish_with_a_removed_key(url: str, file: Path) -> None:
    body = json.dumps(NOTE).encode()
    request = (
        b"POST /rooms/user_1/broadcast HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        b"Authorization: Bearer " + KEY.encode() + b"\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body
    address = httpx.URL(url)
    reader, writer = await asyncio.open_connection(address.host, address.port)

    async def publish() -> int:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        await reader.readexactly(length)
        return int(head.split()[1])

    with contextlib.closing(writer):
        async with asyncio.timeout(TIMEOUT_S):
            for _ in range(5):
                assert await publish() == 200
            file.write_text(keys([NEW], prometheus=OTHER_KEY))
            await until_refused(url, KEY)
            assert await publish() == 401


BREAKS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda file: file.write_text(""),
    "comments": lambda file: file.write_text("# nothing\n"),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("broken", BREAKS)
async def test_invalid_file_never_disables_authentication(
    url: str, file: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = mint_token("1", secret=NEW)
    async with listening(url, "user_1", good) as ws:
        await frame(ws, "synap.subscribed")
        BREAKS[broken](file)
        async with asyncio.timeout(TIMEOUT_S):
            while "keys file reload failed" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        for method, path in (
            ("GET", "/rooms/user_1/history"), ("POST", "/rooms/user_1/broadcast"),
            ("POST", "/revoke"), ("GET", "/metrics"),
        ):  # fmt: skip
            assert (await ask(url, method, path, json=NOTE)).status_code == 401, path
        headers = {"X-Forwarded-For": "203.0.113.7"}  # a proxy's: without keys it would be a 403
        response = await ask(url, "GET", "/rooms/user_1/history", good, headers=headers)
        assert response.status_code == 200
        await ws.send("ping")
        assert await ws.recv() == "pong"
    failures = [each for each in caplog.messages if "keys file reload failed" in each]
    assert len(failures) == 1


async def test_loads_keys_of_a_replaced_file(url: str, file: Path) -> None:
    """As editors and our own command write it: another file, renamed."""
    added = "a" * 43
    temporary = file.with_suffix(".tmp")
    temporary.write_text(keys([NEW], jobs=KEY, more=added))
    temporary.rename(file)
    async with asyncio.timeout(TIMEOUT_S):
        path = "/rooms/user_1/history"
        while (await ask(url, "GET", path, added)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await until_refused(url, mint_token("1", secret=OLD))
