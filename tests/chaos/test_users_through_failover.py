"""Presence, the limit of a user's connections, and revocations, while a primary is replaced."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.auth.revocations import ROOM as REVOCATIONS
from tests.support.credentials import token
from tests.support.failover import Redundant, in_cluster, lose_primary, with_sentinels
from tests.support.http_client import ask
from tests.support.polling import until
from tests.support.servers import running_node, until_ready
from tests.support.timeouts import TIMEOUT_S
from tests.support.valkey import Valkey
from tests.support.waits import SetWaits
from tests.support.websocket_client import closed_with, frame, listening

ROOM = Room("workspace_7")
MOST = 2


@pytest.fixture(params=[with_sentinels, in_cluster])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Redundant]:
    with request.param(tmp_path) as servers:
        yield servers


def of(user: str | None) -> str:
    return token(user, rooms=("workspace_*",), scope="subscribe presence")


def named_at(servers: Redundant, primary: Valkey, name: str) -> str:
    """Return a user whose connections are counted at a primary."""
    names = (f"{name}{n}" for n in itertools.count())
    return next(each for each in names if servers.primary_of(each) is primary)


@contextlib.asynccontextmanager
async def connected(url: str, user: str) -> AsyncIterator[Any]:
    async with listening(url, ROOM, of(user)) as ws:
        await frame(ws, "synap.subscribed")
        yield ws


async def is_refused(url: str, user: str) -> bool:
    """Return whether a connection is refused because of the limit."""
    async with listening(url, ROOM, of(user)) as ws:
        try:
            await frame(ws, "synap.subscribed")
        except websockets.ConnectionClosed:
            return await closed_with(ws) == 4529
    return False


class Watcher:
    """The events of a watcher, which is not disconnected.

    Attributes:
        events: the name of each event, and the user.
    """

    def __init__(self, ws: Any) -> None:
        self._ws = ws
        self.events: list[tuple[str, str]] = []

    async def until_state(self) -> None:
        """Wait for the users at the start."""
        data = (await frame(self._ws, "synap.presence"))["data"]
        assert (data["event"], data["users"]) == ("state", [])

    async def until(self, event: str, user: str) -> None:
        while (event, user) not in self.events:
            data = (await frame(self._ws, "synap.presence"))["data"]
            self.events.append((data["event"], data["user"]))


async def users_of(url: str) -> dict[str, int]:
    response = await ask(url, "GET", f"/rooms/{ROOM}/presence", of(None))
    return {each["user"]: each["connections"] for each in response.json()["users"]}


@pytest.mark.parametrize("is_behind", [False, True], ids=["in step", "behind"])
async def test_presence_and_limits(
    servers: Redundant, set_waits: SetWaits, is_behind: bool
) -> None:
    """Who stays does not leave, who has left does not return, and nobody exceeds the limit.

    Also if the new primary lacks what happened last: its nodes report it again.
    """
    set_waits(presence_grace_s=0.5)
    primary = servers.primary_of(ROOM)
    stays, joins_late, leaves_late, leaves_meanwhile, last = (
        named_at(servers, primary, name)
        for name in ("stays", "joins_late", "leaves_late", "leaves_meanwhile", "last")
    )
    options = {"max_connections_per_user": MOST}
    async with (
        running_node(servers.url, **options) as one,
        running_node(servers.url, **options) as two,
        contextlib.AsyncExitStack() as stack,
        contextlib.AsyncExitStack() as late,
        contextlib.AsyncExitStack() as meanwhile,
    ):
        watchers = [
            Watcher(
                await stack.enter_async_context(listening(url, ROOM, of(None), query="?presence=1"))
            )
            for url in (one, two)
        ]

        async def all_see(event: str, user: str) -> None:
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.gather(*(each.until(event, user) for each in watchers))

        for each in watchers:
            await each.until_state()
        await stack.enter_async_context(connected(one, stays))
        await late.enter_async_context(connected(two, leaves_late))
        await meanwhile.enter_async_context(connected(one, leaves_meanwhile))
        for user in (stays, leaves_late, leaves_meanwhile):
            await all_see("join", user)
        if is_behind:
            primary.cut_replication()
        await stack.enter_async_context(connected(two, stays))
        await stack.enter_async_context(connected(two, joins_late))
        await late.aclose()
        await all_see("join", joins_late)
        await all_see("leave", leaves_late)
        for each in watchers:
            each.events.clear()

        primary.kill()
        await meanwhile.aclose()
        await servers.until_replaced(primary)
        for url in (one, two):
            await until_ready(url)
        for url in (one, two):
            assert await is_refused(url, stays)
        await all_see("leave", leaves_meanwhile)
        await stack.enter_async_context(connected(two, last))
        await all_see("join", last)
        for each in watchers:
            assert each.events == [("leave", leaves_meanwhile), ("join", last)]
        expected = {stays: 2, joins_late: 1, last: 1}
        for url in (one, two):

            async def is_expected(url: str = url) -> bool:
                return await users_of(url) == expected

            await until(is_expected)
        for user in (leaves_late, leaves_meanwhile):  # they are not counted any more
            async with connected(one, user), connected(two, user):
                assert await is_refused(one, user)


async def test_revocation_that_the_new_primary_lacks(servers: Redundant) -> None:
    """A node that starts later refuses the token, too."""
    primary = servers.primary_of(REVOCATIONS)
    before, lost = (token(user, rooms=("workspace_*",)) for user in ("before", "lost"))
    admin = token(None, scope="admin")
    path = f"/rooms/{ROOM}/health"
    async with running_node(servers.url) as one, running_node(servers.url) as two:
        await ask(one, "POST", "/revoke", admin, json={"user": "before"})
        primary.cut_replication()
        response = await ask(one, "POST", "/revoke", admin, json={"user": "lost"})
        assert response.status_code == 200
        await lose_primary(servers, primary)
        for url in (one, two):
            await until_ready(url)
        async with running_node(servers.url) as three:

            async def is_refused_again() -> bool:
                return (await ask(three, "GET", path, lost)).status_code == 401

            await until(is_refused_again)
            for url in (one, two, three):
                for credential in (before, lost):
                    assert (await ask(url, "GET", path, credential)).status_code == 401
