"""Presence and the connections of a user over two nodes, as their clients see them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets
from pydantic import SecretStr

from synap_realtime.protocol.rooms import Room
from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.serve import running_server
from tests.support.credentials import ORIGIN, SECRET, bearer, token
from tests.support.http_client import ask
from tests.support.polling import until
from tests.support.program import Program
from tests.support.timeouts import TIMEOUT_S, scaled
from tests.support.valkey import Valkey, running_valkey
from tests.support.waits import SetWaits
from tests.support.websocket_client import closed_with, frame, listening

ROOM = Room("workspace_7")
PRESENCE = "synap.presence"


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    with running_valkey(tmp_path / "valkey", "--appendonly", "no") as server:
        yield server


def of(user: str | None) -> str:
    return token(user, rooms=("workspace_*",), scope="subscribe presence")


@contextlib.asynccontextmanager
async def node(valkey: Valkey, **options: Any) -> AsyncIterator[str]:
    settings = load_settings(
        store=valkey.url,
        token_secrets=(SecretStr(SECRET),),
        allowed_origins=(ORIGIN,),
        drain_timeout_s=0,
        **options,
    )
    async with running_server(create_app(settings)) as url:
        await is_ready(url)
        yield url


@contextlib.asynccontextmanager
async def program(valkey: Valkey) -> AsyncIterator[Program]:
    """Serve a node in a process of its own, which can be killed."""
    running = Program(
        valkey.url,
        SYNAP_REALTIME_TOKEN_SECRETS=SECRET,
        SYNAP_REALTIME_ALLOWED_ORIGINS=ORIGIN,
        SYNAP_REALTIME_MAX_CONNECTIONS_PER_USER="2",
    )
    await running.start()
    try:
        await is_ready(running.url)
        yield running
    finally:
        await running.kill()


async def is_ready(url: str) -> None:
    async def answers() -> bool:
        return (await ask(url, "GET", "/ready")).status_code == 200

    await until(answers)


@contextlib.asynccontextmanager
async def present(url: str, user: str, device: str) -> AsyncIterator[Any]:
    async with listening(url, ROOM, of(user), query=f"?device={device}") as ws:
        await frame(ws, "synap.subscribed")
        yield ws


@contextlib.asynccontextmanager
async def watching(url: str) -> AsyncIterator[Any]:
    async with listening(url, ROOM, of(None), query="?presence=1") as ws:
        yield ws


async def event(ws: Any) -> tuple[str, str, list[str]]:
    data = (await frame(ws, PRESENCE))["data"]
    return data["event"], data["user"], data["devices"]


async def state(ws: Any) -> list[Any]:
    data = (await frame(ws, PRESENCE))["data"]
    assert data["event"] == "state"
    users: list[Any] = data["users"]
    return users


async def listed(url: str) -> dict[str, Any]:
    response = await ask(url, "GET", f"/rooms/{ROOM}/presence", of(None))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_both_nodes_list_the_users_of_both(valkey: Valkey) -> None:
    async with (
        node(valkey) as one,
        node(valkey) as two,
        watching(one) as watcher,
        present(two, "ann", "phone"),
        present(one, "ann", "tab"),
        present(two, "bob", "phone"),
    ):
        assert await state(watcher) == []
        assert await event(watcher) == ("join", "ann", ["phone"])
        assert await event(watcher) == ("update", "ann", ["phone", "tab"])
        assert await event(watcher) == ("join", "bob", ["phone"])
        expected = {
            "room": ROOM,
            "connections": 4,
            "users": [
                {"user": "ann", "connections": 2, "devices": ["phone", "tab"]},
                {"user": "bob", "connections": 1, "devices": ["phone"]},
            ],
        }
        for url in (one, two):
            assert await listed(url) == expected
        async with watching(two) as late:
            assert await state(late) == expected["users"]


async def test_a_user_who_moves_between_the_nodes_does_not_leave(
    valkey: Valkey, set_waits: SetWaits
) -> None:
    set_waits(presence_grace_s=1.0)
    async with (
        node(valkey) as one,
        node(valkey) as two,
        watching(one) as watcher,
        watching(two) as other,
    ):
        for each in (watcher, other):
            assert await state(each) == []
        for url in (two, one, two, one):
            async with present(url, "ann", "phone"):
                pass
        async with present(two, "ann", "phone"):
            await asyncio.sleep(1.5)  # the grace periods at both have ended
            async with present(one, "bob", "tab"):
                for each in (watcher, other):
                    assert await event(each) == ("join", "ann", ["phone"])
                    assert await event(each) == ("join", "bob", ["tab"])
        for each in (watcher, other):
            events = [await event(each) for _ in range(2)]
            assert {name for name, _, _ in events} == {"leave"}


async def test_a_user_who_flaps_between_the_nodes_is_bounded(valkey: Valkey) -> None:
    """Coalesced as on one node: at most one frame for the user in 200 ms."""
    async with node(valkey) as one, node(valkey) as two, watching(one) as watcher:
        assert await state(watcher) == []
        began_at = asyncio.get_running_loop().time()
        for n in range(40):
            async with present((one, two)[n % 2], "ann", f"d{n}"):
                pass
        async with present(two, "ann", "last"):
            events: list[tuple[str, str, list[str]]] = []
            while "last" not in (events[-1][2] if events else ()):
                events.append(await event(watcher))
            took_s = asyncio.get_running_loop().time() - began_at
            assert [name for name, _, _ in events] == ["join", *["update"] * (len(events) - 1)]
            assert len(events) <= took_s / 0.2 + 2


async def test_users_of_a_stopped_node_can_reconnect_without_leaving(
    valkey: Valkey, set_waits: SetWaits
) -> None:
    set_waits(presence_grace_s=3.0)
    async with node(valkey) as one, watching(one) as watcher:
        assert await state(watcher) == []
        async with (
            node(valkey) as two,
            present(two, "stays", "a"),
            present(two, "leaves", "b"),
        ):
            assert await event(watcher) == ("join", "stays", ["a"])
            assert await event(watcher) == ("join", "leaves", ["b"])
        found = (await listed(one))["users"]
        assert [(user["user"], user["connections"]) for user in found] == [
            ("leaves", 0),
            ("stays", 0),
        ]
        async with present(one, "stays", "a"):
            assert await event(watcher) == ("leave", "leaves", [])
            assert [user["user"] for user in (await listed(one))["users"]] == ["stays"]


async def test_users_of_a_killed_node_leave_when_its_lifetime_has_passed(
    valkey: Valkey, set_waits: SetWaits
) -> None:
    set_waits(redis_node_lifetime_s=scaled(4.0))
    async with (
        node(valkey, max_connections_per_user=2) as one,
        watching(one) as watcher,
        program(valkey) as two,
    ):
        assert await state(watcher) == []
        async with present(two.url, "ann", "phone"), present(two.url, "bob", "tab"):
            assert await event(watcher) == ("join", "ann", ["phone"])
            assert await event(watcher) == ("join", "bob", ["tab"])
            async with present(one, "bob", "tab"):
                async with listening(one, ROOM, of("bob")) as third:
                    assert await closed_with(third) == 4529
                await two.kill()
                assert [user["user"] for user in (await listed(one))["users"]] == ["ann", "bob"]
                assert await event(watcher) == ("leave", "ann", [])
                assert (await listed(one))["users"] == [
                    {"user": "bob", "connections": 1, "devices": ["tab"]}
                ]
                async with present(one, "bob", "laptop"):
                    assert await event(watcher) == ("update", "bob", ["laptop", "tab"])


async def test_redis_that_comes_back_empty(valkey: Valkey) -> None:
    async with (
        node(valkey) as one,
        node(valkey) as two,
        watching(one) as watcher,
        present(two, "ann", "phone"),
        present(one, "bob", "tab"),
    ):
        assert await state(watcher) == []
        expected = (await listed(one))["users"]
        assert {(await event(watcher))[1] for _ in range(2)} == {"ann", "bob"}
        valkey.restart()
        for url in (one, two):
            await is_ready(url)

            async def is_listed(url: str = url) -> bool:
                return bool((await listed(url))["users"] == expected)

            await until(is_listed)
        async with present(two, "eve", "tab"):
            assert await event(watcher) == ("join", "eve", ["tab"]), "nobody has left meanwhile"


async def test_the_limit_of_a_user_holds_over_the_nodes(valkey: Valkey) -> None:
    async with (
        node(valkey, max_connections_per_user=3) as one,
        node(valkey, max_connections_per_user=3) as two,
        contextlib.AsyncExitStack() as stack,
    ):
        for url in (one, two, one):
            await stack.enter_async_context(present(url, "ann", "x"))
        for url in (one, two):
            async with listening(url, ROOM, of("ann")) as more:
                assert await closed_with(more) == 4529
            response = await ask(url, "GET", f"/rooms/{ROOM}/events", of("ann"))
            assert response.status_code == 429
            assert int(response.headers["Retry-After"]) >= 1
            async with present(url, "bob", "x"):
                pass
        await stack.aclose()
        for url in (two, one, two):
            await stack.enter_async_context(present(url, "ann", "x"))


async def test_connections_that_begin_at_both_nodes_together(valkey: Valkey) -> None:
    async with (
        node(valkey, max_connections_per_user=5) as one,
        node(valkey, max_connections_per_user=5) as two,
        contextlib.AsyncExitStack() as stack,
    ):

        async def connect(url: str) -> bool:
            ws = await stack.enter_async_context(listening(url, ROOM, of("ann")))
            async with asyncio.timeout(TIMEOUT_S):
                try:
                    return '"synap.subscribed"' in await ws.recv(decode=True)
                except websockets.ConnectionClosed:
                    return False

        for _ in range(3):
            admitted = await asyncio.gather(*(connect((one, two)[n % 2]) for n in range(30)))
            assert sum(admitted) == 5
            await stack.aclose()

            async def is_over() -> bool:
                return bool((await listed(one))["connections"] == 0)

            await until(is_over)


async def test_without_redis(valkey: Valkey, set_waits: SetWaits) -> None:
    set_waits(redis_call_timeout_s=0.3)
    async with (
        node(valkey) as url,
        watching(url) as watcher,
        httpx.AsyncClient(timeout=TIMEOUT_S) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        assert await state(watcher) == []
        await stack.enter_async_context(present(url, "ann", "phone"))
        valkey.kill()
        response = await ask(url, "GET", f"/rooms/{ROOM}/presence", of(None))
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) >= 1
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with listening(url, ROOM, of("bob")):
                pass
        assert refused.value.response.status_code == 503
        # A browser does not reconnect after a 503.
        response = await client.get(f"{url}/rooms/{ROOM}/events", headers=bearer(of("bob")))
        assert response.status_code == 200
        assert response.text.startswith("retry: ")
        assert await event(watcher) == ("join", "ann", ["phone"])
        valkey.start()
        await is_ready(url)
        async with present(url, "bob", "tab"):
            assert await event(watcher) == ("join", "bob", ["tab"])
