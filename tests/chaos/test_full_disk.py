"""A full disk under ``durability=disk``: Redis ends, and starts again when it has space."""

from __future__ import annotations

import itertools
import resource
from pathlib import Path

import pytest

from tests.support.credentials import API_KEY, token
from tests.support.http_client import ask
from tests.support.polling import until
from tests.support.servers import running_node, until_ready
from tests.support.valkey import PROGRAMS, Valkey, running_valkey
from tests.support.websocket_client import frame, listening

ROOM = "user_1"


def limit(server: Valkey, size: int) -> None:
    """Limit the size of the files that a process may write, instead of its disk."""
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("program", PROGRAMS)
async def test_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path, program: Path) -> None:
    numbers = itertools.count()
    acknowledged: list[str] = []

    with running_valkey(tmp_path, program=program) as server:
        async with (
            running_node(f"{server.url}?durability=disk", retention_count=10_000) as url,
            listening(url, ROOM, token("1")) as ws,
        ):

            async def publish() -> int:
                id = f"n{next(numbers)}"
                note = {"type": "a", "data": {"x": "x" * 1000}, "id": id}
                response = await ask(url, "POST", f"/rooms/{ROOM}/broadcast", API_KEY, json=note)
                if response.status_code == 200:
                    acknowledged.append(id)
                else:
                    assert response.json()["code"] == "unavailable", response.text
                    assert "Redis" in response.json()["details"]
                    assert int(response.headers["Retry-After"]) >= 1
                return response.status_code

            await frame(ws, "synap.subscribed")
            assert await publish() == 200
            limit(server, 64 * 1024)

            async def is_refused() -> bool:
                return await publish() == 503

            await until(is_refused)
            assert len(acknowledged) > 10
            for _ in range(2):  # a supervisor starts it again, and it has no space still
                await until(lambda: server.has_ended)
                server.launch()
                limit(server, 64 * 1024)
                assert await publish() == 503
            assert (await ask(url, "GET", "/ready")).status_code == 503

            server.restart()
            await until_ready(url)
            assert await publish() == 200
            received: list[str] = []
            while acknowledged[-1] not in received:
                found = await frame(ws, "a")
                received.append(found["id"])
            assert len(received) == len(set(received))
            assert set(acknowledged) <= set(received)
        async with (
            running_node(f"{server.url}?durability=disk", retention_count=10_000) as url,
            listening(url, ROOM, token("1"), query="?after=earliest") as ws,
        ):
            stored = [(await frame(ws, "a"))["id"] for _ in acknowledged]
            assert set(acknowledged) <= set(stored)
