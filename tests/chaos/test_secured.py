"""Two nodes on servers with users, passwords and TLS: everything works, also after a failover.

The nodes' user has the documented permissions and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import websockets

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.keys import partition_of, slot_of
from synap_realtime.server.stores.redis.permissions import acl_rule
from tests.support.certificates import certify
from tests.support.command_line import run
from tests.support.credentials import API_KEY, token
from tests.support.http_client import ask
from tests.support.polling import until
from tests.support.program import free_port
from tests.support.replicated import (
    PASSWORD,
    SENTINEL_PASSWORD,
    SENTINEL_USER_PASSWORD,
    USER_PASSWORD,
    WRITTEN,
    Replicated,
)
from tests.support.servers import running_node, until_ready
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import (
    REDIS,
    VALKEY,
    needs_redis,
    running_cluster,
    running_valkey,
    tls_options,
)
from tests.support.websocket_client import closed_with, frame, listening

ROOMS = [Room(f"workspace_{n}") for n in range(8)]
SECRETS = {PASSWORD, SENTINEL_PASSWORD, SENTINEL_USER_PASSWORD, USER_PASSWORD, *WRITTEN}
USER = f"app:{WRITTEN[0]}@"


@dataclass
class SetUp:
    """The servers of the nodes.

    Attributes:
        fail_over: lets a primary fail; afterwards another one, or the same, serves again.
    """

    url: str
    fail_over: Callable[[], Awaitable[None]]


def user_options(url: str) -> list[str]:
    """Return the options that give a server the user of the nodes."""
    user = ["app", "on", f">{USER_PASSWORD}", *acl_rule(parse_address(url)).split()]
    return ["--user", *user]


@contextlib.contextmanager
def standalone_over_tls(folder: Path) -> Iterator[SetUp]:
    """One server that asks for a user, a password, and a certificate of the client."""
    certified = certify(folder)
    port = free_port()
    options = ["--requirepass", PASSWORD, *user_options("redis://a"), *tls_options(certified, port)]
    with running_valkey(folder / "redis", *options, password=PASSWORD, program=REDIS) as server:

        async def restart() -> None:
            await asyncio.to_thread(server.restart)

        files = f"?ca={certified.root}&cert={certified.chain}&key={certified.key}"
        yield SetUp(f"rediss://{USER}127.0.0.1:{port}{files}", restart)


@contextlib.contextmanager
def sentinels(folder: Path, program: Path, *, tls: bool = False) -> Iterator[SetUp]:
    """Servers and Sentinels that ask for users and passwords."""
    rule = acl_rule(parse_address("redis+sentinel://a/main"))
    servers = Replicated(folder, program, rule=rule, certified=certify(folder) if tls else None)

    async def fail_over() -> None:
        servers.primary.kill()
        await until(lambda: servers.replica.is_primary)

    with servers.stack:
        yield SetUp(servers.url, fail_over)


@contextlib.contextmanager
def cluster(folder: Path, program: Path, *, tls: bool = False) -> Iterator[SetUp]:
    """A cluster with a user for the nodes; over TLS, it asks for a certificate of the client."""
    certified = certify(folder) if tls else None
    options = user_options("redis+cluster://a")
    with running_cluster(
        folder / "cluster", program=program, options=options, certified=certified
    ) as servers:
        slot = slot_of(partition_of(ROOMS[0]))
        primary = servers.primary_of(slot)
        replica = servers.replicas[servers.primaries.index(primary)]

        async def fail_over() -> None:
            primary.kill()
            await until(lambda: replica.is_primary)
            await until(
                lambda: all(
                    each.info()["cluster_state"] == "ok"
                    for each in servers.nodes
                    if each.is_running
                )
            )

        url = servers.url.replace("://", f"://{USER}")
        if certified is not None:
            url = url.replace("redis+", "rediss+")
            url += f"?ca={certified.root}&cert={certified.chain}&key={certified.key}"
        yield SetUp(url, fail_over)


SET_UPS: dict[str, Callable[[Path], contextlib.AbstractContextManager[SetUp]]] = {
    "Sentinels": lambda folder: sentinels(folder, VALKEY),
    "cluster": lambda folder: cluster(folder, VALKEY),
    "standalone over TLS, Redis 7.0": standalone_over_tls,
    "Sentinels over TLS, Redis 7.0": lambda folder: sentinels(folder, REDIS, tls=True),
    "cluster over TLS, Redis 7.0": lambda folder: cluster(folder, REDIS, tls=True),
}


@pytest.fixture(
    params=[pytest.param(name, marks=needs_redis if "Redis" in name else ()) for name in SET_UPS]
)
def set_up(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SetUp]:
    with SET_UPS[request.param](tmp_path) as servers:
        yield servers


def node(store: str) -> contextlib.AbstractAsyncContextManager[str]:
    return running_node(store, admin=True, max_connections_per_user=len(ROOMS))


def of(user: str | None, scope: str = "subscribe presence") -> str:
    return token(user, rooms=("workspace_*",), scope=scope)


def admin() -> str:
    return token(None, scope="admin")


async def publish(url: str, room: Room, id: str) -> None:
    """Publish until it is acknowledged."""
    note = {"type": "a", "data": {}, "id": id}

    async def is_accepted() -> bool:
        response = await ask(url, "POST", f"/rooms/{room}/broadcast", API_KEY, json=note)
        assert response.status_code in (200, 503), response.text
        return response.status_code == 200

    await until(is_accepted)


async def users_of(url: str, room: Room) -> dict[str, int]:
    response = await ask(url, "GET", f"/rooms/{room}/presence", of(None))
    assert response.status_code == 200, response.text
    return {each["user"]: each["connections"] for each in response.json()["users"]}


async def is_admitted(url: str, user: str) -> bool:
    async with listening(url, ROOMS[0], of(user)) as ws:
        async with asyncio.timeout(TIMEOUT_S):
            try:
                await frame(ws, "synap.subscribed")
            except websockets.ConnectionClosed:
                assert await closed_with(ws) == 4529
                return False
    return True


async def walk(urls: tuple[str, str], sockets: dict[Room, list[Any]], name: str) -> None:
    """Use everything that nodes do together, over all rooms."""
    for number, room in enumerate(ROOMS):
        await publish(urls[number % 2], room, f"{name}-{room}")
    for room in ROOMS:
        for ws in sockets[room]:
            assert (await frame(ws, "a"))["id"] == f"{name}-{room}"
    for url in urls:
        for room in ROOMS:
            assert await users_of(url, room) == {"ann": 1, "bob": 1}
        health = (await ask(url, "GET", f"/rooms/{ROOMS[0]}/health", of(None))).json()
        assert health == {"status": "ok", "connections": 2, "roomId": ROOMS[0]}
        assert not await is_admitted(url, "ann"), "the limit holds over all nodes"
        state = (await ask(url, "GET", "/admin/state", admin())).json()
        assert len(state["nodes"]) == 2
        assert "partial" not in state

    # A revocation at one node closes connections at the other one.
    user = f"eve-{name}"
    credential = of(user)
    async with listening(urls[1], "workspace_e", credential) as ws:
        await frame(ws, "synap.subscribed")
        response = await ask(urls[0], "POST", "/revoke", admin(), json={"user": user})
        assert response.json() == {"success": True, "revoked": True, "closed": 1}
        assert await closed_with(ws) == 4504
    for url in urls:
        response = await ask(url, "GET", "/rooms/workspace_e/health", credential)
        assert response.status_code == 401


async def test_everything_works_before_and_after_a_failover(
    set_up: SetUp, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        node(set_up.url) as one,
        node(set_up.url) as two,
        contextlib.AsyncExitStack() as stack,
    ):
        urls = (one, two)
        sockets: dict[Room, list[Any]] = {}
        for room in ROOMS:
            sockets[room] = [
                await stack.enter_async_context(listening(url, room, of(user)))
                for url, user in ((one, "ann"), (two, "bob"))
            ]
            for ws in sockets[room]:
                await frame(ws, "synap.subscribed")

        async def is_complete() -> bool:
            found = [(await ask(url, "GET", "/admin/state", admin())).json() for url in urls]
            return all(len(each["nodes"]) == 2 for each in found)

        await until(is_complete)
        await walk(urls, sockets, "before")
        shown = [(await ask(url, "GET", "/admin/state", admin())).text for url in urls]
        await set_up.fail_over()
        for url in urls:
            await until_ready(url)
        await until(is_complete)
        await walk(urls, sockets, "after")
        shown += [
            (await ask(url, "GET", path, admin())).text
            for url in urls
            for path in ("/ready", "/admin/state")
        ]
    shown += map(str, await run("doctor", "--store", set_up.url))
    shown += [caplog.text]
    for secret in SECRETS:
        assert not [each for each in shown if secret in each]
    assert "permission" not in caplog.text
