"""A growing text in a room whose subscribers share writes (PROTOCOL.md, "Folding")."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import httpx
import pytest
from websockets import Subprotocol
from websockets.asyncio.client import connect

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.support.folding import Texts
from tests.support.timeouts import TIMEOUT_S

PIECES = [random.Random(number).choice(["tok ", "é", "😀", "\n"]) for number in range(400)]
TEXT = "".join(PIECES)
CLIENTS = 16


async def follow(url: str, number: int) -> tuple[str, str]:
    """Receive the text from the room's beginning, on connections that end at random.

    Returns:
        The text by ``fold.offset``, and the text by ``data.index`` of the last connection.
    """
    chance = random.Random(number)
    subprotocols = [Subprotocol("synap.v1")] if number % 2 else None
    while True:
        await asyncio.sleep(chance.uniform(0, 0.3))
        texts, indexed, expected = Texts(), "", 0
        async with connect(url, subprotocols=subprotocols, proxy=None, max_size=1 << 20) as ws:
            for _ in range(chance.choice([1, 5, 10_000])):
                wire = json.loads(await ws.recv())
                if wire["type"].startswith("synap."):
                    continue
                texts.apply(wire)
                index = wire["data"]["index"]
                if index == 0:
                    indexed, expected = "", 0
                assert index == expected
                indexed, expected = indexed + wire["data"]["delta"], index + 1
                if wire["fold"].get("final"):
                    return texts.by_key["text"], indexed


@pytest.mark.parametrize("interval_ms", [40, 0])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_subscribers_who_come_and_go_have_the_whole_text(
    kind: str, interval_ms: int, tmp_path: Path
) -> None:
    store = "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'rooms.db'}"
    settings = load_settings(
        store=store, piece_interval_ms=interval_ms, new_connections_per_s=0, drain_timeout_s=1
    )
    async with (
        running_server(create_app(settings)) as url,
        httpx.AsyncClient(base_url=url, trust_env=False) as http,
        asyncio.timeout(6 * TIMEOUT_S),
    ):
        address = f"{url.replace('http', 'ws', 1)}/rooms/request_1/subscribe?after=earliest"
        following = [asyncio.create_task(follow(address, number)) for number in range(CLIENTS)]
        offset = 0
        for number, piece in enumerate(PIECES):
            fold = {"key": "text", "mode": "append", "offset": offset}
            if number == len(PIECES) - 1:
                fold["final"] = True
            notification = {
                "type": "a.delta",
                "data": {"delta": piece, "index": number},
                "fold": fold,
            }
            answer = await http.post("/rooms/request_1/broadcast", json=notification)
            assert answer.status_code == 200, answer.text
            offset += len(piece)
            if number % 7 == 0:
                await asyncio.sleep(0.01)
        for text, indexed in await asyncio.gather(*following):
            assert text == indexed == TEXT
