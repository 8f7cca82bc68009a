"""A former primary that is the primary again lacks what its replica had not received."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from synap_realtime.protocol.rooms import Room
from synap_realtime.server.stores.redis.address import parse_address
from synap_realtime.server.stores.redis.store import RedisStore
from tests.support.link import Link
from tests.support.polling import until, until_ready
from tests.support.stores import ids, publish
from tests.support.valkey import Valkey, running_valkey

ROOM = Room("user_1")


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Valkey, Valkey]]:
    with (
        running_valkey(tmp_path / "first") as first,
        running_valkey(tmp_path / "second", "--replicaof", "127.0.0.1", str(first.port)) as second,
    ):
        yield first, second


def follow(replica: Valkey, primary: Valkey) -> None:
    """Make a replica, and disconnect its clients, as a Sentinel does."""
    replica.command("REPLICAOF", "127.0.0.1", primary.port)
    for kind in ("normal", "pubsub"):
        replica.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")


def is_replicating(replica: Valkey) -> bool:
    return bool(replica.command("ROLE")[3] == b"connected")


async def test_room_that_nobody_used_meanwhile_is_known_to_have_lost_notifications(
    pair: tuple[Valkey, Valkey],
) -> None:
    first, second = pair
    await until(lambda: is_replicating(second))
    async with Link(first.url.replace("redis", "http")) as link:
        store = RedisStore(parse_address(link.url.replace("http", "redis")))
        kept = await publish(store, "kept", ROOM)
        await until_ready(store)
        first.command("WAIT", 1, 1000)
        second.command("REPLICAOF", "NO", "ONE")
        await publish(store, "lost", ROOM)

        link.move(second.url.replace("redis", "http"))
        follow(first, second)
        await until_ready(store)
        await until(lambda: is_replicating(first))
        second.command("WAIT", 1, 1000)

        first.command("REPLICAOF", "NO", "ONE")
        link.move(first.url.replace("redis", "http"))
        follow(second, first)
        page = await store.read(ROOM, kept.cursor, 10)
        assert not page.recovered
        assert "lost" not in await ids(store, ROOM)
        await store.close()
